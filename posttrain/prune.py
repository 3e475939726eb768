"""`posttrain prune`: a judge labels every demonstration, and the easy ones are dropped.

Light SFT begins here: what the model can do already teaches nothing and only ties it down.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curricula.datasets import Demonstration
from judges.llm import LABELS, TEMPLATE, LLMJudge, Verdict
from judges.pruner import keep
from posttrain import data
from posttrain.cluster import Cluster, answer, engine_settings, run
from posttrain.config import Config, resolve_data, resolve_model
from posttrain.placement import ROLES
from posttrain.progress import bar, say
from posttrain.rundir import RunDir, check_model
from rollouts.errors import ConfigError
from rollouts.generator import Request
from rollouts.recorder import write_rows
from rollouts.renderer import Renderer
from rollouts.types import Rollout

CHUNK = 256


@dataclass(frozen=True)
class Pruned:
    """How many demonstrations came in and were kept."""

    rows_in: int
    rows_kept: int

    @property
    def dropped_share(self) -> float:
        """Share of the rows that was dropped."""
        return 1 - self.rows_kept / self.rows_in


def prune(config: Config, rundir: RunDir) -> Pruned:
    """Runs the stage; writes verdicts.parquet, kept.parquet and dropped.parquet into the run's `sft` folder.

    Raises:
        UserError: wrong data, template or judge model.
    """
    rows = data.demonstrations(config)
    model = resolve_model(config.judge.model)
    template = _template(config)
    check_model(model)
    rundir.save_config()
    with Cluster.of(config, ROLES["prune"]) as cluster:
        verdicts = run(_judge(config, cluster, model, template, rows))
    kept = keep(verdicts, [row.capability for row in rows], config.prune.keep_ratio)
    _write(rundir.stage("sft"), rows, verdicts, kept)
    labels = Counter(verdict.label for verdict in verdicts)
    result = Pruned(len(rows), sum(kept))
    by_label = ", ".join(f"{label} {labels[label]}" for label in LABELS)
    say(f"prune: {by_label}; kept {result.rows_kept} of {result.rows_in} ({result.dropped_share:.0%} dropped)")
    return result


def _template(config: Config) -> str:
    if config.judge.template is None:
        return TEMPLATE
    path = Path(resolve_data(config.judge.template))
    try:
        template = path.read_text().rstrip("\n")  # an editor ends a file with a newline, a prompt does not
    except OSError as error:
        raise ConfigError(f"judge.template: {path}: {error.strerror or error}") from None
    for place in ("{prompt}", "{response}"):
        if place not in template:
            raise ConfigError(f"judge.template: {path}: has no {place}")
    return template


async def _judge(
    config: Config, cluster: Cluster, model: str, template: str, rows: Sequence[Demonstration]
) -> list[Verdict]:
    """Judges in chunks, on engines that end with the stage: the pool and the trainer need their memory and GPUs."""
    width = config.judge.tensor_parallel or config.generators.tensor_parallel
    settings = replace(engine_settings(config, logprobs_mode="raw_logprobs"), tensor_parallel_size=width)
    engines = [cluster.generator(model, settings, seat) for seat in cluster.placement.judge]
    limits = config.generators
    await asyncio.gather(
        *(answer(engine.ready.remote(), limits.start_timeout, "the judge to start") for engine in engines)
    )
    renderer = Renderer(model)
    verdicts: list[list[Verdict]] = [[] for _ in range(0, len(rows), CHUNK)]
    todo = iter(enumerate(range(0, len(rows), CHUNK)))
    with bar("prune", len(rows), "row") as progress:

        async def work(engine: Any) -> None:
            async def generate(requests: Sequence[Request]) -> list[list[Rollout]]:
                limit = limits.request_timeout
                result: list[list[Rollout]] = await answer(engine.generate_all.remote(requests), limit, "the judge")
                return result

            judge = LLMJudge(config.judge.model, renderer, generate, template, config.judge.max_prompt_tokens)
            for place, start in todo:
                part = rows[start : start + CHUNK]
                verdicts[place] = await judge.judge([row.messages for row in part])
                progress.advance(len(part))

        await asyncio.gather(*(work(engine) for engine in engines))
    for engine in engines:
        cluster.end(engine)
    return [verdict for part in verdicts for verdict in part]


def _write(folder: Path, rows: Sequence[Demonstration], verdicts: Sequence[Verdict], kept: Sequence[bool]) -> None:
    def row(index: int) -> dict[str, Any]:
        demonstration, verdict = rows[index], verdicts[index]
        return {
            "row_id": demonstration.row_id,
            "messages": json.dumps(list(demonstration.messages), ensure_ascii=False),
            "capability": demonstration.capability,
            "label": verdict.label,
            "score": verdict.score,
            **{f"p_{label}": verdict.criteria[label] for label in LABELS},
            "judge": verdict.judge,
            "kept": kept[index],
        }

    everything = range(len(rows))
    for name, chosen in {
        "verdicts": everything,
        "dropped": [index for index in everything if not kept[index]],
        "kept": [index for index in everything if kept[index]],  # last: its presence says that the stage is done
    }.items():
        write_rows(folder / f"{name}.parquet", [row(index) for index in chosen])
