"""The RL loop's surroundings under virtual time: a clock that jumps, and workers with seeded latencies and failures.

Everything but the controller's own code is replaced; minutes of a run take milliseconds, and the same seeds give the
same order of events.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from curricula.gate import rejection
from curricula.sampler import PromptSampler
from posttrain.config import RLConfig
from posttrain.ledger import Ledger, Watermark
from posttrain.rl import Controller, Step
from posttrain.slots import Draw, Judged
from posttrain.step_metrics import StepMetrics
from rollouts.errors import JudgeError
from rollouts.types import Prompt

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Nothing is ready to run and no timer is set: what is awaited can never happen."""


class _Clock(selectors.SelectSelector):
    """Instead of waiting for files, it lets the time pass until the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError(f"nothing left to wait for at t={self.now:.3f}")
        if timeout > 0:
            self.now = math.nextafter(self.now + timeout, math.inf)  # never a rounding error before the timer
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps to the next timer.

    Raises:
        DeadlockError: from `run_until_complete`, when nothing can happen any more.
    """

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end under virtual time that begins at 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def make_prompts(**counts: int) -> list[Prompt]:
    """So many prompts of each capability, with ids like `math-7`."""
    return [
        Prompt(f"{capability}-{index}", (), capability, difficulty=index % 3)
        for capability, count in counts.items()
        for index in range(count)
    ]


def mixing(**shares: float) -> Callable[[Prompt, int], float]:
    """Pass rates of 0.5 for a share of each capability's prompts and of 0 for the others, so that about
    `1 - share` of the capability's groups are rejected."""

    def rate(prompt: Prompt, version: int) -> float:
        index = int(prompt.prompt_id.split("-")[1])
        return 0.5 if index % 100 < 100 * shares[prompt.capability] else 0.0

    return rate


@dataclass
class Sampled:
    """A group as the simulation made it: the payload that the trainer gets back."""

    draw: Draw
    length: int  # tokens of the longest rollout
    outcomes: tuple[bool, ...]
    spans: list[tuple[int, int, int]]  # (start, end, version), as rollouts.types.Span


@dataclass
class Begun:
    """How far a group is, whose rollouts are of one length."""

    spans: list[tuple[int, int, int]] = field(default_factory=list)
    whole: bool = False

    @property
    def tokens(self) -> int:
        return self.spans[-1][1] if self.spans else 0


@dataclass(frozen=True)
class Event:
    """Something that happened, at a virtual time in seconds."""

    time: float
    what: str  # drawn, judged, failed, cancelled, train, trained, train_cancelled, update, updated
    draw_id: int = -1
    version: int = -1


@dataclass
class Timing:
    """Seconds; lengths are log-normal, in tokens."""

    per_token: float = 0.01
    median_length: float = 100.0
    tail: float = 1.0  # sigma of the log of the length
    first_token: float = 0.1
    judge: float = 0.2
    train: float = 1.0
    update: float = 0.05
    chunk: int = 50  # tokens between two moments at which an update is noticed


