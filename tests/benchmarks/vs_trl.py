"""Seconds per RL step beside TRL's `GRPOTrainer`, for the same trained tokens. Target: at most 0.45 of TRL's.

Both train 16 prompts × 8 completions a step, sampled at the same temperature up to the same length, on prompts that
are drawn uniformly within the same shares of capabilities by the same sampler, judged by the same scorer, on the same
cores. Ours is the asynchronous loop with staleness 2: generator and trainer, one thread each. TRL generates with
Hugging Face's `generate` (its vLLM mode crashes on CPU), in turn with training; thread counts, bf16 and batch sizes
are tried first and the fastest is taken (`tried`).

Trained tokens: ours uses the advantages of `reinforce_pp`, with which no group is left out, because TRL leaves none out
either. So every sampled token of both is trained on, and the number differs by sampling only; seconds are divided
by it, and `value` is the ratio of seconds per trained token. `per_step` is the ratio of plain seconds per step. The
learning rate is 1e-12 on both sides, so that lengths stay the same. The first steps are not timed.

Budget: 15 minutes on two cores.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray

from curricula.quotas import allocate
from curricula.sampler import PromptSampler
from judges.scorer import load_scorer
from posttrain import data
from posttrain.cluster import Cluster, run
from posttrain.config import RLConfig, load_config, resolve_model
from posttrain.engines import prepare
from posttrain.progress import say
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout
from tests.benchmarks.harness import Bench, Measurement, Options, column, medians, spread, spreads
from tests.benchmarks.loop import FROZEN, Loop

UNFILTERED = ["rl.selection=uniform", "rl.advantage=reinforce_pp"]


class TRL:
    """TRL's trainer, in an actor."""

    def __init__(self, model: str, config: RLConfig, reward: str) -> None:
        """Loads the engines."""
        prepare()
        import trl

        self._trl, self._model, self._config, self._score = trl, model, config, load_scorer(reward)

    def measure(
        self, prompts: Sequence[Prompt], warm_up: int, threads: int, bf16: bool, batch_size: int
    ) -> Measurement:
        """Trains on the prompts in order, and times the steps after `warm_up`."""
        ends, tokens = self.train(prompts, threads, bf16, batch_size)
        return _measured(ends[-1] - ends[warm_up - 1], tokens[warm_up:])

    def train(
        self,
        prompts: Sequence[Prompt],
        threads: int,
        bf16: bool,
        batch_size: int,
        learning_rate: float | None = None,
        save: tuple[str, int] | None = None,
    ) -> tuple[list[float], list[int]]:
        """Trains on the prompts in order.

        Args:
            prompts: of all steps.
            threads: of torch.
            bf16: autocast.
            batch_size: rows of a pass.
            learning_rate: another one than the configuration's.
            save: a directory, and after how many steps the model is saved there each time, as `step-000010`.

        Returns:
            For each step, the seconds from the start to its end without those of saving, and its sampled tokens.
        """
        import datasets
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

        torch.set_num_threads(threads)
        rl, score = self._config, self._score
        tokens: list[int] = []  # of each step's generation
        ends: list[float] = []
        apart = 0.0  # seconds of saving

        def reward(completions: Any, completion_ids: Any, row: list[int], **_: Any) -> list[float]:
            tokens.append(sum(map(len, completion_ids)))
            rewards = []
            for completion, ids, index in zip(completions, completion_ids, row, strict=True):
                reason = "length" if len(ids) >= rl.sampling.max_tokens else "stop"
                nothing = [0.0] * len(ids)
                rollout = Rollout(list(ids), [True] * len(ids), nothing, [], reason, completion[0]["content"])
                rewards += [each.reward for each in score(prompts[index], [rollout])]
            return rewards

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                nonlocal apart
                ends.append(time.perf_counter() - started - apart)
                if save and len(ends) % save[1] == 0:
                    begun = time.perf_counter()
                    trainer.save_model(str(Path(save[0]) / f"step-{len(ends):06d}"))
                    apart += time.perf_counter() - begun

        size = rl.prompts_per_step * rl.group_size
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trl.GRPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(self._model, dtype=torch.float32),
                processing_class=AutoTokenizer.from_pretrained(self._model, padding_side="left"),
                reward_funcs=reward,
                train_dataset=datasets.Dataset.from_list(
                    [{"prompt": list(prompt.messages), "row": row} for row, prompt in enumerate(prompts)]
                ),
                args=self._trl.GRPOConfig(
                    output_dir=folder, use_cpu=True, bf16=bf16, gradient_checkpointing=False, report_to=[],
                    disable_tqdm=True, save_strategy="no", logging_strategy="no", shuffle_dataset=False,
                    per_device_train_batch_size=batch_size, gradient_accumulation_steps=size // batch_size,
                    num_generations=rl.group_size, max_completion_length=rl.sampling.max_tokens,
                    temperature=rl.sampling.temperature, loss_type="dapo", num_iterations=1, beta=0.0,
                    learning_rate=learning_rate or rl.learning_rate, lr_scheduler_type="constant",
                    adam_beta2=rl.adam_beta2,
                    max_steps=len(prompts) // rl.prompts_per_step,
                ),
                callbacks=[Clock()],
            )  # fmt: skip
            started = time.perf_counter()
            trainer.train()
        assert len(tokens) == len(ends), f"{len(tokens)} generations in {len(ends)} steps"
        return ends, tokens


