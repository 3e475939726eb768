"""The pause of a weight update. Target: at most 50 ms for the tiny model with about 64 completions in flight.

The pause is what `Generator.update_weights` reports: loading (map the file, reload layer by layer, pack) and resetting
(preempt what is in flight, drop the cache). Publishing goes on beside generation, so it is told apart. `recompute` is
how much longer than a usual one the first engine step afterwards takes, which computes the cache anew;
`silence` is the pause and that step together.

`large`, on the same line, is a Llama of 500M parameters with random weights, nothing in flight. Its pause is at most
two copies of its bytes (torch's `copy_`, one thread) and vLLM's own repacking (`initialize_layerwise_reload`,
`load_weights`, `finalize_layerwise_reload` from tensors in memory). Both sides take turns in one process. Its weights
are written to a temporary directory and deleted. float32: engine, trainer, the file in shared memory and the two copies
have 2 GB each, so about 12 GB of memory are needed.

Budget: 6 minutes on two cores.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from posttrain import data
from posttrain.cluster import Cluster, engine_settings
from posttrain.config import Config, load_config, resolve_model
from posttrain.progress import say
from posttrain.trainer import PolicyTrainer
from rollouts.generator import EngineSettings, Generator, Request
from rollouts.renderer import Renderer
from rollouts.types import Sampling
from tests.benchmarks.harness import Bench, Measurement, Options, medians, spread, spreads

STEPS_BEFORE = 3
"""Engine steps that the requests in flight have had when the update comes: every prompt is in the cache."""


class TimedGenerator(Generator):
    """A generator that tells the parts of an update."""

    def __init__(self, model: str, settings: EngineSettings, version: int = 0) -> None:
        """Starts the engine."""
        self._reset_seconds = 0.0
        self._steps: list[float] = []
        self._warm: Callable[[], object] = int  # called when the requests have had their steps
        super().__init__(model, settings, version)
        step = self._engine.step

        def timed() -> Any:
            started = time.perf_counter()
            outputs = step()
            self._steps.append(time.perf_counter() - started)
            if len(self._steps) == STEPS_BEFORE:
                self._warm()
            return outputs

        self._engine.step = timed

    def _set_version(self, version: int) -> None:
        started = time.perf_counter()
        self._in_flight, self._steps_at_update = self._engine.get_num_unfinished_requests(), len(self._steps)
        super()._set_version(version)
        self._reset_seconds = time.perf_counter() - started

    async def update(self, path: str, version: int, requests: Sequence[Request]) -> Measurement:
        """Loads weights while requests are in flight; milliseconds."""
        self._steps.clear()
        loop, warm = asyncio.get_running_loop(), asyncio.Event()
        self._warm = lambda: loop.call_soon_threadsafe(warm.set)
        waiting = [asyncio.ensure_future(self.generate(request)) for request in requests]
        if requests:
            await warm.wait()
        pause = await self.update_weights(path, version)
        await asyncio.gather(*waiting)
        found = {
            "pause_ms": 1e3 * pause, "load_ms": 1e3 * (pause - self._reset_seconds),
            "reset_ms": 1e3 * self._reset_seconds, "in_flight": self._in_flight,
        }  # fmt: skip
        if requests:
            usual = statistics.median(self._steps[1 : self._steps_at_update])  # the first one computed the prompts
            first = self._steps[self._steps_at_update]
            found |= {"recompute_ms": 1e3 * (first - usual), "silence_ms": 1e3 * (pause + first)}
        return found

    async def reference(self, path: str) -> Measurement:
        """One copy of the bytes, and vLLM's own reload from memory, with nothing in flight; milliseconds."""
        import torch
        from safetensors.torch import load_file
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        copies = [torch.zeros_like(tensor) for tensor in tensors.values()]
        started = time.perf_counter()
        for copy, tensor in zip(copies, tensors.values(), strict=True):
            copy.copy_(tensor)
        memcpy = time.perf_counter() - started
        del copies

        def reload(worker: Any) -> float:
            transfer = worker.weight_transfer_engine
            started = time.perf_counter()
            initialize_layerwise_reload(transfer.model)
            transfer.model.load_weights(iter(tensors.items()))
            finalize_layerwise_reload(transfer.model, transfer.model_config)
            return time.perf_counter() - started

        loop = asyncio.get_running_loop()
        future: asyncio.Future[float] = loop.create_future()

        def command() -> None:
            loop.call_soon_threadsafe(future.set_result, self._engine.collective_rpc(reload)[0])

        self._submit(command)  # on the engine's thread, as the update is
        repack = await future
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return {"memcpy_ms": 1e3 * memcpy, "repack_ms": 1e3 * repack, "bytes": size}


