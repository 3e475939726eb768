"""The vLLM generator: one engine in one process, whose weights are updated while it runs.

A thread steps the engine; between two steps it takes what was asked of it: new requests, a weight update, an abort.
An update therefore lands between two tokens of the requests in flight. They are kept, their key-value cache is
computed anew under the new weights (or kept too), and each sampled token carries the policy version it was sampled
under. Weights come from a file in one call, or in parts from the trainer's GPU, between which the thread steps nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rollouts.dotted import load_dotted
from rollouts.env import converse
from rollouts.errors import EngineError, JudgeError
from rollouts.types import Prompt, Rollout, Sampling, Span

ADAPTER_ID = 1
"""vLLM's number of the one adapter that an engine may hold; its versions are told apart by `set_weight_version`."""
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""The largest ranks that vLLM can be started for."""
LAST_WORDS = 0.3
"""Seconds between the failure of an engine and the end of its process, in which those who wait are told the cause."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with; every field is vLLM's own, but `threads`, `lora_rank` and `keep_cache`.

    `logprobs_mode` is `processed_logprobs` for a policy (log-probabilities at the sampling temperature, which is what
    an importance ratio needs) and `raw_logprobs` for a judge (what the model itself says of a forced label).
    """

    dtype: str = "float32"
    max_model_len: int = 512
    max_num_seqs: int = 256
    tensor_parallel_size: int = 1
    enforce_eager: bool | None = None  # None: on a CPU
    kv_cache_gib: float | None = None  # None: what `gpu_memory_utilization` leaves; on a CPU `CPU_CACHE_GIB`
    gpu_memory_utilization: float = 0.85
    logprobs_mode: str = "processed_logprobs"
    seed: int = 0
    threads: int = 1
    lora_rank: int = 0  # of the adapters that it may be given; 0: none
    keep_cache: bool = False  # of requests in flight, over a weight update


CPU_CACHE_GIB = 0.25
"""Of an engine on a CPU whose settings do not say."""


@dataclass(frozen=True)
class Conversation:
    """A prompt, and the environment that answers the policy, by its dotted path; `search_path` is the driver's."""

    prompt: Prompt
    environment: str
    search_path: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """`n` completions of one tokenized prompt.

    `choices` forces the completion to be one of these strings; its log-probabilities are then those under the mask, in
    every mode of vLLM. `seed` fixes the sampling of this request. `scored`: the last so many tokens of the prompt are
    the completion, and only their log-probabilities are asked for. `begun`: as far as the completions are already, the
    first one first; each goes on where it stands.

    `draw_id`: the completions are rollouts `first`, `first + 1` … of that draw, under which `under_way` tells of them.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    seed: int | None = None
    choices: tuple[str, ...] = ()
    scored: int = 0
    conversation: Conversation | None = None
    begun: tuple[Rollout, ...] = ()
    draw_id: int | None = None
    first: int = 0


NOTHING = Rollout([], [], [], [], "", "")
"""Of a completion."""


class Generator:
    """Serves `generate` and `update_weights`; wrapped into a Ray actor by the pipeline, usable without Ray as well."""

    def __init__(
        self, model: str, settings: EngineSettings, version: int = 0, end: Callable[[], object] = lambda: None
    ) -> None:
        """Starts the engine on a checkpoint directory.

        Args:
            model: a Hugging Face model directory.
            settings: see `EngineSettings`.
            version: the policy version that these weights are.
            end: called once the engine has failed and those who wait were told; an actor ends its process.
        """
        self._engine, self._keep_cache = _start_engine(model, settings), settings.keep_cache
        self._end = end
        self._tokenizer = self._engine.get_tokenizer()
        self._commands: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._waiting: dict[str, tuple[Request, asyncio.AbstractEventLoop, asyncio.Future[list[Rollout]]]] = {}
        self._whole: dict[int, dict[int, Rollout]] = {}  # of draws that are gone on from: what waits for its others
        self._ids = itertools.count()
        self._tokens = 0
        self._busy_seconds = 0.0
        self._failure: BaseException | None = None
        self._adapter: Any = None  # a LoRARequest, while there is one
        self._parts: queue.Queue[Callable[[], None]] = queue.Queue()  # of an update that has started
        self._receiving: float | None = None  # since when, by time.monotonic
        self._set_version(version)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------ asked from outside

    async def ready(self) -> int:
        """Returns the process id once the engine has started.

        Raises:
            EngineError: the engine failed.
        """
        self._check()
        return os.getpid()

    async def generate(self, request: Request) -> list[Rollout]:
        """Samples the completions of one request.

        Raises:
            EngineError: the engine died.
        """
        if request.begun:
            return await self._go_on(request)
        if request.conversation is not None:
            return await self._converse(request, request.conversation)
        return (await self._sample([request]))[0]

    async def _go_on(self, request: Request) -> list[Rollout]:
        """The completions of a request of which some, or a part of them, are there already."""
        begun = [self._open(each, request.sampling) for each in request.begun[: request.n]]
        begun += [NOTHING] * (request.n - len(begun))
        left = [
            replace(
                request,
                n=1,
                seed=None if request.seed is None else request.seed + index,
                begun=(each,) if each.token_ids else (),
                first=request.first + index,
            )
            for index, each in enumerate(begun)
            if not each.finish_reason
        ]
        if request.conversation is not None:
            found = await asyncio.gather(*(self._converse(each, request.conversation) for each in left))
        else:
            found = await self._sample_rest(left, request.draw_id)
        others = iter(found)
        return [each if each.finish_reason else next(others)[0] for each in begun]

    async def _sample_rest(self, requests: Sequence[Request], draw_id: int | None) -> list[list[Rollout]]:
        """`_sample` for what is left of a draw, of which `under_way` tells until all is there."""
        if draw_id is None:
            return await self._sample(requests)
        self._whole[draw_id] = {}
        try:
            return await self._sample(requests)
        finally:
            del self._whole[draw_id]

    def _open(self, rollout: Rollout, sampling: Sampling) -> Rollout:
        """What of a completion can be gone on from: nothing where it is too long already, since the limit was higher.

        And none of its last tokens where these begin a stop text, which vLLM looks for in what is new alone.
        """
        if rollout.finish_reason:
            return rollout
        length = len(rollout.token_ids) if len(rollout.token_ids) < sampling.max_tokens else 0
        beginnings = tuple(stop[:end] for stop in sampling.stop for end in range(1, len(stop)))
        while length and beginnings and self._tokenizer.decode(rollout.token_ids[:length]).endswith(beginnings):
            length -= 1
        spans = [(start, min(end, length), version) for start, end, version in rollout.policy_versions]
        return replace(
            rollout,
            token_ids=rollout.token_ids[:length],
            loss_mask=rollout.loss_mask[:length],
            logprobs=rollout.logprobs[:length],
            policy_versions=[span for span in spans if span[0] < span[1]],
        )

    async def under_way(self) -> dict[int, dict[int, Rollout]]:
        """What there is by now of the draws that completions are under way of: draw id → rollout → as far as it is."""
        found: dict[int, dict[int, Rollout]] = await self._call(self._submit, self._so_far)
        return found

    async def _sample(self, requests: Sequence[Request]) -> list[list[Rollout]]:
        """Gives the engine all requests between the same two steps."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[list[Rollout]]] = [loop.create_future() for _ in requests]

        def add() -> None:
            for request, future in zip(requests, futures, strict=True):
                self._add(request, loop, future)

        self._submit(add)
        return await asyncio.gather(*futures)

    async def _converse(self, request: Request, conversation: Conversation) -> list[Rollout]:
        sys.path.extend(entry for entry in conversation.search_path if entry not in sys.path)
        reply = load_dotted(conversation.environment, "environment")

        async def complete(tokens: tuple[int, ...], sampling: Sampling, seed: int | None) -> Rollout:
            return (await self.generate(Request(tokens, sampling, seed=seed)))[0]

        return await asyncio.gather(
            *(
                converse(
                    conversation.prompt,
                    request.prompt_token_ids,
                    request.sampling,
                    None if request.seed is None else request.seed + index,
                    complete,
                    reply,
                    self._tokenizer,
                )
                for index in range(request.n)
            )
        )

    async def generate_counted(self, request: Request) -> tuple[int, list[Rollout]]:
        """`generate` with the token count apart: who waits for the count need not fetch the rollouts."""
        rollouts = await self.generate(request)
        return sum(len(rollout.token_ids) for rollout in rollouts), rollouts

    async def generate_all(self, requests: Sequence[Request]) -> list[list[Rollout]]:
        """`generate` for many requests at once, in their order; nothing of those whose environment fails."""
        if any(request.conversation for request in requests):
            found = await asyncio.gather(*map(self.generate, requests), return_exceptions=True)
            for each in found:
                if isinstance(each, BaseException) and not isinstance(each, JudgeError):
                    raise each
            return [[] if isinstance(each, BaseException) else each for each in found]
        return await self._sample(requests)

    async def update_weights(self, path: str, version: int) -> float:
        """Loads weights into the live engine; requests in flight go on under the new ones.

        Args:
            path: a safetensors file or a directory of them, with every parameter under its Hugging Face name; or a
                directory of a LoRA adapter, put on the weights that the engine holds. Must stay until this returns.
            version: the policy version that the tokens sampled from now on carry.

        Returns:
            Seconds during which no token was generated.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[float] = loop.create_future()
        self._submit(lambda: self._update(path, version, loop, future))
        return await future

    async def gpus(self) -> list[str]:
        """The GPU of each worker of the engine, as a UUID; "" for a CPU."""
        found: list[str] = await self._call(self._submit, lambda: self._engine.collective_rpc("gpu"))
        return found

    async def connect(self, backend: str, settings: dict[str, Any]) -> None:
        """Meets the trainer, to be given weights by one of vLLM's back ends; `settings` are its init info.

        Raises:
            EngineError: they could not meet; the engine goes on.
        """
        info = {"init_info": {"backend": backend, "settings": settings}}
        await self._call(
            self._submit, lambda: self._engine.collective_rpc("init_weight_transfer_engine", kwargs=info), fatal=False
        )

    async def start_weight_update(self, limit: float) -> None:
        """Begins an update in parts: generation stands still until `finish_weight_update`.

        Args:
            limit: seconds that the engine waits for each part; then it ends, since what it holds is of no version.
        """

        def start() -> None:
            self._receiving = time.monotonic()
            self._engine.collective_rpc("start_weight_update")

        await self._call(lambda command: self._submit(lambda: self._receive(command, limit)), start)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Loads a part: `update_info` is that of the connected back end."""
        info = {"update_info": update_info}
        await self._call(self._submit_part, lambda: self._engine.collective_rpc("update_weights", kwargs=info))

    async def finish_weight_update(self, version: int) -> float:
        """Ends an update in parts; returns for how many seconds no token was generated."""

        def finish() -> float:
            assert self._receiving is not None
            self._engine.collective_rpc("finish_weight_update")
            self._set_version(version)
            seconds, self._receiving = time.monotonic() - self._receiving, None
            return seconds

        found: float = await self._call(self._submit_part, finish)
        return found

    async def alive(self) -> None:
        """Returns once the engine's thread comes to it: never, where it hangs."""
        await self._call(self._submit, lambda: None)

    async def metrics(self) -> dict[str, float]:
        """Tokens generated and seconds spent generating since the start."""
        return {"tokens": float(self._tokens), "busy_seconds": self._busy_seconds}

    # ------------------------------------------------------------------------------------------- the engine's thread

    def _check(self) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine stopped: {self._failure!r}")

    def _submit(self, command: Callable[[], None]) -> None:
        self._check()
        self._commands.put(command)

    def _submit_part(self, command: Callable[[], None]) -> None:
        if self._failure is not None or self._receiving is None:
            raise EngineError(f"no weight update is under way: {self._failure!r}")
        self._parts.put(command)

    async def _call(
        self, submit: Callable[[Callable[[], None]], None], work: Callable[[], Any], fatal: bool = True
    ) -> Any:
        """What `work` returns, done by the engine's thread; where it fails the thread ends, unless it is not fatal."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def command() -> None:
            try:
                value = work()
            except Exception as error:
                loop.call_soon_threadsafe(_fail, future, EngineError(f"an engine failed: {error!r}"))
                if fatal:
                    raise
            else:
                loop.call_soon_threadsafe(_resolve, future, value)

        submit(command)
        return await future

    def _receive(self, start: Callable[[], None], limit: float) -> None:
        """Starts an update in parts and takes nothing but its parts until it is finished."""
        start()
        while self._receiving is not None:
            try:
                part = self._parts.get(timeout=limit)
            except queue.Empty:
                raise EngineError(f"waited {limit:.0f} s for weights, in the middle of an update") from None
            part()

    def _run(self) -> None:
        try:
            while True:
                block = not self._engine.has_unfinished_requests()
                while True:
                    try:
                        command = self._commands.get(block=block)
                    except queue.Empty:
                        break
                    if command is None:
                        return
                    command()
                    block = not self._engine.has_unfinished_requests() and self._commands.empty()
                    if block:
                        break
                if not self._engine.has_unfinished_requests():
                    continue
                started = time.monotonic()
                outputs = self._engine.step()
                self._busy_seconds += time.monotonic() - started
                self._finish([output for output in outputs if output.finished])
        except BaseException as failure:
            logging.getLogger(__name__).exception("the engine's thread died")
            self._failure = failure
            for _, loop, future in self._waiting.values():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_fail, future, EngineError(f"the engine stopped: {failure!r}"))
            time.sleep(LAST_WORDS)
            self._end()

    def _add(self, request: Request, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Rollout]]) -> None:
        request_id = str(next(self._ids))
        self._waiting[request_id] = (request, loop, future)
        try:
            begun = request.begun[0].token_ids if request.begun else []
            self._engine.add_request(
                request_id,
                # The salt keeps what a request has cached from those that come under a later version.
                {"prompt_token_ids": [*request.prompt_token_ids, *begun], "cache_salt": f"version {self._version}"},
                _sampling_params(request),
                lora_request=self._adapter,
            )
        except ValueError as error:  # a prompt longer than the context, say: this request's fault, not the engine's
            del self._waiting[request_id]
            loop.call_soon_threadsafe(_fail, future, error)

    def _finish(self, outputs: Sequence[Any]) -> None:
        """Hands over what a step has finished, waking each event loop once: a wake-up takes the interpreter's lock."""
        done: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[list[Rollout]], list[Rollout]]]] = {}
        for output in outputs:
            request, loop, future = self._waiting.pop(output.request_id)
            rollouts = [_scored(request, output)] if request.scored else self._rollouts(request, output)
            done.setdefault(loop, []).append((future, rollouts))
            if request.draw_id is not None and (whole := self._whole.get(request.draw_id)) is not None:
                whole[request.first] = rollouts[0]
        for loop, results in done.items():
            loop.call_soon_threadsafe(_resolve_all, results)

    def _rollouts(self, request: Request, output: Any) -> list[Rollout]:
        completions = sorted(output.outputs, key=lambda completion: completion.index)
        rollouts = [self._rollout(request, completion) for completion in completions]
        self._tokens += sum(len(completion.token_ids) for completion in completions)
        # In one call, as the engine stands still meanwhile.
        texts = self._tokenizer.batch_decode([each.token_ids for each in rollouts], skip_special_tokens=True)
        for rollout, text in zip(rollouts, texts, strict=True):
            rollout.text = text
        return rollouts

    def _rollout(self, request: Request, completion: Any) -> Rollout:
        """What vLLM says of a finished completion, without its text."""
        ids = list(completion.token_ids)
        spans: list[Span] = [(span.start, span.end, int(span.version)) for span in completion.weight_versions or ()]
        logprobs = _sampled_logprobs(completion.logprobs, ids)
        spans = spans or [(0, len(ids), self._version)]
        return _joined(request, ids, logprobs, spans, completion.finish_reason or "stop")

    def _so_far(self) -> dict[int, dict[int, Rollout]]:
        """See `under_way`. vLLM keeps a request's tokens where it makes its output, which is asked for at its end."""
        found = {draw_id: dict(rollouts) for draw_id, rollouts in self._whole.copy().items()}
        for state in self._engine.output_processor.request_states.values():
            request = self._waiting[state.external_req_id][0]
            if request.draw_id is None:
                continue
            rollouts = found.setdefault(request.draw_id, {})
            ids = list(state.detokenizer.output_token_ids)
            starts = [*((start, int(version)) for version, start in state.weight_version_starts), (len(ids), -1)]
            spans = [(start, end, version) for (start, version), (end, _) in pairwise(starts)]
            logprobs = _sampled_logprobs(state.logprobs_processor.logprobs, ids)
            rollouts[request.first + state.request_index] = _joined(request, ids, logprobs, spans, "")
            for completion in state.parent_req.output_aggregator if state.parent_req else ():
                if completion is not None:  # the request waits for its others
                    rollout = self._rollout(request, completion)
                    rollout.text = self._tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
                    rollouts[request.first + completion.index] = rollout
        return found

    def _update(self, path: str, version: int, loop: asyncio.AbstractEventLoop, future: asyncio.Future[float]) -> None:
        started = time.monotonic()
        try:
            if (Path(path) / "adapter_config.json").is_file():
                self._load_adapter(path)
            else:
                self._load_weights(path)
        except Exception as error:  # half-loaded weights: nothing that this engine says can be trusted any more
            loop.call_soon_threadsafe(_fail, future, EngineError(f"weight update {version} failed: {error!r}"))
            raise
        self._set_version(version)
        loop.call_soon_threadsafe(_resolve, future, time.monotonic() - started)

    def _load_weights(self, path: str) -> None:
        if self._adapter is not None:
            self._engine.remove_lora(ADAPTER_ID)
            self._adapter = None
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": {"path": path}})
        self._engine.collective_rpc("finish_weight_update")

    def _load_adapter(self, path: str) -> None:
        """Puts an adapter in the place of the one before, for requests in flight as well."""
        from vllm.lora.request import LoRARequest

        self._engine.add_lora(LoRARequest("policy", ADAPTER_ID, path, load_inplace=True))
        # Requests name the adapter without `load_inplace`, or each step would load it again.
        self._adapter = LoRARequest("policy", ADAPTER_ID, path)

    def _set_version(self, version: int) -> None:
        # Requests in flight are preempted, so that their cache is computed anew: kept, it mixes two versions, and no
        # version gives the log-probabilities that are stored with the tokens.
        if not self._keep_cache:
            self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.set_weight_version(str(version))
        self._version = version


