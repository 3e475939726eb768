"""The asynchronous loop of `posttrain rl` with its real workers, in windows that are timed: no evaluation, no
checkpoint, and a learning rate that leaves the policy what it was, so that windows are comparable."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.sampler import PromptSampler
from posttrain import data
from posttrain.cluster import Cluster
from posttrain.config import Config, RLConfig, resolve_model
from posttrain.ledger import Ledger, Watermark
from posttrain.progress import say
from posttrain.rl import Controller, Step
from posttrain.slots import Draw, Judged
from posttrain.step_metrics import StepMetrics
from posttrain.workers import RayWorkers
from rollouts.renderer import Renderer
from tests.benchmarks.harness import Measurement

FROZEN = [
    "generators.count=1", "rl.generators=1", "rl.eval_every=0", "rl.learning_rate=1e-12",
    "rl.lr_scheduler_type=constant",
]  # fmt: skip
"""Overrides: one generator and one trainer, and a policy that stays what it was."""


class Watched(RayWorkers):
    """The real workers; keeps what was drawn and trained, and lets rollouts end that the loop no longer waits for."""

    def __init__(self, *arguments: Any) -> None:
        """Starts them."""
        super().__init__(*arguments)
        self.draws: list[Draw] = []
        self.batches: list[Sequence[Judged]] = []
        self._going_on: set[asyncio.Task[Judged]] = set()

    async def rollout(self, draw: Draw) -> Judged:
        """As the real one."""
        self.draws.append(draw)
        task = asyncio.ensure_future(super().rollout(draw))
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)
        return await asyncio.shield(task)

    async def train(self, batch: Sequence[Judged]) -> StepMetrics:
        """As the real one."""
        self.batches.append(batch)
        return await super().train(batch)

    async def idle(self) -> None:
        """Returns once no rollout is under way any more: the next window has the engine to itself."""
        await asyncio.gather(*self._going_on, return_exceptions=True)


@dataclass(frozen=True)
class Recording:
    """What a window drew and trained, and where it left the sampler, for the windows after it."""

    version: int
    sampler: dict[str, Any]
    draws: list[Draw] = field(repr=False)
    batches: list[Sequence[Judged]] = field(repr=False)


class Loop:
    """One set of workers, for many windows."""

    def __init__(self, cluster: Cluster, config: Config) -> None:
        """Starts the generator; trainer and verifier follow with `start`."""
        self.config, model = config, resolve_model(config.model)
        renderer = Renderer(model)
        self.prompts = data.prompts(config, "prompts", renderer, config.rl.sampling.max_tokens, say)
        self._folder = tempfile.TemporaryDirectory(prefix="posttrain-bench-")
        folder = Path(self._folder.name)
        self.workers = Watched(cluster, cluster.pool(model), renderer, model, model, folder)
        self._windows = 0

    async def window(
        self, rl: RLConfig, warm_up: int, steps: int, start: Recording | None = None
    ) -> tuple[Measurement, Recording]:
        """Runs the loop for `warm_up` steps and then `steps` timed ones.

        Args:
            rl: the loop's settings, but for its number of steps.
            warm_up: at least 1: a step is timed from the end of the one before.
            steps: timed.
            start: whose sampler to go on from.
        """
        version = start.version if start else 0
        sampler = PromptSampler(self.prompts, rl.selection, rl.group_size, self.config.seed)
        if start:
            sampler.load_state_dict(start.sampler)
        await self.workers.begin(version, None)
        self.workers.draws, self.workers.batches = [], []
        self._windows += 1
        ledger = Ledger(Path(self._folder.name) / f"{self._windows}.db")
        ledger.begin(0, Watermark())
        settings = rl.model_copy(update={"steps": version + warm_up + steps})
        controller = Controller(settings, sampler, self.workers, ledger, version)
        done: list[tuple[float, float, Step]] = []

        async def no_checkpoint(version: int) -> None:
            """Nothing is saved within a window."""

        async def report(step: Step) -> None:
            busy = (await self.workers.engine_metrics())["busy_seconds"]
            done.append((time.perf_counter(), busy, step))

        await controller.run(no_checkpoint, report)
        await self.workers.idle()
        ledger.close()
        timed = [step for _, _, step in done[warm_up:]]
        seconds = done[-1][0] - done[warm_up - 1][0]
        groups, rejected = steps * rl.prompts_per_step, sum(step.rejected for step in timed)
        measurement = {
            "seconds": seconds, "seconds_per_step": seconds / steps, "groups_per_second": groups / seconds,
            "admitted_share": groups / (groups + rejected),
            "tokens_per_step": sum(step.train.tokens for step in timed) / steps,
            "generator_busy": (done[-1][1] - done[warm_up - 1][1]) / seconds,
            "trainer_busy": sum(step.train.seconds for step in timed) / seconds,
            "pause_per_step": sum(step.pause for step in timed) / steps,
            "solved": sum(step.solved for step in timed) / steps,
            "staleness": sum(step.staleness for step in timed) / steps,
        }  # fmt: skip
        recorded = Recording(
            controller.version, sampler.state_dict(), list(self.workers.draws), list(self.workers.batches)
        )
        return _short(measurement), recorded

    async def generation(self, draws: Sequence[Draw], in_flight: int) -> Measurement:
        """Generates and judges given draws, so many at a time, with no trainer.

        Timed from the end of the first `in_flight` groups to when the last one is begun, so with all seats taken.
        """
        await self.workers.begin(0, None)  # also empties the prefix cache, in which a replay would find its prompts
        waiting, ends, tokens = iter(draws), [], []

        async def seat() -> None:
            for draw in waiting:
                judged = await self.workers.rollout(draw)
                ends.append(time.perf_counter())
                tokens.append(judged.tokens)

        await asyncio.gather(*(seat() for _ in range(in_flight)))
        first, last = in_flight - 1, len(ends) - in_flight
        assert last > first, f"{len(draws)} draws are too few for {in_flight} at a time"
        seconds = ends[last] - ends[first]
        return _short({
            "seconds": seconds, "groups_per_second": (last - first) / seconds,
            "tokens_per_group": sum(tokens) / len(tokens),
            "tokens_per_second": sum(tokens[first + 1 : last + 1]) / seconds,
        })  # fmt: skip

    async def training(self, batches: Sequence[Sequence[Judged]], warm_up: int) -> Measurement:
        """Trains given batches one after the other, with no generation and no publishing."""
        steps = []
        for number, batch in enumerate(batches):
            if number == warm_up:
                started = time.perf_counter()
            steps.append(await self.workers.train(batch))
        seconds = time.perf_counter() - started
        groups = sum(len(batch) for batch in batches[warm_up:])
        return _short({
            "seconds": seconds, "groups_per_second": groups / seconds,
            "tokens_per_step": sum(step.tokens for step in steps[warm_up:]) / len(steps[warm_up:]),
        })  # fmt: skip


def _short(values: Measurement) -> Measurement:
    return {key: round(value, 5) for key, value in values.items()}
