"""RL with a judge's reward: what it gains on the chat, and what it costs elsewhere.

Preset `tiny-chat`, five seeds of RL from one SFT checkpoint: chat that only `tiny:chat-judge` grades, beside the tiny
world's verified tasks. Before and after, on held-out prompts: the judge's mean grade of the chat's manner, the
length of its answers, and pass@1 of the verified capabilities. Beside that, of the chat that was rolled out in the
run's last tenth, how much the judge took for good, and how much is so by what only the writers of the chat know
(`chat.is_good`): what lies between them is a judge deceived.

Targets: the grade rises (the lower end of its 95 % interval is above 0); answers grow by at most 1.2, in each seed; and
of pass@1 elsewhere at most 0.02 is lost (upper end of the 95 % interval). Intervals are over prompts, in pairs of
before and after, each prompt's change being its mean over the seeds; beside them what each seed alone came to. `value`
is the larger of the two figures over their targets; infinite where the grade does not rise.

Budget: about four minutes a seed on two cores, and three for SFT.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain import data
from posttrain.cluster import Cluster
from posttrain.config import load_config
from posttrain.evaluate import Report, mean_and_interval
from posttrain.pipeline import evaluate_checkpoint
from posttrain.rl_stage import train_rl
from posttrain.rl_state import shards
from posttrain.rundir import RunDir
from posttrain.tiny.chat import CAPABILITY, is_good
from rollouts.recorder import read_shards
from rollouts.renderer import Renderer
from tests.benchmarks.harness import Bench, Measurement, Options, column
from tests.benchmarks.start import sft_checkpoint

LENGTH, LOSS = 1.2, 0.02


class Runs:
    """RL runs from one SFT checkpoint."""

    def __init__(self, bench: Bench, overrides: list[str]) -> None:
        """Trains nothing yet.

        Args:
            bench: whose folder the runs go to.
            overrides: of the preset, for every run.
        """
        self._folder, self._overrides, self._bench = bench.runs_folder(), overrides, bench

    def measure(self, seed: int) -> Measurement:
        """One run: grade, length and pass@1 before and after."""
        start = sft_checkpoint(self._bench, self._folder, self._overrides, "tiny-chat")
        config = load_config("tiny-chat", [*self._overrides, f"model={start}", f"seed={seed}"])
        same = config.model_copy(update={"seed": 0})  # the same samples for every seed of training
        folder = self._folder / f"rl-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a sitting that was interrupted
        with Cluster(config):
            before = evaluate_checkpoint(same, str(start))
            checkpoint = train_rl(config, RunDir(folder, config))
            after = evaluate_checkpoint(same, str(checkpoint))
        last = [row for row in read_shards(shards(folder)) if row["first_version"] >= 0.9 * config.rl.steps]
        said = [
            (row["outcome"], is_good(json.loads(row["messages"])[-1]["content"], row["text"]))
            for row in last if row["capability"] == CAPABILITY
        ]  # fmt: skip
        shutil.rmtree(folder)
        prompts = data.prompts(config, "heldout", Renderer(str(start)), config.eval.max_tokens, lambda _: None)
        chat = [prompt.prompt_id for prompt in prompts if prompt.capability == CAPABILITY]
        verified = [prompt.prompt_id for prompt in prompts if prompt.capability != CAPABILITY]
        return {
            "grade": [_mean(report, chat, "reward/manner") for report in (before, after)],
            "gains": _changes(before, after, chat, "reward/manner"),
            "tokens": [report.tokens_by_capability[CAPABILITY] for report in (before, after)],
            "taken_for_good": _share(met for met, _ in said), "good": _share(good for _, good in said),
            "met": [report.by_capability[CAPABILITY] for report in (before, after)],
            "pass@1": [_mean(report, verified, "pass@1") for report in (before, after)],
            "changes": _changes(before, after, verified, "pass@1"),
        }  # fmt: skip


def _share(values: Iterable[bool]) -> float | None:
    """None of none, as in a quick run."""
    found = list(values)
    return statistics.fmean(found) if found else None


def _mean(report: Report, prompts: list[str], what: str) -> float:
    return statistics.fmean(report.by_prompt[prompt][what] for prompt in prompts if prompt in report.by_prompt)


def _changes(before: Report, after: Report, prompts: list[str], what: str) -> dict[str, float]:
    """What changed, by prompt; without those that could not be judged both times."""
    both = [prompt for prompt in prompts if prompt in before.by_prompt and prompt in after.by_prompt]
    return {prompt: round(after.by_prompt[prompt][what] - before.by_prompt[prompt][what], 4) for prompt in both}


def over_seeds(changes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean change and its 95 % interval over prompts, of which each counts by its mean over the seeds.

    Example: `over_seeds([{"a": 0.2, "b": 0.0}, {"a": 0.4, "b": 0.2}])["mean"] == 0.2`
    """
    prompts = sorted(set[str]().union(*changes))
    mean, interval = mean_and_interval(
        [statistics.fmean(seed[prompt] for seed in changes if prompt in seed) for prompt in prompts]
    )
    return {"mean": mean, "ci95": interval, "by_seed": [statistics.fmean(seed.values()) for seed in changes]}


def main(options: Options) -> dict[str, Any]:
    """Runs it, or as much as `--arms` allows; returns the line."""
    seeds = 1 if options.quick else 5
    overrides = ["rl.checkpoint_every=1000", "eval.samples=8", "eval.pass_k=[1]", "eval.temperatures=[1.0]"]
    if options.quick:
        overrides += ["rl.steps=2", "data.demonstrations.limit=64", "eval.samples=1", "rl.group_size=4"]
    bench = Bench(
        "judged",
        options,
        {"preset": "tiny-chat", "overrides": overrides, "seeds": seeds},
        (Path(__file__), Path(__file__).with_name("start.py")),
    )
    runs = Runs(bench, overrides)
    found = bench.interleave({"rl": runs.measure}, seeds)["rl"]
    if not found:
        return bench.line(None, 1.0, "at most")
    gain, elsewhere = (over_seeds(column(found, name)) for name in ("gains", "changes"))
    lengths = [each["tokens"][1] / each["tokens"][0] for each in found]
    value = max(max(lengths) / LENGTH, -elsewhere["ci95"][0] / LOSS) if gain["ci95"][0] > 0 else math.inf
    return bench.line(
        value if len(found) == seeds else None, 1.0, "at most", unit="largest ratio of a figure to its target",
        gain=gain, lengths=lengths, elsewhere=elsewhere,
        **{name: column(found, name) for name in ("grade", "met", "taken_for_good", "good", "pass@1")},
    )  # fmt: skip
