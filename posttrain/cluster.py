"""The actors of a run and the Ray they live on: generators, a verifier, the trainer; all end with the run.

`RAY_ADDRESS` unset: a local Ray, started and ended here. Any other value: attach to it. (An http address means a Ray
job; the command line submits that before anything here is reached.)
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from posttrain.balance import spread
from posttrain.config import Config, resolve_model
from posttrain.placement import ROLES, Placement, Roles, Seat
from posttrain.progress import say
from posttrain.ray_job import TOKEN_HINT
from rollouts.errors import EngineError, HangingError, LateError, UserError, first_line
from rollouts.generator import EngineSettings, Generator, Request
from rollouts.types import Rollout

GRADER_RESTARTS = 3
GENERATE_TRIES = 3
"""Engines that a request is given to, each after the one before has died of it or with it."""
ALIVE_SECONDS = 30.0
"""Within which an engine's thread comes to a question, between two steps; one that does not hangs."""
LABEL_TOKENS = 16
"""Room for the label behind a prompt that is graded."""

Newest = Callable[[], Awaitable[tuple[str, int]]]
"""Gives the path of the newest weights and their version."""


def engine_settings(config: Config, **changes: Any) -> EngineSettings:
    """The engine's settings of a configuration, but for what is changed."""
    settings = EngineSettings(
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.generators.max_num_seqs,
        tensor_parallel_size=config.generators.tensor_parallel,
        enforce_eager=config.generators.enforce_eager,
        kv_cache_gib=config.generators.kv_cache_gib,
        gpu_memory_utilization=config.generators.gpu_memory_utilization,
        seed=config.seed,
        threads=config.threads,
        lora_rank=config.lora.rank if config.lora else 0,
        keep_cache=config.generators.keep_cache,
    )
    return replace(settings, **changes)


def readable(model: str, max_prompt_tokens: int) -> int:
    """The longest prompt that a judge may read: what its settings say, or less where its model knows no such place."""
    from transformers import AutoConfig

    known = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    return min(max_prompt_tokens, known - LABEL_TOKENS) if known else max_prompt_tokens


