"""What DPO on mined pairs repairs: corner cases by kind before and after, under instructions that no training has.

Preset `tiny`, three seeds: SFT, RL, then DPO on the pairs that it mines. Before and after DPO, the held-out problems
are asked under the held-out instructions alone, eight samples each. Targets, in each seed: of each kind with at least
100 cases before or afterwards there are fewer afterwards (the difference's 95 % interval, in pairs of prompts, excludes
0), and at most 0.02 of pass@1 is lost (upper end of its interval). `value` is the largest of these losses over 0.02;
infinite where a kind does not become rarer, or none has so many cases.

Budget: about eleven minutes a seed on two cores.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from judges.corner_cases import KINDS
from posttrain.cluster import Cluster
from posttrain.config import load_config, resolve_data
from posttrain.dpo import train_dpo
from posttrain.evaluate import change
from posttrain.pipeline import evaluate_checkpoint
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from posttrain.tiny.writing import HELDOUT_INSTRUCTIONS
from tests.benchmarks.harness import Bench, Measurement, Options, column
from tests.benchmarks.start import sft_checkpoint

CASES, LOSS = 100, 0.02


def heldout_prompts(folder: Path) -> Path:
    """The tiny world's held-out problems, each under a held-out instruction, in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "heldout.jsonl"
    rows = [json.loads(line) for line in Path(resolve_data("tiny:heldout")).read_text().splitlines()]
    for index, row in enumerate(rows):
        asked = HELDOUT_INSTRUCTIONS[index % len(HELDOUT_INSTRUCTIONS)]
        row["messages"][0]["content"] = asked.text
        row |= {"format": [asked.left, asked.right], "instruction": asked.instruction_id}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Runs:
    """Runs of RL and DPO from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
        """
        self._folder, self._overrides, self._bench = bench.runs_folder(), overrides, bench

    def measure(self, seed: int) -> Measurement:
        """One run: corner cases by kind and pass@1, before DPO and after."""
        start = sft_checkpoint(self._bench, self._folder, self._overrides)
        words = [*self._overrides, f"model={start}", f"seed={seed}"]
        config = load_config("tiny", [*words, f"data.heldout.path={heldout_prompts(self._folder)}"])
        same = config.model_copy(update={"seed": 0})  # the same samples for every seed of training
        folder = self._folder / f"dpo-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        rundir = RunDir(folder, config)
        with Cluster(config):
            before = evaluate_checkpoint(same, str(train_rl(config, rundir))).as_json()
            after = evaluate_checkpoint(same, str(train_dpo(config, rundir))).as_json()
        shutil.rmtree(folder)
        return {
            "cases": [report["corner_case_counts"] for report in (before, after)], "change": change(before, after),
            "pass@1": [report["pass@1"] for report in (before, after)],
            "samples": before["samples"] * before["prompts"],
        }  # fmt: skip


def holds(found: Measurement) -> bool:
    """Whether there are kinds with enough cases, and each of them has become rarer."""
    often = [kind for kind in KINDS if max(cases[kind] for cases in found["cases"]) >= CASES]
    return bool(often) and all(found["change"][kind]["ci95"][1] < 0 for kind in often)


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    seeds = 1 if options.quick else 3
    overrides = ["rl.eval_every=0", "eval.samples=8", "eval.pass_k=[1]", "eval.temperatures=[1.0]"]
    if options.quick:
        overrides += ["prune.enabled=false", "data.demonstrations.limit=64", "eval.samples=1", "rl.steps=2"]
        overrides += ["rl.group_size=4", "dpo.fresh_prompts=64"]
    settings = {"preset": "tiny", "overrides": overrides, "seeds": seeds}
    bench = Bench("repair", options, settings, (Path(__file__), Path(__file__).with_name("start.py")))
    runs = Runs(bench, overrides)
    found = bench.interleave({"dpo": runs.measure}, seeds)["dpo"]
    value = None
    if len(found) == seeds:
        loss = max(-each["change"]["pass@1"]["ci95"][0] for each in found)
        value = loss / LOSS if all(map(holds, found)) else math.inf
    return bench.line(
        value, 1.0, "at most", unit="upper bound of the loss in pass@1 over 0.02", kinds_hold=[*map(holds, found)],
        cases=column(found, "cases"), change=column(found, "change"), pass_1=column(found, "pass@1"),
    )  # fmt: skip