@dataclass
class SimulatedWorkers:
    """Implements `posttrain.rl.Workers`.

    Outcomes depend on `outcome_seed`, the draw's id and the version that it was drawn at, never on latencies; latencies
    depend on `latency_seed` and the draw's id, never on the order of calls. What has `begun` goes on, to a length that
    is as likely as it is of all answers that are longer than that part.
    """

    pass_rate: Callable[[Prompt, int], float]
    group_size: int = 4
    timing: Timing = field(default_factory=Timing)
    outcome_seed: int = 0
    latency_seed: int = 0
    judge_failures: float = 0.0
    longest: int = 10**9  # tokens
    early_stop: int | None = None
    fail: Callable[[Draw], Exception | None] = lambda draw: None
    hang: Callable[[Draw], bool] = lambda draw: False
    begun: Mapping[int, Begun] = field(default_factory=dict)
    under_way: dict[int, Begun] = field(default_factory=dict)
    trained: list[list[Sampled]] = field(default_factory=list)
    sampled: dict[int, Sampled] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    trainer_version: int = 0
    version: int = 0  # of the generators

    def __post_init__(self) -> None:
        self._generating = asyncio.Event()
        self._generating.set()

    def _note(self, what: str, draw_id: int = -1, version: int = -1) -> None:
        self.events.append(Event(asyncio.get_running_loop().time(), what, draw_id, version))

    def of(self, what: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.what == what]

    def length(self, draw_id: int) -> int:
        """Tokens of the longest rollout of a draw."""
        rng, begun = np.random.default_rng([1, self.latency_seed, draw_id]), self.begun.get(draw_id, Begun())
        if begun.whole:
            return begun.tokens
        while True:
            length = max(1, round(self.timing.median_length * math.exp(self.timing.tail * rng.standard_normal())))
            if length > begun.tokens:
                return length

    def outcomes(self, draw: Draw) -> tuple[bool, ...]:
        """What the rollouts of a draw come to."""
        luck = np.random.default_rng([2, self.outcome_seed, draw.draw_id]).random(self.group_size)
        return tuple(bool(value < self.pass_rate(draw.prompt, draw.version)) for value in luck)

    def truncated(self, draw: Draw) -> int:
        """How many rollouts of a draw reached the largest number of tokens."""
        return int(self.length(draw.draw_id) >= self.longest)

    def judge_fails(self, draw_id: int) -> bool:
        """Whether the judge fails on a draw."""
        return bool(np.random.default_rng([3, self.outcome_seed, draw_id]).random() < self.judge_failures)

    async def rollout(self, draw: Draw) -> Judged:
        """Generates a group in chunks, each under the version that the generators hold by then, and judges it."""
        self._note("drawn", draw.draw_id, draw.version)
        assert draw.version <= self.version, "drawn under a version that the generators do not hold"
        try:
            if self.hang(draw):
                await asyncio.get_running_loop().create_future()
            error, length, outcomes = self.fail(draw), self.length(draw.draw_id), self.outcomes(draw)
            begun = Begun(list(self.begun.get(draw.draw_id, Begun()).spans))
            self.under_way[draw.draw_id] = begun
            spans = await self._generate(length, begun)
            begun.whole = True
            await asyncio.sleep(self.timing.judge)
            if self.early_stop is not None:
                if rejection(outcomes[: self.early_stop]):
                    outcomes = outcomes[: self.early_stop]
                else:
                    spans += await self._generate(length, Begun())
                    await asyncio.sleep(self.timing.judge)
            if error is not None:
                raise error
            if self.judge_fails(draw.draw_id):
                raise JudgeError(f"no verdict on draw {draw.draw_id}")
        except asyncio.CancelledError:
            self._note("cancelled", draw.draw_id)
            raise
        except Exception:
            self._note("failed", draw.draw_id)
            raise
        del self.under_way[draw.draw_id]
        sampled = Sampled(draw, length, outcomes, spans)
        self.sampled[draw.draw_id] = sampled
        self._note("judged", draw.draw_id)
        reward = sum(outcomes) / len(outcomes)
        return Judged(draw, outcomes, reward, spans[0][2], length * len(outcomes), self.truncated(draw), sampled)

    async def _generate(self, length: int, begun: Begun) -> list[tuple[int, int, int]]:
        """Takes the time of so many tokens; gives the spans of versions that they were sampled under."""
        await asyncio.sleep(self.timing.first_token)
        spans = begun.spans
        start = begun.tokens
        while start < length:
            await self._generating.wait()
            end, version = min(start + self.timing.chunk, length), self.version
            await asyncio.sleep(self.timing.per_token * (end - start))
            if spans and spans[-1][2] == version:
                spans[-1] = (spans[-1][0], end, version)
            else:
                spans.append((start, end, version))
            start = end
        return spans

    async def train(self, batch: Sequence[Judged]) -> StepMetrics:
        """Takes its time and remembers what it was given."""
        self._note("train", version=self.trainer_version)
        try:
            await asyncio.sleep(self.timing.train)
        except asyncio.CancelledError:
            self._note("train_cancelled", version=self.trainer_version)
            raise
        self.trained.append([judged.payload for judged in batch])
        self.trainer_version += 1
        self._note("trained", version=self.trainer_version)
        return StepMetrics(0.0, 1.0, 1e-3, 1.0, 0.0, 0.0, 0.0, 1.0, sum(judged.tokens for judged in batch), 0.0, 1.0)

    async def update_weights(self, version: int) -> float:
        """Pauses generation, keeping what is under way."""
        assert version == self.trainer_version
        self._note("update", version=version)
        self._generating.clear()
        await asyncio.sleep(self.timing.update)
        self.version = version
        self._generating.set()
        self._note("updated", version=version)
        return self.timing.update


@dataclass
class Run:
    """A controller with its simulated surroundings, and what came of it."""

    controller: Controller
    workers: SimulatedWorkers
    sampler: PromptSampler
    ledger: Ledger
    steps: list[Step] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    seconds: float = 0.0  # virtual

    def go(self, on_step: Callable[[Step], None] = lambda step: None) -> Run:
        """Runs the controller to its end; its errors are raised here."""

        async def checkpoint(version: int) -> None:
            assert self.workers.version == version - 1, "a checkpoint is taken before the generators get the weights"
            self.checkpoints.append(version)

        async def report(step: Step) -> None:
            self.steps.append(step)
            on_step(step)

        async def main() -> None:
            try:
                await self.controller.run(checkpoint, report)
            finally:
                self.seconds = asyncio.get_running_loop().time()

        simulate(main())
        return self

    @property
    def batches(self) -> list[list[Sampled]]:
        """The groups of every train step."""
        return self.workers.trained

    @property
    def drawn(self) -> list[int]:
        """The ids of the draws, in order."""
        return [event.draw_id for event in self.workers.of("drawn")]

    def staleness(self) -> list[int]:
        """Of every train step: how many versions its oldest token is behind the weights that were trained on it."""
        return [
            step - min(version for sampled in batch for _, _, version in sampled.spans)
            for step, batch in enumerate(self.batches)
        ]


def make_run(
    ledger: Path, prompts: Sequence[Prompt], workers: SimulatedWorkers, *, seed: int = 0, **settings: Any
) -> Run:
    """A run of the real controller, sampler and ledger on simulated workers; `settings` are those of `rl`."""
    config = RLConfig(**({"group_size": workers.group_size, "steps": 20, "prompts_per_step": 8} | settings))
    sampler = PromptSampler(prompts, config.selection, config.group_size, seed)
    records = Ledger(ledger)
    records.begin(0, Watermark())
    return Run(Controller(config, sampler, workers, records), workers, sampler, records)
