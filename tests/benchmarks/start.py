"""Where the benchmarks of learning start: one SFT checkpoint on the tiny world, and scans; made once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.config import load_config
from posttrain.passk import scan
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


def scan_of(path: Path, words: list[str], samples: int) -> tuple[Path, dict[str, Any]]:
    """The scan, and what `posttrain passk` says of it: among others what it took.

    Args:
        path: of the scan.
        words: overrides of the preset; they name the model.
        samples: of each prompt.
    """
    config, said = load_config("tiny", words), path.with_suffix(".json")
    if not said.is_file():
        path.unlink(missing_ok=True)  # of a sitting that was interrupted
        scan(config, RunDir(path.with_suffix(""), config), [1, samples], samples, config.model, path)
    return path, json.loads(said.read_text())
