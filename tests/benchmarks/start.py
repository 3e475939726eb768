"""Where the benchmarks of learning start: one SFT checkpoint on the tiny world, made once and kept."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import load_config
from posttrain.prune import prune
from posttrain.rundir import RunDir
from posttrain.sft import train_sft
from tests.benchmarks.harness import Bench


def sft_checkpoint(bench: Bench, folder: Path, overrides: list[str], preset: str = "tiny") -> Path:
    """The checkpoint; what it takes is told beside the measurements.

    Args:
        bench: that starts from it.
        folder: whose `sft` holds the run.
        overrides: of the preset.
        preset: whose SFT it is.
    """
    config = load_config(preset, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    rundir = RunDir(folder / "sft", config)
    newest = rundir.newest("sft")
    if newest is None or not (rundir.path / "done").is_file():
        with bench.timed("sft"):
            if config.prune.enabled and not (rundir.stage("sft") / "kept.parquet").is_file():
                prune(config, rundir)
            newest = train_sft(config, rundir, "auto" if newest else None)
            (rundir.path / "done").touch()
    return newest
