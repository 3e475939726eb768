"""The real workers of the RL loop: Ray actors. Rollouts pass as references; the driver sees only their metadata."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from curricula.gate import rejection
from posttrain import data
from posttrain.adapters import is_adapter
from posttrain.balance import Balancer
from posttrain.cluster import ALIVE_SECONDS, GENERATE_TRIES, Cluster, GeneratorPool, answer, patiently, result_of
from posttrain.parity import Difference
from posttrain.progress import say
from posttrain.reward import judged_at_once, scorer_of
from posttrain.sender import Sent
from posttrain.slots import Draw, Judged
from posttrain.step_metrics import StepMetrics
from posttrain.trainer_ranks import TrainerRanks
from posttrain.transport import TRANSPORTS, choose
from posttrain.under_way import UnderWay
from posttrain.verifier import Verifier
from rollouts.errors import EngineError, HangingError, JudgeError, NonFiniteError
from rollouts.generator import Request
from rollouts.recorder import write_shard
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, RolloutGroup

JUDGE_TRIES = 3
TOLD = 5
"""Failures of judging that are told."""
DRIFT_SAMPLES, DRIFT_TOKENS = 4, 64
"""Completions of each prompt, and their largest length, by which engines and trainer are compared."""


class RayWorkers:
    """Generators of a pool, a verifier and a trainer."""

    def __init__(
        self, cluster: Cluster, pool: GeneratorPool, renderer: Renderer, model: str, reference: str, folder: Path
    ) -> None:
        """Starts the trainer and the verifier; the pool's generators are there already.

        Args:
            cluster: owns the actors.
            pool: whose first `rl.generators` engines make rollouts; the rest evaluate.
            renderer: of the model's chat template.
            model: the checkpoint that training starts from, or goes on from.
            reference: the checkpoint that a KL penalty holds the policy to.
            folder: where a batch is written that the trainer can make no step on.
        """
        self.config, self._folder = cluster.config, folder
        self._cluster, self._pool, self._renderer, self._model = cluster, pool, renderer, model
        rl = self.config.rl
        self.engines = list(range(rl.generators))
        self._sampling = rl.sampling.sampling()
        self._balancer = Balancer(rl.generators, self._sampling.max_tokens / 4)
        self._metrics: dict[Any, dict[str, float]] = {}  # by actor
        self._published = (model, 0)  # the newest file of weights, and its version
        self._evaluated = ""  # the file of the engines that only evaluate, which stays for those in their place
        self._publishing = asyncio.Lock()
        self._turns: AbstractAsyncContextManager[Any] = nullcontext()
        self._not_judged = 0  # draws
        self._begun: dict[int, RolloutGroup] = {}  # by draw id: as far as an earlier life of the run made it
        self._under_way: dict[int, UnderWay] = {}  # by draw id
        self._version = 0  # that the engines hold, or are about to
        self.sent: Sent | None = None  # in the last update
        self.trainer = TrainerRanks(cluster, model, reference)
        self._use("shm")
        self.graders = cluster.graders()
        load = partial(scorer_of, self.config, self.graders)
        self.verifier = cluster.actor(Verifier, load, sys.path, max_concurrency=judged_at_once(self.config))

    @property
    def has_spare_engines(self) -> bool:
        """Whether some engine of the pool makes no rollouts."""
        return len(self._pool.actors) > len(self.engines)

    @property
    def evaluators(self) -> list[int]:
        """The engines that make no rollouts; where there are none, those that do."""
        return list(range(len(self.engines), len(self._pool.actors))) or self.engines

    async def ready(self) -> None:
        """Waits until trainer and verifier have started."""
        timeout = self.config.generators.start_timeout
        await answer(self.verifier.ready.remote(), timeout, "the verifier to start")
        for grader in self.graders:
            await answer(grader.ready.remote(), timeout, "the grading model to start")
        await self.trainer.ready(timeout)
        wanted, lora = self.config.generators.weight_transfer, self.config.lora is not None
        engines = (answer(actor.gpus.remote(), timeout, "an engine's devices") for actor in self._rolling)
        self._use(choose(wanted, await self.trainer.gpus(), await asyncio.gather(*engines), lora))

    def _use(self, transport: str) -> None:
        limit = self.config.generators.request_timeout
        self.transport = TRANSPORTS[transport](self.trainer, self._newest, limit)

    @property
    def _rolling(self) -> list[Any]:
        """The engines that make rollouts."""
        return [self._pool.actors[engine] for engine in self.engines]

    async def begin(self, version: int, checkpoint: str | None) -> None:
        """Sets the version of the first weights, and the optimizer's state when a run is continued."""
        self._published, self._version = (self._model, version), version
        rl = self.config.rl
        if rl.max_concurrent_rollouts is not None:
            self._turns = asyncio.Semaphore(max(1, rl.max_concurrent_rollouts // rl.group_size) * len(self.engines))
        if checkpoint is not None:
            await self.trainer.load_optimizer(checkpoint, version)
        await self._pool.update(self._model, version)
        if self.config.lora is not None and not is_adapter(self._model):
            # Of an adapter that comes later, the requests that are in flight by then would know nothing.
            path = self._cluster.weights_path(version)
            self._published = (path, await self.trainer.publish(path))
            self._evaluated = path if self.has_spare_engines else ""
            await self._pool.update(path, version)
        self._pool.newest.update(dict.fromkeys(self.engines, self._newest))

    async def engine_metrics(self) -> dict[str, float]:
        """Tokens and busy seconds of the engines that make rollouts, those that died included, added up."""

        async def ask(actor: Any) -> None:
            with suppress(EngineError):  # what a dead one said last still counts
                self._metrics[actor] = await answer(actor.metrics.remote(), 60, "an engine's metrics")

        await asyncio.gather(*(ask(actor) for actor in self._rolling))
        return {key: sum(each[key] for each in self._metrics.values()) for key in ("tokens", "busy_seconds")}

    async def rollout(self, draw: Draw) -> Judged:
        """Generates and judges a group; a dead engine's draw is given to another, a failed judging is tried again.

        With `rl.early_stop` the first rollouts go before the others, which are made only if those have mixed outcomes.
        """
        rl = self.config.rl
        before, conversation = self._begun.pop(draw.draw_id, None), data.conversation(self.config, draw.prompt)
        begun = before.rollouts if before else []
        first = rl.early_stop or rl.group_size
        request = Request(
            # What has begun follows the prompt that it was sampled from: a template may render another by now, as one
            # that tells the date.
            tuple(before.prompt_token_ids) if before else self._renderer.prompt_tokens(draw.prompt.messages),
            self._sampling,
            first,
            # With updates in flight no seed repeats a rollout, and vLLM samples requests that have one each by itself.
            seed=self._seed(draw.draw_id) if rl.max_staleness == 0 else None,
            conversation=conversation,
            begun=tuple(begun[:first]),
            draw_id=draw.draw_id if conversation is None else None,
        )
        second = replace(
            request,
            n=rl.group_size - first,
            # Rollout i is sampled with the request's seed + i: the same as if all were of one request.
            seed=None if request.seed is None else request.seed + first,
            begun=tuple(begun[first:]),
            first=first,
        )
        under_way = self._under_way[draw.draw_id] = UnderWay(draw, request.prompt_token_ids, begun)
        try:
            judged = await self._make(draw, request, second, under_way)
        except asyncio.CancelledError:
            raise  # what there is of it may be asked for: by the checkpoint of a run that is asked to stop
        except BaseException:
            del self._under_way[draw.draw_id]
            raise
        del self._under_way[draw.draw_id]
        return judged

    async def _make(self, draw: Draw, request: Request, second: Request, under_way: UnderWay) -> Judged:
        async with self._turns:
            rollouts = await under_way.request(self._generate(request, draw.domain, sent=under_way.sent), 0)
            earlier = None
            if second.n:
                judged = await self._judge(draw, request, rollouts, None, second.n)
                if rejection(judged.outcomes):
                    return judged
                generating = self._generate(second, draw.domain, sent=under_way.sent)
                rollouts = await under_way.request(generating, second.first)
                earlier = judged.payload
        return await self._judge(draw, request, rollouts, earlier)

    def go_on(self, begun: Mapping[int, RolloutGroup]) -> None:
        """Groups of draws that are to be made, as far as they were at the checkpoint, by draw id."""
        self._begun.update(begun)

    def under_way(self, draw_ids: Collection[int]) -> Awaitable[list[RolloutGroup]]:
        """What there is of the groups of those draws that are under way when this is called.

        Of a conversation there is nothing before its end, nor of what an engine held that has died.
        """
        return self._so_far([self._under_way[draw_id] for draw_id in draw_ids if draw_id in self._under_way])

    async def _so_far(self, draws: Sequence[UnderWay]) -> list[RolloutGroup]:
        limit = self.config.generators.request_timeout

        async def ask(actor: Any) -> dict[int, dict[int, Rollout]]:
            try:
                found = await answer(actor.under_way.remote(), limit, "an engine to say what is under way")
            except EngineError:
                return {}
            return dict(found)

        sent = [frozenset(each.sent) for each in draws]
        engines = await asyncio.gather(*map(ask, self._rolling))
        return await asyncio.gather(*(each.group(engines, known) for each, known in zip(draws, sent, strict=True)))

    async def _judge(self, draw: Draw, request: Request, rollouts: Any, earlier: Any = None, others: int = 0) -> Judged:
        """What the verifier says of a group; `rollouts` and `earlier` are references, the arguments its own."""
        tokens, limits = list(request.prompt_token_ids), self.config.generators
        limit, asks = limits.request_timeout, judged_at_once(self.config) > 1
        # A model that is asked may hang, which fails the group: to wait for a turn, for the model, for its answer has a
        # limit each. An endpoint's client tries again by itself.
        rubric = self.config.rubric
        asked = 0 if rubric is None else sum(each.judge is not None for each in rubric.criteria.values())
        most = limit * (1 + asked) + limits.start_timeout if asks else limit
        tries = 1 if rubric and rubric.endpoint else JUDGE_TRIES
        for attempt in range(tries):
            until = time.time() + limit if asks else None
            judged, group = self.verifier.judge.options(num_returns=2).remote(
                draw, tokens, rollouts, earlier, others, until
            )
            try:
                what = f"the verifier to judge draw {draw.draw_id}"
                return replace(await answer(judged, most, what), payload=group)
            except JudgeError as error:
                if attempt == tries - 1:
                    self._not_judged += 1
                    if self._not_judged <= TOLD:
                        more = "; of others only the number is told, in summary.json" * (self._not_judged == TOLD)
                        say(f"draw {draw.draw_id} could not be judged and is rejected: {error}{more}")
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def keep(self, group: RolloutGroup) -> Any:
        """A reference to a group that was judged in an earlier life of the run."""
        return ray.put(group)

    def _seed(self, draw_id: int) -> int:
        """A request's seed: draws of one run differ, and a run with the same seed repeats them."""
        digest = hashlib.sha256(f"{self.config.seed}/{draw_id}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    async def drift(self, prompts: Sequence[Prompt]) -> float:
        """How far the engines' log-probabilities are from the trainer's: the mean absolute difference, in nats.

        The trainer looks at the tokens of `fresh` completions. To be called between a weight update and the next train
        step, when both hold the same version.
        """
        groups = await self.fresh(prompts)
        stored_N, now_N = await self.trainer.logprobs(groups)
        return Difference.of(stored_N, now_N).mean

    async def fresh(self, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """Some short completions of each prompt, apart from the run's, by each engine that makes rollouts."""
        sampling = replace(self._sampling, max_tokens=min(DRIFT_TOKENS, self._sampling.max_tokens))

        async def sample(index: int, prompt: Prompt, engine: int) -> RolloutGroup:
            tokens = self._renderer.prompt_tokens(prompt.messages)
            request = Request(tokens, sampling, DRIFT_SAMPLES, seed=self._seed(-1 - index))
            rollouts = await self._generate(request, prompt.domain, engine)
            return RolloutGroup(-1, prompt, list(tokens), await result_of(rollouts))

        return await asyncio.gather(
            *(sample(index, prompt, engine) for engine in self.engines for index, prompt in enumerate(prompts))
        )

    async def _generate(
        self, request: Request, capability: str, engine: int | None = None, sent: set[int] | None = None
    ) -> Any:
        """A reference to the rollouts of a request, from one engine or the one with the fewest tokens outstanding.

        `sent` is given the request's first rollout once an engine has it that can tell how far it is.
        """
        timeout = self.config.generators.request_timeout
        for attempt in range(GENERATE_TRIES):
            seat = self._balancer.take(capability, len(request.prompt_token_ids), request.n, engine)
            index, tokens = seat.engine, None
            actor = self._pool.actors[index]
            try:
                count, rollouts = actor.generate_counted.options(num_returns=2).remote(request)
                if sent is not None and request.draw_id is not None:  # of a conversation engines tell nothing
                    sent.add(request.first)
                what = "an engine to generate (generators.request_timeout)"
                # The count is small; the rollouts stay where they are.
                tokens = await patiently(count, actor, timeout, what, request.conversation is not None)
                return rollouts
            except HangingError:
                raise
            except EngineError as error:
                await self._pool.lost(index, actor, error, attempt)
            finally:
                self._balancer.give_back(seat, tokens)
        raise AssertionError("unreachable")

    async def train(self, batch: Sequence[Judged]) -> StepMetrics:
        """One train step on the groups of a batch.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; the batch is written to a file.
        """
        try:
            return await self.trainer.train_step([judged.payload for judged in batch])
        except FloatingPointError as error:
            path = self._folder / f"nonfinite-step-{self._version + 1:06d}.parquet"
            limit = self.config.generators.request_timeout
            groups = await asyncio.gather(*(answer(judged.payload, limit, "a group of the batch") for judged in batch))
            write_shard(path, groups)
            raise NonFiniteError(
                f"step {self._version + 1}: {getattr(error, 'cause', error)}; its batch is in {path}, as rollouts are "
                "written; look at its rewards and logprobs, or lower rl.learning_rate, and continue with --resume auto"
            ) from None

    async def update_weights(self, version: int) -> float:
        """Gives the trainer's weights to the engines that make rollouts; returns the longest pause in seconds.

        An engine that died is replaced first, and takes part if it died before. One that dies or hangs in the middle
        takes the engines of a group with it, which are then all replaced: those that live hold weights of no version.
        """
        old, self._version = self._published[0], version
        started = time.monotonic()
        await self._replace(await self._dead())
        group = dict(zip(self.engines, self._rolling, strict=True))
        try:
            if self.transport.engines != self._rolling:
                await self.transport.connect(self._rolling)
            self.sent = await self.transport.send(version)
            pause = self.sent.pause
        except EngineError as error:
            dead = {engine: actor for engine, actor in group.items() if actor in self.transport.failed}
            dead = dead or await self._dead(hung=True)
            if not dead:
                raise
            await self._replace(group if self.transport.one_fate else dead, error)
            pause = time.monotonic() - started
        if (self._published[0] != old or self._published[1] < version) and old != self._evaluated:
            self._cluster.drop_weights(old)
        return pause

    async def _dead(self, hung: bool = False) -> dict[int, Any]:
        """Those of the engines that make rollouts that have died; on demand also those that hang."""

        async def gone(engine: int, actor: Any) -> bool:
            said = actor.alive.remote() if hung else actor.ready.remote()
            try:
                await answer(said, ALIVE_SECONDS if hung else 60, f"generator {engine} to say that it lives")
            except EngineError:
                return True
            return False

        actors = dict(zip(self.engines, self._rolling, strict=True))
        found = await asyncio.gather(*(gone(engine, actor) for engine, actor in actors.items()))
        return {engine: actor for (engine, actor), dead in zip(actors.items(), found, strict=True) if dead}

    async def _replace(self, engines: Mapping[int, Any], why: EngineError | None = None) -> None:
        """Ends engines, if they have not died, and starts others in their place with the newest weights."""
        for actor in engines.values():
            ray.kill(actor)
        for engine, actor in engines.items():
            await self._pool.replace(engine, actor, why)

    async def _newest(self) -> tuple[str, int]:
        """A file of weights that are at least of the version that the engines are to hold, and their version.

        Where transports write none, an engine that starts again asks for one; the trainer may be a step ahead by then.
        Tokens of a version newer than the others' are no staler than theirs.
        """
        async with self._publishing:
            if self._published[1] < self._version:
                path = self._cluster.weights_path(self._version)
                self._published = (path, max(self._version, await self.trainer.publish(path)))
            return self._published

    async def update_evaluators(self) -> None:
        """Gives the evaluating engines the newest weights; they take no part in updates, but keep to one version."""
        if not self.has_spare_engines:
            return
        old, (self._evaluated, version) = self._evaluated, await self._newest()
        await self._pool.update(self._evaluated, version, self.evaluators)
        if old not in (self._evaluated, self._published[0]):
            self._cluster.drop_weights(old)