class Arms:
    """A trainer and a generator on one model, started on first use."""

    def __init__(self, bench: Bench, config: Config, name: str, model: str, settings: EngineSettings) -> None:
        """Starts nothing."""
        self._bench, self._config, self._name, self._model, self._settings = bench, config, name, model, settings
        self._cluster, self._version = Cluster(config), 0
        self._stack = ExitStack()

    def __enter__(self) -> Arms:
        self._stack.enter_context(self._cluster)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @cached_property
    def _actors(self) -> tuple[Any, Any]:
        with self._bench.timed(f"start_{self._name}"):
            trainer = self._cluster.actor(PolicyTrainer, self._model, self._model, self._config)
            generator = self._cluster.actor(TimedGenerator, self._model, self._settings, 0, max_concurrency=4096)
            ray.get([trainer.ready.remote(), generator.ready.remote()])
        return trainer, generator

    @cached_property
    def _requests(self) -> list[Request]:
        """One completion each: prompts of the tiny world, eight at a time the same."""
        renderer = Renderer(self._model)
        prompts = data.prompts(self._config, "prompts", renderer, 96, say)
        sampling = Sampling(temperature=self._config.rl.sampling.temperature, max_tokens=96)
        return [
            Request(tuple(renderer.prompt_tokens(prompts[index // 8].messages)), sampling, seed=index)
            for index in range(self._bench.settings["in_flight"])
        ]

    def _published(self) -> tuple[str, float]:
        """The path of newly written weights, and the milliseconds that took."""
        trainer, _ = self._actors
        self._cluster.drop_weights(self._cluster.weights_path(self._version))
        self._version += 1
        path = self._cluster.weights_path(self._version)
        started = time.perf_counter()
        ray.get(trainer.publish.remote(path))
        return path, 1e3 * (time.perf_counter() - started)

    def in_flight(self, repetition: int) -> Measurement:
        """An update with requests in flight."""
        return self._update(self._requests)

    def idle(self, repetition: int) -> Measurement:
        """An update with none."""
        return self._update([])

    def _update(self, requests: Sequence[Request]) -> Measurement:
        path, publish = self._published()
        _, generator = self._actors
        if self._version == 1:  # the first one of a process compiles and allocates
            with self._bench.timed("warm_up"):
                ray.get(generator.update.remote(path, self._version, requests))
        found: Measurement = ray.get(generator.update.remote(path, self._version, requests))
        return {"publish_ms": publish, **found}

    def reference(self, repetition: int) -> Measurement:
        """What the target of the large model is made of."""
        path, _ = self._published()
        found: Measurement = ray.get(self._actors[1].reference.remote(path))
        return found


def build(directory: Path, shape: dict[str, Any], tokenizer: str) -> int:
    """Saves a Llama of a shape with random weights and the tiny model's tokenizer; gives its number of parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, tie_word_embeddings=False))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    config = load_config("tiny", ["generators.count=1"])
    large = {
        "vocab_size": 32000, "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 64,
    }  # fmt: skip
    if options.quick:
        large |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 4}  # fmt: skip
    settings = {
        "model": config.model, "dtype": config.dtype, "threads": config.threads,
        "in_flight": 8 if options.quick else 64, "steps_before": STEPS_BEFORE, "large": large, "large_dtype": "float32",
        "repetitions": 1 if options.quick else 15, "large_repetitions": 1 if options.quick else 5,
    }  # fmt: skip
    bench = Bench("sync", options, settings, (Path(__file__),))
    model = resolve_model(config.model)
    with Arms(bench, config, "tiny", model, engine_settings(config)) as arms:
        tiny = bench.interleave({"in_flight": arms.in_flight}, settings["repetitions"])["in_flight"]
    directory = Path(tempfile.mkdtemp(prefix="posttrain-bench-"))
    try:
        measured = _large(bench, config, directory, model)
    finally:
        shutil.rmtree(directory)
    pause, reference = measured["update"], measured["reference"]
    names = ("pause_ms", "publish_ms", "load_ms", "reset_ms", "recompute_ms", "silence_ms", "in_flight")
    parts = {name: spreads({"": tiny}, name)[""] for name in names}
    bound = 2 * medians({"": reference}, "memcpy_ms")[""] + medians({"": reference}, "repack_ms")[""]
    ratio = spread(
        one["pause_ms"] / (2 * other["memcpy_ms"] + other["repack_ms"])
        for one, other in zip(pause, reference, strict=True)
    )
    value = ratio["median"]
    line = bench.line(
        parts["pause_ms"]["median"], 50.0, "at most", unit="ms of pause, tiny model", **parts,
        large={
            "unit": "pause over twice memcpy plus repacking", "value": value, "target": 1.0, "holds": value <= 1.0,
            "by_repetition": ratio, "ratio_of_medians": medians({"": pause}, "pause_ms")[""] / bound,
            "bound_ms": bound, "bytes": reference[0]["bytes"],
            **{name: spreads({"": pause}, name)[""] for name in ("pause_ms", "publish_ms", "load_ms", "reset_ms")},
            **{name: spreads({"": reference}, name)[""] for name in ("memcpy_ms", "repack_ms")},
        },
    )  # fmt: skip
    return {**line, "holds": line["holds"] and line["large"]["holds"]}


def _large(bench: Bench, config: Config, directory: Path, tokenizer: str) -> dict[str, list[Measurement]]:
    """The measurements of the large model, which is built when the first of them is taken."""
    settings = engine_settings(config, max_num_seqs=8)
    with Arms(bench, config, "large", str(directory), settings) as arms:

        def built(work: Any) -> Any:
            def measure(repetition: int) -> Measurement:
                if not any(directory.iterdir()):
                    with bench.timed("build_large"):
                        say(f"sync: {build(directory, bench.settings['large'], tokenizer) / 1e6:.0f}M parameters")
                found: Measurement = work(repetition)
                return found

            return measure

        sides = {"update": built(arms.idle), "reference": built(arms.reference)}
        return bench.interleave(sides, bench.settings["large_repetitions"])
