"""Tokens per second of our generator actor, over those of vLLM's own offline `LLM.generate`. Target: at least 0.95.

Both sides have the same requests, sampling parameters (seeds and the log-probability of each sampled token included),
engine arguments and one thread each, and sit in a Ray actor of their own; they take turns, and the one that waits uses
no core. So the tokens are the same. An engine is 8 % faster when it is given the same requests once more, probably
since oneDNN then has a kernel for every number of rows that occurs; so none is, and each call that is timed follows one
of the same actor that is not.

What remains different is on our side: requests go to the actor and rollouts come back through Ray, within our time;
each completion is decoded to text and made a `Rollout` with its log-probabilities and policy versions; a thread steps
the engine beside the actor's event loop. vLLM is timed inside its process and decodes nothing. Beside it: vLLM without
log-probabilities, from engines of its own. Engine start and warm-up are in `beside_seconds`.

Two processes with the same engine may differ by some per cent for as long as they live, and two repetitions alike by a
tenth. So both start anew after five repetitions, and there are as many as the prompts suffice for.

Budget: 8 minutes on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from posttrain import data
from posttrain.cluster import Cluster, engine_settings
from posttrain.config import load_config, resolve_model
from posttrain.progress import say
from rollouts.generator import EngineSettings, Request, _sampling_params, engine_arguments
from rollouts.renderer import Renderer
from tests.benchmarks.harness import Bench, Measurement, Options, column, medians, spread, spreads

REPETITIONS_PER_START = 5


class Offline:
    """vLLM's `LLM` with the arguments of our engine, in an actor."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        """Starts it."""
        arguments = engine_arguments(model, settings)
        from vllm import LLM

        self._llm = LLM.from_engine_args(arguments)

    def generate_all(self, requests: Sequence[Request], logprobs: bool = True) -> tuple[int, float]:
        """Tokens and seconds of one call; without `logprobs` vLLM reports none."""
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
        parameters = [_sampling_params(request) for request in requests]
        if not logprobs:
            for parameter in parameters:
                parameter.logprobs = None
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        return sum(len(each.token_ids) for output in outputs for each in output.outputs), seconds


class Arms:
    """Both engines, started when they are needed."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        """Reads the prompts."""
        self._bench, self._cluster, config = bench, cluster, cluster.config
        self._model, self._settings = resolve_model(config.model), engine_settings(config)
        self._sampling = config.rl.sampling.sampling()
        self._engines: dict[str, tuple[int, Any]] = {}  # by side: which start, and the actor
        renderer = Renderer(self._model)
        prompts = data.prompts(config, "prompts", renderer, self._sampling.max_tokens, say)
        self._prompts = [tuple(renderer.prompt_tokens(prompt.messages)) for prompt in prompts]

    def _requests(self, repetition: int) -> list[Request]:
        """Prompts that no other repetition has, so that no prefix is cached. The warm-up is repetition -1."""
        count, size = self._bench.settings["prompts"], self._bench.settings["group_size"]
        first = (repetition + 1) * count
        return [
            Request(self._prompts[row], self._sampling, size, seed=1_000_003 * row)
            for row in range(first, first + count)
        ]

    def _engine(self, side: str, repetition: int) -> Any:
        """The actor of an arm, which has just been at work; another one after each `REPETITIONS_PER_START`."""
        start = repetition // REPETITIONS_PER_START
        found, actor = self._engines.get(side, (None, None))
        if found != start:
            if actor is not None:
                ray.kill(actor)
            with self._bench.timed(f"start_{side}"):
                if side == "ours":
                    actor = self._cluster.generator(self._model, self._settings, self._cluster.placement.engines[0])
                    ray.get(actor.ready.remote())
                else:
                    actor = self._cluster.actor(Offline, self._model, self._settings)
                ray.get(actor.generate_all.remote(self._requests(-1)))
            self._engines[side] = start, actor
        with self._bench.timed("warm_up"):
            ray.get(actor.generate_all.remote(self._requests(-1)))
        return actor

    def ours(self, repetition: int) -> Measurement:
        """Through Ray, from the driver."""
        actor, requests = self._engine("ours", repetition), self._requests(repetition)
        started = time.perf_counter()
        groups = ray.get(actor.generate_all.remote(requests))
        seconds = time.perf_counter() - started
        return _measured(sum(len(rollout.token_ids) for group in groups for rollout in group), seconds)

    def vllm(self, repetition: int) -> Measurement:
        """`LLM.generate`."""
        return self._offline("vllm", repetition, logprobs=True)

    def vllm_without_logprobs(self, repetition: int) -> Measurement:
        """`LLM.generate` without log-probabilities."""
        return self._offline("vllm_without_logprobs", repetition, logprobs=False)

    def _offline(self, arm: str, repetition: int, logprobs: bool) -> Measurement:
        actor, requests = self._engine(arm, repetition), self._requests(repetition)
        return _measured(*ray.get(actor.generate_all.remote(requests, logprobs)))


def _measured(tokens: int, seconds: float) -> Measurement:
    return {"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1)}


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    config = load_config("tiny", ["generators.count=1"])
    settings: dict[str, Any] = {
        "model": config.model, "dtype": config.dtype, "threads": config.threads, "block_size": 32,
        "enforce_eager": config.generators.enforce_eager, "kv_cache_gib": config.generators.kv_cache_gib,
        "sampling": config.rl.sampling.model_dump(), "group_size": config.rl.group_size,
        "prompts": 4 if options.quick else 128, "repetitions": 1 if options.quick else 15,
        "repetitions_per_start": REPETITIONS_PER_START,
    }  # fmt: skip
    bench = Bench("generate", options, settings, (Path(__file__),))
    with Cluster(config) as cluster:
        arms = Arms(bench, cluster)
        measured = bench.interleave({"ours": arms.ours, "vllm": arms.vllm}, settings["repetitions"])
        alone = {"vllm_without_logprobs": arms.vllm_without_logprobs}
        measured |= bench.interleave(alone, settings["repetitions"])
    median = medians(measured, "tokens_per_second")
    pairs = zip(column(measured["ours"], "tokens_per_second"), column(measured["vllm"], "tokens_per_second"),
                strict=True)  # fmt: skip
    ratio = spread(ours / vllm for ours, vllm in pairs)
    return bench.line(
        ratio["median"], 0.95, "at least", unit="tokens/s of ours over vLLM's", by_repetition=ratio,
        ratio_of_medians=median["ours"] / median["vllm"],
        over_vllm_without_logprobs=median["ours"] / median["vllm_without_logprobs"],
        tokens_per_second=spreads(measured, "tokens_per_second"), tokens=spreads(measured, "tokens"),
    )  # fmt: skip
