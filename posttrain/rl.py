"""Asynchronous online RL: the loop.

      curriculum                     generators                verifier           gate
    +------------+  draw a prompt   +-----------+   G rollouts +--------+  judged  +------+  admitted, n_c of each
    | which next |----------------->| vLLM x N  |------------->| judges |--------->| 0/1? |----------+ capability
    +------------+  takes a slot    +-----------+              +--------+          +------+          v
          ^                               ^                                           |        +-----------+
          |    outcomes, frees the slot   |    weights of version v + 1               |        |  trainer  |
          +-------------------------------|-------------------------------------------+        | one batch,|
          |                               +----------------------------------------------------| one step  |
          +------------ frees the slots of the batch, once the generators have the weights ----+-----------+

Generation, judging and training go on at the same time, each in processes of its own; this controller is plain
asyncio and owns no device. What it waits for is named where it waits, and every wait has a limit.

Simplified against the literature: one optimizer step for each policy version; importance ratios are taken against the
log-probabilities that vLLM stored at sampling, whatever version sampled the token; no value model.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from curricula.gate import rejection
from curricula.instructions import InstructionPools
from curricula.sampler import PromptSampler
from posttrain.config import RLConfig
from posttrain.ledger import Ledger
from posttrain.progress import say
from posttrain.slots import Draw, Judged, Slots
from posttrain.step_metrics import StepMetrics
from rollouts.errors import EngineError, JudgeError, NoSignalError

T = TypeVar("T")


class Workers(Protocol):
    """The processes that do the work; a simulation puts others in their place."""

    async def rollout(self, draw: Draw) -> Judged:
        """Generates and judges the group of a draw."""
        ...

    async def train(self, batch: Sequence[Judged]) -> StepMetrics:
        """One train step."""
        ...

    async def update_weights(self, version: int) -> float:
        """Gives the generators the trainer's weights; returns the pause in seconds."""
        ...


@dataclass
class Totals:
    """What a run adds up to."""

    groups_trained: int = 0
    tokens_trained: int = 0
    trained_by_capability: Counter[str] = field(default_factory=Counter)
    groups_judged: int = 0
    groups_mixed: int = 0
    """Those judged whose outcomes are mixed."""
    solve_rates: float = 0.0
    """Sum over the groups judged of the share of rollouts that solve."""
    rejected: Counter[str] = field(default_factory=Counter)
    max_staleness_seen: int = 0

    def judged(self, outcomes: Sequence[bool]) -> None:
        """Counts a group."""
        self.groups_judged += 1
        self.groups_mixed += rejection(outcomes) is None
        self.solve_rates += sum(outcomes) / len(outcomes)


@dataclass
class Step:
    """What one turn of the loop did, for the log line and the metrics."""

    version: int
    reward: float
    solved: float
    staleness: int
    rejected: int
    train: StepMetrics
    lending: int  # capabilities that lend their share of the batch
    pause: float = 0.0  # seconds without generation, for the weight update

    def scalars(self) -> dict[str, float]:
        """Everything as flat numbers."""
        flat = {key: value for key, value in asdict(self).items() if key not in ("train", "version")}
        return flat | {f"train/{key}": value for key, value in asdict(self.train).items()}