def drawn(prompts: Sequence[Prompt], rl: RLConfig, steps: int, seed: int) -> list[Prompt]:
    """The prompts of so many steps, drawn as `rl.selection` says, each step with its share of every capability."""
    sampler = PromptSampler(prompts, rl.selection, rl.group_size, seed)
    weights = rl.quotas or dict.fromkeys(sampler.capabilities, 1.0)
    found = []
    for _ in range(steps):
        rows = [
            sampler.draw(capability, 0)
            for capability, count in allocate(rl.prompts_per_step, weights).items()
            for _ in range(count)
        ]
        found += [prompts[row] for row in rows]
        for row in rows:
            sampler.observe(row, None, 0)
    return found


def _measured(seconds: float, tokens: Sequence[float]) -> Measurement:
    return {
        "seconds_per_step": round(seconds / len(tokens), 4),
        "tokens_per_step": round(sum(tokens) / len(tokens), 1),
        "microseconds_per_token": round(1e6 * seconds / sum(tokens), 2),
    }


class Arms:
    """Both sides, started on first use."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        """Reads the prompts that TRL gets."""
        self._bench, self._cluster, self._config = bench, cluster, cluster.config
        self._settings, self._model = bench.settings, resolve_model(cluster.config.model)
        sampling = self._config.rl.sampling
        self._prompts = data.prompts(self._config, "prompts", Renderer(self._model), sampling.max_tokens, say)
        self.best: dict[str, Any] = {}

    @cached_property
    def _loop(self) -> Loop:
        with self._bench.timed("start_ours"):
            loop = Loop(self._cluster, self._config)
            run(loop.workers.ready())
        return loop

    @cached_property
    def _trl(self) -> Any:
        with self._bench.timed("start_trl"):
            actor = self._cluster.actor(TRL, self._model, self._config.rl, self._config.reward)
            prompts = drawn(self._prompts, self._config.rl, 2, 0)
            ray.get(actor.measure.remote(prompts, 1, **self._settings["trl"][0]))
        return actor

    def ours(self, repetition: int) -> Measurement:
        """The asynchronous loop."""
        warm_up, steps = self._settings["warm_up"], self._settings["steps"]
        found, _ = run(self._loop.window(self._config.rl, warm_up, steps))
        return _measured(found["seconds"], [found["tokens_per_step"]] * steps)

    def trl_with(self, setting: dict[str, Any], steps: int, repetition: int) -> Measurement:
        """TRL with one of its settings."""
        warm_up = self._settings["trl_warm_up"]
        prompts = drawn(self._prompts, self._config.rl, warm_up + steps, repetition)
        found: Measurement = ray.get(self._trl.measure.remote(prompts, warm_up, **setting))
        return found

    def trl(self, repetition: int) -> Measurement:
        """TRL with the fastest of its settings."""
        return self.trl_with(self.best, self._settings["steps"], repetition)


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    quick = ["rl.prompts_per_step=4", "rl.group_size=4", "rl.quotas=null"] if options.quick else []
    config = load_config("tiny", [*FROZEN, *UNFILTERED, *quick])
    size = config.rl.prompts_per_step * config.rl.group_size
    tried = [(threads, False, size // parts) for threads in (1, 2) for parts in (1, 4, 8)]
    tried += [(2, True, size // 4)]
    settings = {
        "model": config.model, "dtype": config.dtype, "threads_ours": "1 generator + 1 trainer",
        "rl": config.rl.model_dump(), "warm_up": 1 if options.quick else 4, "trl_warm_up": 1 if options.quick else 2,
        "steps": 3 if options.quick else 15, "steps_tried": 1 if options.quick else 4,
        "repetitions": 1 if options.quick else 5,
        "trl": [
            {"threads": threads, "bf16": bf16, "batch_size": batch}
            for threads, bf16, batch in (tried[:2] if options.quick else tried)
        ],
    }  # fmt: skip
    folder = Path(__file__).parent
    bench = Bench("vs_trl", options, settings, (folder / "vs_trl.py", folder / "loop.py"))
    with Cluster(config) as cluster:
        arms = Arms(bench, cluster)
        seconds = _tried(bench, arms)
        arms.best = settings["trl"][min(range(len(seconds)), key=seconds.__getitem__)]
        measured = bench.interleave({"ours": arms.ours, f"trl {arms.best}": arms.trl}, settings["repetitions"])
    ours, trl = measured.values()
    sides = {"ours": ours, "trl": trl}
    per_token, per_step = medians(sides, "microseconds_per_token"), medians(sides, "seconds_per_step")
    pairs = zip(column(ours, "microseconds_per_token"), column(trl, "microseconds_per_token"), strict=True)
    ratio = spread(one / other for one, other in pairs)
    return bench.line(
        ratio["median"], 0.45, "at most", unit="seconds per trained token, ours over TRL's", by_repetition=ratio,
        ratio_of_medians=per_token["ours"] / per_token["trl"], per_step=per_step["ours"] / per_step["trl"],
        trl_best=arms.best,
        tried=[{**each, "seconds_per_step": found} for each, found in zip(settings["trl"], seconds, strict=True)],
        **{name: spreads(sides, name) for name in ("seconds_per_step", "tokens_per_step", "microseconds_per_token")},
    )  # fmt: skip


def _tried(bench: Bench, arms: Arms) -> list[float]:
    """Seconds per step of each of TRL's settings, the better of two tries on the same prompts."""
    found: list[list[float]] = [[] for _ in bench.settings["trl"]]
    tries, steps = 1 if bench.options.quick else 2, bench.settings["steps_tried"]
    for repetition, (index, setting) in itertools.product(range(tries), enumerate(bench.settings["trl"])):
        work = partial(arms.trl_with, setting, steps)
        values = bench.measure(f"tried {setting}", repetition, work)
        assert values is not None
        found[index].append(values["seconds_per_step"])
    return [min(each) for each in found]