class Cluster:
    """A context manager that owns Ray and every actor that is started through it."""

    _current: ClassVar[Cluster | None] = None

    def __init__(self, config: Config, roles: Roles = ROLES["rl"]) -> None:
        """Nothing is started or reserved before the first actor is.

        Args:
            config: of the run.
            roles: who will be started here and sits on GPUs, where there are any.
        """
        self.config, self.placement = config, Placement.of(config, roles)
        self._group: PlacementGroup | None = None
        self._owned = False
        self._actors: list[Any] = []
        self._pool: GeneratorPool | None = None
        self._graders: list[Any] = []
        self._weights = Path(tempfile.gettempdir())
        shared = Path("/dev/shm")
        # A container has 64 MB of it where nobody asked for more.
        if shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= 2**30:
            self._weights = shared
        self._weights_prefix = f"posttrain-{uuid.uuid4().hex[:12]}"
        self._claim: IO[str] | None = None

    @classmethod
    def of(cls, config: Config, roles: Roles) -> AbstractContextManager[Cluster]:
        """The cluster of the run that is going on, which stays when the context ends, or a new one."""
        return nullcontext(cls._current) if cls._current is not None else cls(config, roles)

    def __enter__(self) -> Self:
        Cluster._current = self
        return self

    def _connect(self) -> None:
        """Starts Ray, or attaches to it, before the first actor: a run that has nothing left to do needs none."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # A call that fails fails both its references; Ray prints a traceback for the one that nobody asks for then.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        address = os.environ.get("RAY_ADDRESS")
        self._owned = True
        if address:
            _attach(address)
        else:
            _start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Cluster._current = None
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        with suppress(RayError):  # a node that does not answer must not hold up the end
            if elsewhere := self._drop(f"{self._weights_prefix}*"):  # `ray.get([])` would start Ray where it is not
                ray.get(elsewhere, timeout=10)
        if self._claim is not None:
            Path(self._claim.name).unlink(missing_ok=True)
            self._claim.close()
            self._claim = None
        if self._owned:
            ray.shutdown()

    def actor(self, kind: type, *arguments: Any, seat: Seat | None = None, **options: Any) -> Any:
        """Starts an actor of a plain class; it ends with the cluster.

        Args:
            kind: the class.
            arguments: of the class.
            seat: where it takes GPUs; without meaning where the cluster has none.
            options: of Ray.

        Raises:
            UserError: the GPUs of the run could not be reserved.
        """
        self._connect()
        threads = str(self.config.threads)
        handle = (
            ray.remote(kind)
            .options(
                num_cpus=0,
                num_gpus=seat.gpus if seat and self.gpus() else 0,
                scheduling_strategy=self.strategy(seat),
                runtime_env={
                    "env_vars": {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")}
                },
                **options,
            )
            .remote(*arguments)
        )
        self._actors.append(handle)
        return handle

    def end(self, actor: Any) -> None:
        """Ends one actor before the cluster does."""
        self._actors.remove(actor)
        ray.kill(actor)

    def host(self) -> str:
        """The address of this process's node in the cluster."""
        self._connect()
        found: str = ray.util.get_node_ip_address()
        return found

    def strategy(self, seat: Seat | None) -> Any:
        """Ray's name for a seat; the GPUs of all seats are reserved when the first is asked for.

        Raises:
            UserError: they could not be.
        """
        if seat is None or not self.gpus():
            return "DEFAULT"
        if self._group is None:
            self._group = self._reserve()
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=seat.bundle)

    def gpus(self) -> float:
        """GPUs of the cluster."""
        return self.resources().get("GPU", 0)

    @property
    def shares_gpus(self) -> bool:
        """Whether an engine sits on a GPU with others."""
        return self.config.generators.gpus_each < 1 and self.gpus() > 0

    def nodes(self) -> list[float]:
        """GPUs of each node of the cluster."""
        self._connect()
        return [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]

    def resources(self) -> dict[str, float]:
        """What the Ray cluster has, by its names: `CPU`, `GPU`, …"""
        self._connect()
        found: dict[str, float] = ray.cluster_resources()
        return found

    def _reserve(self) -> PlacementGroup:
        """The bundles of the run, near each other; waits for those that others use.

        Raises:
            UserError: the cluster does not have so many GPUs, or they were not free within `generators.start_timeout`.
        """
        self.check_gpus()
        limit = self.config.generators.start_timeout
        group = placement_group([{"GPU": size} for size in self.placement.bundles], strategy="PACK")
        if not group.wait(limit):
            free = ray.available_resources().get("GPU", 0)
            remove_placement_group(group)
            raise UserError(
                f"waited {limit:.0f} s (generators.start_timeout) for {self.placement.asked()}; the Ray cluster has "
                f"{self.gpus():g}, of which {free:g} are free; end what uses them, or ask for fewer"
            )
        nodes = set(placement_group_table(group)["bundles_to_node_id"].values())
        if len(nodes) > 1 and self.placement.trainer:
            remove_placement_group(group)
            raise UserError(
                f"{self.placement.asked()} lie on {len(nodes)} nodes, but engines read weights that the trainer writes "
                "to its node's memory; ask for as many as one node has free"
            )
        return group

    def check_gpus(self) -> None:
        """Raises UserError if the cluster has GPUs, but fewer than the run needs: who asks would wait for ever."""
        if self.gpus() and (lack := self.placement.lack(self.nodes())):
            raise UserError(f"{self.placement.asked()}, but {lack}")

    def generator(self, model: str, settings: EngineSettings, seat: Seat, version: int = 0, **options: Any) -> Any:
        """Starts a generator actor on a checkpoint; `options` are Ray's.

        Raises:
            UserError: the GPUs of the run could not be reserved.
        """
        end = partial(os._exit, 1)  # an engine that failed is then dead for Ray as well, and for whoever asks it
        return self.actor(Generator, model, settings, version, end, seat=seat, max_concurrency=4096, **options)

    def pool(self, model: str) -> GeneratorPool:
        """The run's pool of generators, started on first use and given the weights of `model` ever after."""
        if self._pool is None:
            self._pool = GeneratorPool(self, model)
        else:
            self._pool.load(model)
        return self._pool

    def graders(self) -> list[Any]:
        """The engines of the model that grades for `rubric`, started on first use; none where it has no model."""
        rubric = self.config.rubric
        if rubric is not None and rubric.model is not None and not self._graders:
            model = resolve_model(rubric.model)
            settings = engine_settings(
                self.config,
                logprobs_mode="raw_logprobs",
                tensor_parallel_size=rubric.tensor_parallel,
                max_model_len=readable(model, rubric.max_prompt_tokens) + LABEL_TOKENS,
                lora_rank=0,
            )
            # One that dies is started again by Ray: it holds no weights that are not the model's own.
            self._graders = [
                self.generator(model, settings, seat, max_restarts=GRADER_RESTARTS) for seat in self.placement.graders
            ]
        return self._graders

    def weights_path(self, version: int) -> str:
        """Where the weights of a version are published: in shared memory where the host has it.

        A file of them all, or a directory of an adapter.
        """
        self._claim_weights()
        suffix = "" if self.config.lora else ".safetensors"
        return str(self._weights / f"{self._weights_prefix}-v{version}{suffix}")

    def _claim_weights(self) -> None:
        """Locks a file for as long as this process lives, by which others see whose weights are whose. Deletes those
        that are no one's any more, since the run was killed: they would fill the host's memory.
        """
        if self._claim is not None:
            return
        self._claim = (self._weights / f".{self._weights_prefix}.lock").open("w")
        fcntl.flock(self._claim, fcntl.LOCK_EX)
        for path in self._weights.glob(".posttrain-*.lock"):
            with suppress(OSError), path.open() as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(self._weights, f"{path.stem.removeprefix('.')}*")
                path.unlink()

    def drop_weights(self, path: str) -> None:
        """Frees weights that no engine will load any more, if they were published here."""
        name = Path(path).name
        if name.startswith(self._weights_prefix):
            self._drop(name)

    def _drop(self, names: str) -> list[Any]:
        """Deletes weights: here, and on the other nodes by tasks, which it gives; the trainer may be on any of them."""
        _delete(self._weights, names)
        if not ray.is_initialized():
            return []
        here = ray.get_runtime_context().get_node_id()
        others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
        if not others:
            return []
        delete = ray.remote(_delete)
        seats = (NodeAffinitySchedulingStrategy(node, soft=False) for node in others)
        return [delete.options(num_cpus=0, scheduling_strategy=seat).remote(self._weights, names) for seat in seats]