def _start_engine(model: str, settings: EngineSettings) -> Any:
    """An in-process vLLM engine; in process, because a weight update between two steps then needs no hand-shake."""
    arguments = engine_arguments(model, settings)
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(arguments)


def engine_arguments(model: str, settings: EngineSettings) -> Any:
    """Gives vLLM's `EngineArgs`; also sets environment and threads, which vLLM reads when it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if settings.dtype == "float32":  # else Triton's attention rounds its factors to ten bits (TF32), silently
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")

    import torch
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    from rollouts.weight_transfer import BACKEND

    if current_platform.is_cpu():
        torch.set_num_threads(settings.threads)
    cache = settings.kv_cache_gib or (CPU_CACHE_GIB if current_platform.is_cpu() else None)
    size = {} if cache is None else {"kv_cache_memory_bytes": int(cache * 2**30)}
    if settings.lora_rank:
        most = next(rank for rank in ADAPTER_RANKS if rank >= settings.lora_rank)
        size |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": most}
    return EngineArgs(
        model=model,
        load_format="safetensors",  # never a pickle
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel_size,
        # Else vLLM would start actors of its own in the placement group that it finds itself in, which is full.
        distributed_executor_backend="mp" if settings.tensor_parallel_size > 1 else None,
        enforce_eager=current_platform.is_cpu() if settings.enforce_eager is None else settings.enforce_eager,
        # Else the tokens of the step that is computed while weights are updated would be told to be of the new version.
        async_scheduling=False if settings.keep_cache else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        logprobs_mode=settings.logprobs_mode,
        seed=settings.seed,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls="rollouts.weight_transfer.WorkerExtension",
        disable_log_stats=True,
        # On CPU a seeded request whose prompt is split over two steps kills the engine: it rewinds the request's
        # random generator by an offset that CPU generators do not have. So prompts are never split there.
        enable_chunked_prefill=not current_platform.is_cpu(),
        max_num_batched_tokens=max(8192, settings.max_model_len),
        # Only full blocks are shared between the requests of one prompt. On CPU the default is 128 tokens, in which
        # most prompts share nothing; 32 is the least that the CPU's attention takes.
        block_size=32 if current_platform.is_cpu() else None,
        **size,
    )


def _sampling_params(request: Request) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    sampling = request.sampling
    return SamplingParams(
        n=request.n,
        seed=request.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens - sum(len(each.token_ids) for each in request.begun),
        stop=list(sampling.stop) or None,
        detokenize=bool(sampling.stop),
        logprobs=0,
        prompt_logprobs=0 if request.scored else None,
        flat_logprobs=not request.scored,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(choice=list(request.choices)) if request.choices else None,
    )


def _joined(request: Request, ids: list[int], logprobs: list[float], spans: list[Span], finish_reason: str) -> Rollout:
    """A completion of a request, behind the part of it that was there before; without its text."""
    before = request.begun[0] if request.begun else NOTHING
    moved = [(start + len(before.token_ids), end + len(before.token_ids), version) for start, end, version in spans]
    if moved and before.policy_versions and before.policy_versions[-1][2] == moved[0][2]:
        moved[0] = (before.policy_versions[-1][0], *moved[0][1:])
        before = replace(before, policy_versions=before.policy_versions[:-1])
    return Rollout(
        token_ids=before.token_ids + ids,
        loss_mask=[True] * (len(before.token_ids) + len(ids)),
        logprobs=before.logprobs + logprobs,
        policy_versions=before.policy_versions + moved,
        finish_reason=finish_reason,
        text="",
    )


def _sampled_logprobs(logprobs: Any, token_ids: list[int]) -> list[float]:
    """The log-probability of each sampled token; asked for `logprobs=0`, vLLM's flat container holds no others."""
    assert logprobs.token_ids == token_ids
    return list(logprobs.logprobs)


def _scored(request: Request, output: Any) -> Rollout:
    """The last tokens of a prompt with the log-probabilities that the model gives them."""
    token_ids = list(request.prompt_token_ids[-request.scored :])
    positions = output.prompt_logprobs[-request.scored :]
    logprobs = [position[token].logprob for position, token in zip(positions, token_ids, strict=True)]
    return Rollout(token_ids, [True] * len(token_ids), logprobs, [], "stop", "")


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _resolve_all(results: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, value in results:
        _resolve(future, value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