class Controller:
    """Runs the loop: draws prompts into free slots, gates what comes back, trains full batches, frees their slots."""

    def __init__(
        self,
        config: RLConfig,
        sampler: PromptSampler,
        workers: Workers,
        ledger: Ledger,
        version: int = 0,
        instructions: InstructionPools | None = None,
    ) -> None:
        """Starts at a policy version (0, or the step of the checkpoint that a run is resumed from)."""
        self.instructions = instructions or InstructionPools()
        self.config, self.sampler, self.workers, self.ledger = config, sampler, workers, ledger
        self.version = version  # of the trainer's weights
        self.synced = version  # of the generators'
        weights = config.quotas or dict.fromkeys(sampler.capabilities, 1.0)
        self.slots = Slots(config.prompts_per_step, weights, config.max_staleness, config.order)
        self.totals = Totals()
        self.next_draw = 0
        self._again: list[Draw] = []  # under way at the checkpoint that is gone on from
        self._tasks: dict[asyncio.Task[Judged], Draw] = {}
        self._round: list[tuple[Draw, Judged | JudgeError]] = []  # what a synchronous round has brought so far
        self._without_signal: Counter[str] = Counter()  # rejections in a row, by capability
        self._lent_since: dict[str, int] = {}
        self._rejected_before = 0  # up to the step before
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Asks the loop to end at the next step boundary."""
        self._stop.set()

    async def run(
        self, checkpoint: Callable[[int], Awaitable[None]], report: Callable[[Step], Awaitable[None]]
    ) -> None:
        """Trains until the configured number of steps, or until `stop`.

        Args:
            checkpoint: awaited after each train step, before the generators get its weights: the moment at which
                weights, optimizer, statistics and ledger belong together.
            report: awaited when a step is over.

        Raises:
            NoSignalError: no capability gave a group with mixed outcomes any more.
            EngineError: no batch was full within `step_timeout`, or a process died.
        """
        try:
            for draw in self._again:
                self._start(draw)
            while self.version < self.config.steps:
                batch = await self._next_batch()
                if batch is None:
                    return
                metrics = await self._meanwhile(self.workers.train(batch))
                step = self._account(batch, metrics)
                await checkpoint(self.version)
                step.pause = await self._meanwhile(self.workers.update_weights(self.version))
                self._release(batch)
                await report(step)
        finally:
            await self._cancel()

    # ------------------------------------------------------------------------------------------------- a batch

    async def _next_batch(self) -> list[Judged] | None:
        """Waits for groups until a batch is full; None if asked to stop.

        Unblocked by finished rollouts: each is gated as it comes (with `max_staleness=0`: when the whole round is in,
        in draw order, so that the next draws don't depend on who was first), and a rejected one makes room for another.
        """
        if self._stop.is_set():  # also when the next batch is full already
            return None
        self._fill()
        stop = asyncio.ensure_future(self._stop.wait())
        deadline = asyncio.get_running_loop().time() + self.config.step_timeout
        try:
            while (batch := self.slots.batch(self.version)) is None:
                left = deadline - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait({stop, *self._tasks}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if stop in done:
                    return None
                if not done:
                    waited = f"waited {self.config.step_timeout:.0f} s (rl.step_timeout) for a full batch"
                    raise EngineError(f"{waited}; {self.slots.waiting_for()}")
                self._collect()
            return batch
        finally:
            stop.cancel()

    async def _meanwhile(self, work: Awaitable[T]) -> T:
        """Awaits the trainer or the engines while rollouts go on being judged, gated and drawn anew."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
            return await task
        finally:
            task.cancel()  # does nothing unless a rollout's error ends the run before the work is done

    def _collect(self) -> None:
        """Takes what has finished through the gate, and fills the slots that this frees."""
        for task in [task for task in self._tasks if task.done()]:
            draw = self._tasks.pop(task)
            error = task.exception()
            if error is not None and not isinstance(error, JudgeError):
                raise error
            self._round.append((draw, task.result() if error is None else error))
        if self.config.max_staleness == 0 and self._tasks:
            return
        for draw, result in sorted(self._round, key=lambda item: item[0].draw_id):
            self._gate(draw, result)
        self._round.clear()
        self._reject_surplus()
        self._fill()

    def _gate(self, draw: Draw, result: Judged | JudgeError) -> None:
        """Observes a group's outcomes and admits or rejects it. A judge's failure is not an outcome."""
        if isinstance(result, JudgeError):
            self.sampler.observe(draw.row, None, draw.version)
            self._refuse(draw, "judge", None, result)
            return
        self.sampler.observe(draw.row, result.outcomes, draw.version)
        self.totals.judged(result.outcomes)
        if reason := self._rejection(result):
            self._refuse(draw, reason, result)
            return
        self._without_signal[draw.domain] = 0
        if draw.domain in self.slots.lent:
            self.slots.restore(draw.domain)
            say(f"{draw.domain} gives a signal again, and has its share of the batch back")
        if self.version - result.oldest_version > self.config.max_staleness:  # its capability's share has shrunk
            self._reject(draw, "stale", result)
            return
        self.slots.admit(result)
        self.ledger.judged(draw.draw_id, "admitted", None, sum(result.outcomes), len(result.outcomes), result.tokens)

    def _refuse(self, draw: Draw, reason: str, judged: Judged | None, error: JudgeError | None = None) -> None:
        """Rejects a group from which nothing can be learnt; its capability may come to lend its share."""
        self._reject(draw, reason, judged)
        self._without_signal[draw.domain] += 1
        self._lend(draw.domain, error)

    def _rejection(self, judged: Judged) -> str | None:
        if self.config.truncated == "reject" and judged.truncated:
            return "truncated"
        return rejection(judged.outcomes) if self.config.rejects_equal_outcomes else None

    def _reject(self, draw: Draw, reason: str, judged: Judged | None) -> None:
        outcomes = judged.outcomes if judged else ()
        self.totals.rejected[reason] += 1
        self.slots.release(draw)
        self.ledger.judged(
            draw.draw_id, "rejected", reason, sum(outcomes), len(outcomes), judged.tokens if judged else 0
        )

    def _reject_surplus(self) -> None:
        """Rejects what a synchronous round has brought beyond a batch."""
        if self.config.max_staleness == 0:
            for judged in self.slots.surplus():
                self._reject(judged.draw, "surplus", judged)

    def _lend(self, capability: str, failure: JudgeError | None) -> None:
        """After many rejections in a row a capability lends its share; when all have, no prompt gives a signal."""
        lent = capability in self.slots.lent
        if lent or self._without_signal[capability] >= self.config.max_rejected_in_a_row:
            self.slots.lend(capability)
            self._lent_since[capability] = self.version
        if self.slots.lent == set(self.slots.weights):
            raise failure or NoSignalError(self._no_signal())
        if capability in self.slots.lent and not lent:
            rejected = f"{self._without_signal[capability]} of its groups in a row were rejected"
            again = f"it is tried again every {self.config.retest_every} steps (rl.retest_every)"
            say(f"{capability} lends its share of the batch to the others: {rejected}; {again}")

    def _no_signal(self) -> str:
        rates = self.ledger.pass_rates()
        bins = Counter(min(int(rate * 10), 9) for rate in rates)
        histogram = ", ".join(f"{low / 10:.1f}-{(low + 1) / 10:.1f}: {bins[low]}" for low in range(10) if bins[low])
        rejected = ", ".join(f"{name}: {count}" for name, count in self._without_signal.items())
        return (
            "no prompt gives a learning signal: in each group all rollouts fail, or all succeed (groups rejected in a "
            f"row: {rejected}); pass rates of the {len(rates)} groups judged: {histogram}; use easier or harder "
            "prompts, a larger rl.group_size, or more SFT"
        )

    # ------------------------------------------------------------------------------------------------- slots

    def _fill(self) -> None:
        """Draws a prompt into every free slot; in a synchronous round only once nothing is under way."""
        if self.config.max_staleness == 0 and self._tasks:
            return
        for capability in self.slots.weights:
            for _ in range(self.slots.free(capability, self._oversample)):
                row = self.sampler.draw(capability, self.synced)
                prompt = self.instructions.for_draw(self.sampler.prompts[row], self.next_draw)
                draw = Draw(self.next_draw, row, prompt, self.synced)
                self.next_draw += 1
                self.slots.take(draw)
                self.ledger.drawn(draw.draw_id, prompt.prompt_id, capability, draw.version, prompt.instruction)
                self._start(draw)

    @property
    def _oversample(self) -> float:
        """Groups drawn in a round for each one that is missing; rounds are of synchronous runs alone."""
        return self.config.oversample if self.config.max_staleness == 0 else 1.0

    def _start(self, draw: Draw) -> None:
        self._tasks[asyncio.ensure_future(self.workers.rollout(draw))] = draw

    def _account(self, batch: Sequence[Judged], train: StepMetrics) -> Step:
        """Counts a train step and enters it in the ledger; the policy is one version further."""
        staleness = max(self.version - judged.oldest_version for judged in batch)
        assert staleness <= self.config.max_staleness, f"staleness {staleness} past the bound"
        self.version += 1
        self.totals.groups_trained += len(batch)
        self.totals.trained_by_capability.update(judged.draw.domain for judged in batch)
        self.totals.tokens_trained += train.tokens
        self.totals.max_staleness_seen = max(self.totals.max_staleness_seen, staleness)
        self.ledger.trained((judged.draw.draw_id for judged in batch), self.version)
        outcomes = [outcome for judged in batch for outcome in judged.outcomes]
        rejected = self.totals.rejected.total() - self._rejected_before
        self._rejected_before += rejected
        reward = sum(judged.mean_reward for judged in batch) / len(batch)
        solved, lending = sum(outcomes) / len(outcomes), len(self.slots.lent)
        return Step(self.version, reward, solved, staleness, rejected, train, lending)

    def _release(self, batch: Sequence[Judged]) -> None:
        """Frees the slots of a batch that the generators have the weights of."""
        self.synced = self.version
        for judged in batch:
            self.slots.release(judged.draw)
        self._at_new_version()

    def _at_new_version(self) -> None:
        """Rejects what is too old by now, and re-tests who lends its share. To do it again changes nothing."""
        for judged in self.slots.stale(self.version):
            self._reject(judged.draw, "stale", judged)
        for capability in self.slots.lent:
            if self.version - self._lent_since[capability] >= self.config.retest_every:
                self.slots.probe(capability)

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    # ------------------------------------------------------------------------------------------------- resume

    def state_dict(self) -> dict[str, Any]:
        """What the next batches depend on, beside the draws that are pending; JSON types only."""
        return {
            "without_signal": dict(self._without_signal),
            "lent_since": {capability: self._lent_since[capability] for capability in sorted(self.slots.lent)},
            "probing": sorted(self.slots.probing),
            "room": self._room(),
        }

    def _room(self) -> dict[str, Any]:
        """The settings that say how many draws may be pending, and how old."""
        slots, oversample = self.slots, self._oversample
        room = {"batch": slots.prompts_per_step, "staleness": slots.max_staleness, "oversample": oversample}
        return {**room, "weights": slots.weights}

    def restore(
        self,
        state: Mapping[str, Any],
        next_draw: int,
        pending: Sequence[tuple[Draw, Judged | None]],
        oldest_versions: Mapping[int, int] | None = None,
    ) -> None:
        """Goes on from a checkpoint, at the version that the controller was made with.

        Args:
            state: what `state_dict` gave.
            next_draw: the id of the next draw.
            pending: the draws that were neither trained nor rejected, in draw order, each with its group if it was
                admitted; the others are made now, so that the slow ones do not go missing. What settings that have
                changed since leave no room or time for is rejected as stale, and so are groups of another size.
            oldest_versions: of the tokens that there are already of those, by draw id.
        """
        self.next_draw = next_draw
        self._without_signal.update(state["without_signal"])
        lent = {name: since for name, since in state["lent_since"].items() if name in self.slots.weights}
        if lent.keys() == self.slots.weights.keys():  # those that they lent to are gone: another try
            self._without_signal.clear()
            lent = {}
        for capability, since in lent.items():
            self.slots.lend(capability)
            self._lent_since[capability] = since
        for capability in set(state["probing"]) & self.slots.lent:
            self.slots.probe(capability)
        # Under the same settings all has room, also what was drawn into a share that another has back since.
        changed = state.get("room") != self._room()
        for draw, judged in pending:
            oldest = judged.oldest_version if judged else (oldest_versions or {}).get(draw.draw_id, self.version)
            known = draw.domain in self.slots.weights
            whole = judged is None or len(judged.outcomes) == self.config.group_size
            fits = known and (not changed or self.slots.fits(draw, oldest, self.version, self._oversample))
            if not (fits and whole):
                self._reject(draw, "stale", judged)
                continue
            self.slots.take(draw)
            if judged is not None:
                self.slots.admit(judged)
            else:
                self.sampler.hold(draw.row)
                self._again.append(draw)
        self._reject_surplus()
        self._at_new_version()  # a checkpoint is taken before the generators hold it