def _delete(folder: Path, names: str) -> None:
    for path in folder.glob(names):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _start() -> None:
    """Starts Ray on this machine.

    Raises:
        UserError: twice it is not there within its limit, of 30 seconds, as where other work takes all cores.
    """
    for last in (False, True):
        try:
            ray.init(
                address="local",
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False,
                object_store_memory=512 * 2**20,
            )
        except Exception as error:  # that class itself, for what fails in a start
            why = first_line(error).rstrip(".")
            if last:
                hint = "see whether other work takes all cores or memory, or the disk of /tmp is full, and start again"
                raise UserError(f"Ray does not start on this machine: {why}; {hint}") from error
            say(f"Ray did not start: {why}; trying once more")
        else:
            return


def _attach(address: str) -> None:
    """Connects to a running cluster.

    Raises:
        UserError: nobody answers there, or the token is refused.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for ten minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UserError(f"RAY_ADDRESS={address}: cannot attach: {first_line(error)} {TOKEN_HINT}") from None


class GeneratorPool:
    """The engines of a run: started once, loaded with the checkpoint of each stage in turn."""

    def __init__(self, cluster: Cluster, model: str) -> None:
        """Starts `generators.count` engines on a checkpoint and waits until they answer.

        Raises:
            EngineError: an engine did not start within `generators.start_timeout`.
        """
        self._cluster, self.config = cluster, cluster.config
        self._settings = engine_settings(self.config)
        self._model = model  # whose weights the engines hold between stages
        self._replacing = asyncio.Lock()
        self._loads = itertools.count(-1, -1)  # versions of checkpoints between stages, apart from the policy's own
        self.actors: list[Any] = []
        for seat in cluster.placement.engines:
            self.actors.append(cluster.generator(model, self._settings, seat))
            if cluster.shares_gpus:  # vLLM counts memory that a neighbour takes during its start as its own
                run(self.ready())
        self.newest = dict.fromkeys(range(len(self.actors)), _given(model, 0))  # what one in an engine's place loads
        run(self.ready())

    async def ready(self) -> None:
        """Waits until every engine answers."""
        timeout = self.config.generators.start_timeout
        await asyncio.gather(
            *(answer(actor.ready.remote(), timeout, "a vLLM engine to start") for actor in self.actors)
        )

    def load(self, model: str) -> None:
        """Loads a checkpoint into every engine."""
        self._model = model
        run(self.update(model, next(self._loads)))

    async def update(self, path: str, version: int, engines: Sequence[int] | None = None) -> float:
        """Loads weights into engines (all of them by default), or into those that take the place of dead ones.

        Returns:
            The longest pause in seconds.
        """
        places = range(len(self.actors)) if engines is None else engines

        async def update(index: int) -> float:
            actor = self.actors[index]
            try:
                return await self._load(actor, path, version)
            except EngineError as error:
                await self.replace(index, actor, error)
                return 0.0

        self.newest.update(dict.fromkeys(places, _given(path, version)))
        return max(await asyncio.gather(*map(update, places)))

    async def _load(self, actor: Any, path: str, version: int) -> float:
        timeout = self.config.generators.request_timeout
        pause: float = await answer(
            actor.update_weights.remote(path, version), timeout, f"an engine to load version {version}"
        )
        return pause

    async def replace(self, index: int, dead: Any, why: EngineError | None = None) -> None:
        """Starts an engine in the place of one that died or hangs; it loads the newest weights before it rejoins.

        Whoever finds the engine dead calls this; all but the first wait for the same new one.
        """
        async with self._replacing:
            if self.actors[index] is not dead:
                return
            say(f"engine {index} died; starting another in its place" + (f": {_cause(why)}" if why else ""))
            ray.kill(dead)
            actor = self._cluster.generator(self._model, self._settings, self._cluster.placement.engines[index])
            timeout = self.config.generators.start_timeout
            await answer(actor.ready.remote(), timeout, "a vLLM engine to start again")
            await self._load(actor, *await self.newest[index]())
            self.actors[index] = actor

    async def lost(self, index: int, actor: Any, error: EngineError, attempt: int) -> None:
        """Replaces an engine that died with a request, unless this was the last of its tries, counted from 0.

        Raises:
            EngineError: it was.
        """
        if attempt == GENERATE_TRIES - 1:
            raise EngineError(f"generator {index} died {GENERATE_TRIES} times: {_cause(error)}") from error
        await self.replace(index, actor, error)

    async def generate(self, requests: Sequence[Request], engines: Sequence[int] | None = None) -> list[list[Rollout]]:
        """Completions of all requests, in order, spread by their expected tokens over engines (all of them by default).

        Nothing is known of the lengths of completions here; what differs is prompts and how many completions they have.

        Raises:
            EngineError: engines died of the same requests `GENERATE_TRIES` times.
        """
        engines = range(len(self.actors)) if engines is None else engines
        timeout = self.config.generators.request_timeout
        conversing = any(request.conversation is not None for request in requests)
        if conversing:  # late is then taken for hanging
            timeout *= max(1, len(requests) / 256)
        costs = [len(each.prompt_token_ids) + each.n * each.sampling.max_tokens / 4 for each in requests]
        places = spread(costs, len(engines))

        async def generate(index: int, part: Sequence[int]) -> list[list[Rollout]]:
            asked = [requests[place] for place in part]
            for attempt in range(GENERATE_TRIES):
                actor = self.actors[index]
                try:
                    answers = actor.generate_all.remote(asked)
                    found: list[list[Rollout]] = await patiently(
                        answers, actor, timeout, "an engine to generate", conversing
                    )
                    return found
                except HangingError:
                    raise
                except EngineError as error:
                    await self.lost(index, actor, error, attempt)
            raise AssertionError("unreachable")

        parts = await asyncio.gather(*map(generate, engines, places))
        results: list[list[Rollout]] = [[] for _ in requests]
        for part, found in zip(places, parts, strict=True):
            for index, rollouts in zip(part, found, strict=True):
                results[index] = rollouts
        return results


def _given(path: str, version: int) -> Newest:
    async def newest() -> tuple[str, int]:
        return path, version

    return newest


def _cause(error: EngineError) -> str:
    """What an engine died of, in one line; of what it said itself Ray makes a traceback."""
    return first_line(getattr(error, "cause", error))


async def answer(reference: Any, limit: float, what: str) -> Any:
    """Awaits an actor's answer.

    Raises:
        EngineError: the actor died.
        LateError: it did not answer within `limit` seconds.
    """
    try:
        return await asyncio.wait_for(result_of(reference), limit)
    except TimeoutError:
        raise LateError(f"waited {limit:.0f} s for {what}") from None
    except RayActorError as error:
        raise EngineError(f"an actor died while the run waited for {what}: {error}") from error


async def patiently(reference: Any, engine: Any, limit: float, what: str, conversing: bool) -> Any:
    """Awaits the answer of an engine that is at work. One that is late but lives is waited for: to end it would begin
    its answers anew, and favour short ones.

    Args:
        reference: of the answer.
        engine: the actor.
        limit: seconds after which it is asked whether it lives.
        what: is waited for.
        conversing: whether an environment takes part, which may hang while the engine lives.

    Raises:
        EngineError: the engine is dead or hangs.
        HangingError: it lives, and there is an environment.
    """
    while True:
        try:
            return await answer(reference, limit, what)
        except LateError as error:
            try:
                await answer(engine.alive.remote(), ALIVE_SECONDS, "an engine to say that it lives")
            except EngineError:
                raise error from None
            if conversing:
                raise HangingError(f"{error}; the engine lives, so it may be the environment that hangs") from error


async def result_of(reference: Any) -> Any:
    """An actor's answer as a coroutine, which asyncio's time limits need."""
    return await reference


def run(awaitable: Awaitable[Any]) -> Any:
    """Runs a coroutine from synchronous code."""

    async def wrapped() -> Any:
        return await awaitable

    return asyncio.run(wrapped())
