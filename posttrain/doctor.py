"""`posttrain doctor`: what a long RL run depends on, tried out on the run's own model, prompts and engine.

One engine and one trainer are started as `posttrain rl` starts them. The engine samples completions of real prompts,
and the trainer computes the same tokens' log-probabilities by its own forward pass. Then the trainer's weights are
changed, published and loaded into the engine, and both are compared again. Beside that, what the run needs is counted.

Each check gives a `Finding`. One that fails names the cause: not guessed, where the mistake can be assumed and the
numbers computed anew under it (see `posttrain.parity`).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from posttrain import data
from posttrain.cluster import Cluster, answer, engine_settings, run
from posttrain.config import Config
from posttrain.parity import TOLERANCES, Difference, Hypothesis, explain, hypotheses, token_logprobs
from posttrain.placement import ROLES, Placement
from posttrain.progress import say
from posttrain.trainer import PolicyTrainer, check_model
from rollouts.errors import UserError
from rollouts.generator import CPU_CACHE_GIB, Request
from rollouts.renderer import Renderer
from rollouts.types import Message, RolloutGroup, Sampling

PROMPTS, SAMPLES = 32, 4
"""How many prompts of the run are sampled, and how often each."""

NOISE = 0.1
"""Size of the random change to the weights, as a share of each parameter's root mean square."""

MARK = "wqkz"
"""An answer that no chat template contains."""

GIB = 2**30

Load = Callable[[Any, str, int], Awaitable[Any]]
"""Loads published weights into an engine: the actor, the path, the version."""


@dataclass(frozen=True)
class Finding:
    """What a check found; `cause` says what to do where it failed."""

    name: str
    ok: bool
    detail: str
    cause: str = ""

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAILED':8}{self.name}: {self.detail}" + (
            f"; {self.cause}" if self.cause else ""
        )


class ExaminedTrainer(PolicyTrainer):
    """The trainer, with what only an examination asks of it."""

    def under(self, hypothesis: Hypothesis, *groups: RolloutGroup) -> torch.Tensor:
        """The policy's log-probability of every token of the groups in turn, if the hypothesis were so: [N].

        By a plain forward pass on one sequence at a time, without any layout of rows.
        """
        self.policy.train(hypothesis.dropout)
        found = []
        for group in groups:
            for rollout in group.rollouts:
                ids = torch.tensor([*group.prompt_token_ids, *rollout.token_ids], device=self.device)
                with torch.no_grad():
                    logits = self.policy.model(input_ids=ids[None], use_cache=False).logits[0]
                start = len(group.prompt_token_ids)
                found.append(
                    token_logprobs(
                        logits[start - 1 : -1], ids[start:], hypothesis.temperature, hypothesis.top_p, hypothesis.top_k
                    ).cpu()
                )
        self.policy.train()
        return torch.cat(found)

    def perturb(self, seed: int) -> None:
        """Adds seeded noise to every parameter that is trained."""
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            for parameter in filter(lambda parameter: parameter.requires_grad, self.policy.parameters()):
                size = parameter.square().mean().sqrt().clamp_min(1e-3)
                noise = torch.randn(parameter.shape, generator=generator, device=self.device, dtype=parameter.dtype)
                parameter.add_(NOISE * size * noise)


async def load_weights(engine: Any, path: str, version: int) -> None:
    """Loads published weights into an engine, as the run does."""
    await engine.update_weights.remote(path, version)


def examine(config: Config, model: str, folder: Path, load: Load = load_weights) -> list[Finding]:
    """Runs every check, with a line for each.

    Args:
        config: of the run.
        model: the checkpoint that RL would start from.
        folder: the run directory, which need not exist yet.
        load: gives an engine the published weights.

    Raises:
        UserError: settings, model or data are wrong.
    """
    found = []
    for finding in _checks(config, model, folder, load):
        say(str(finding))
        found.append(finding)
    return found


def _checks(config: Config, model: str, folder: Path, load: Load) -> Iterator[Finding]:
    check_model(model, config.rl)
    renderer = Renderer(model)
    prompts = data.prompts(config, "prompts", renderer, config.rl.sampling.max_tokens, say)
    data.check_quotas(config, prompts)
    parameters = count_parameters(model)
    with Cluster.of(config, ROLES["rl"]) as cluster:
        shared = Path(cluster.weights_path(0)).parent
        yield check_memory(needs(config, parameters), free_memory(), free_gpu_memory())
        yield check_disk(config, parameters, {"the run directory": folder, "published weights": shared})
        devices = check_devices(config, cluster)
        yield devices
        if not devices.ok:
            say("the checks that need an engine are left out")
            return
        engine = cluster.generator(model, engine_settings(config), cluster.placement.engines[0])
        if cluster.shares_gpus:
            run(answer(engine.ready.remote(), config.generators.start_timeout, "a vLLM engine to start"))
        alone = config.model_copy(update={"trainer": config.trainer.model_copy(update={"ranks": 1})})
        trainer = cluster.actor(ExaminedTrainer, model, model, alone, seat=cluster.placement.trainer[0])
        bench = Bench(config, engine, trainer)
        chosen = random.Random(config.seed).sample(prompts, min(PROMPTS, len(prompts)))
        groups = run(bench.sample([(prompt, renderer.prompt_tokens(prompt.messages)) for prompt in chosen]))
        yield run(check_logprobs(bench, groups))
        yield check_template(renderer.tokenizer, groups)
        yield check_end_of_turn(renderer.tokenizer, stop_tokens(model, renderer.tokenizer), groups)
        yield run(check_update(bench, groups, cluster.weights_path(1), load))


@dataclass(frozen=True)
class Bench:
    """An engine and a trainer that hold the same weights."""

    config: Config
    engine: Any
    trainer: Any

    async def ask(self, reference: Any, what: str) -> Any:
        """An actor's answer.

        Raises:
            EngineError: it died, or took longer than `generators.request_timeout`.
        """
        return await answer(reference, self.config.generators.request_timeout, what)

    async def sample(self, prompts: Sequence[tuple[Any, tuple[int, ...]]]) -> list[RolloutGroup]:
        """Completions of prompts (each with its tokens), drawn as the run draws them."""
        limit = self.config.generators.start_timeout
        await answer(self.engine.ready.remote(), limit, "a vLLM engine to start")
        await answer(self.trainer.ready.remote(), limit, "the trainer to start")
        sampling = self.config.rl.sampling.sampling()
        requests = [
            Request(tokens, sampling, SAMPLES, seed=self.config.seed + index)
            for index, (_, tokens) in enumerate(prompts)
        ]
        found = await self.ask(self.engine.generate_all.remote(requests), "an engine to generate")
        return [
            RolloutGroup(index, prompt, list(tokens), rollouts)
            for index, ((prompt, tokens), rollouts) in enumerate(zip(prompts, found, strict=True))
        ]

    async def under(self, hypothesis: Hypothesis, groups: Sequence[RolloutGroup]) -> torch.Tensor:
        """The trainer's log-probability of each token in turn, if the hypothesis were so: [N]."""
        found: torch.Tensor = await self.ask(self.trainer.under.remote(hypothesis, *groups), "the trainer")
        return found

    async def scored(self, groups: Sequence[RolloutGroup]) -> torch.Tensor:
        """The engine's log-probability of each token in turn, as part of a prompt: [N].

        At temperature 1 without top-p and top-k: vLLM processes only the log-probabilities of what it samples.
        """
        requests = [
            Request(
                (*group.prompt_token_ids, *rollout.token_ids), Sampling(max_tokens=1), scored=len(rollout.token_ids)
            )
            for group in groups
            for rollout in group.rollouts
        ]
        found = await self.ask(self.engine.generate_all.remote(requests), "an engine to score")
        return torch.tensor([value for (rollout,) in found for value in rollout.logprobs])


# ------------------------------------------------------------------------------------------------ log-probabilities


async def check_logprobs(bench: Bench, groups: Sequence[RolloutGroup]) -> Finding:
    """The log-probabilities that the engine stored are those that the trainer computes."""
    config, name = bench.config, "log-probabilities"
    stored_N, now_N = await bench.ask(bench.trainer.logprobs.remote(*groups), "the trainer")
    found, allowed = Difference.of(stored_N, now_N), TOLERANCES[config.dtype]
    detail = (
        f"engine and trainer differ by {found}, of {len(groups)} prompts (allowed for {config.dtype}: mean "
        f"{allowed.mean:g}, largest {allowed.largest:g})"
    )
    if found.within(allowed):
        return Finding(name, True, detail)
    in_turn_N = torch.tensor([value for group in groups for rollout in group.rollouts for value in rollout.logprobs])
    under = [(each.cause, await bench.under(each, groups)) for each in hypotheses(config.rl)]
    return Finding(name, False, detail, explain(in_turn_N, found, under, config.dtype))


async def check_update(bench: Bench, groups: Sequence[RolloutGroup], path: str, load: Load) -> Finding:
    """A weight update makes the engine's weights the trainer's: the same tokens, before and after."""
    plain = Hypothesis("")
    before_N, was_N = await bench.scored(groups), await bench.under(plain, groups)
    await bench.ask(bench.trainer.perturb.remote(bench.config.seed), "the trainer")
    await bench.ask(bench.trainer.publish.remote(path), "the trainer to publish its weights")
    await bench.ask(load(bench.engine, path, 1), "an engine to load weights")
    after_N, expected_N = await bench.scored(groups), await bench.under(plain, groups)
    return compare_update(before_N, after_N, was_N, expected_N, bench.config.dtype)


def compare_update(
    before_N: torch.Tensor, after_N: torch.Tensor, was_N: torch.Tensor, expected_N: torch.Tensor, dtype: str
) -> Finding:
    """Of the engine's log-probabilities before and after an update, and the trainer's: each [N].

    Means alone are judged: tokens that a disturbed model finds unlikely are rounded the more, and so is the mean where
    the noise moved it by more than a nat.
    """
    name, least = "weight update", 3 * TOLERANCES[dtype].mean
    left, should, did = (
        Difference.of(after_N, expected_N), Difference.of(was_N, expected_N), Difference.of(before_N, after_N)
    )  # fmt: skip
    allowed = TOLERANCES[dtype].mean * max(1.0, should.mean)
    detail = (
        f"weights changed by {NOISE:.0%} noise move the trainer's log-probabilities by {should.mean:.2g} and the "
        f"engine's by {did.mean:.2g} on average; afterwards they differ by {left} (allowed: mean {allowed:.2g})"
    )
    if not should.mean > least:
        return Finding(name, False, detail, "too small a change to tell new weights from old ones; look at the model")
    if left.mean <= allowed:
        return Finding(name, True, detail)
    if did.mean <= allowed:
        return Finding(name, False, detail, "stale weights: the update left the engine's weights as they were")
    cause = (
        "some of the engine's weights are not the trainer's: a kernel's packed copy is stale (tied output head, "
        "experts), parameters are published under other names, or an adapter (LoRA) is not merged"
    )
    return Finding(name, False, detail, cause)


# --------------------------------------------------------------------------------------------------- chat template


def rendered(tokenizer: Any, messages: Sequence[Message], said: str) -> list[int]:
    """Token ids of a conversation in which the assistant has answered."""
    whole = [*messages, {"role": "assistant", "content": said}]
    return list(tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"])


def check_template(tokenizer: Any, groups: Sequence[RolloutGroup]) -> Finding:
    """A conversation begins with the tokens that its prompt was sampled from; how many answers tokenize otherwise.

    The latter is a warning: the pipeline never tokenizes a sampled answer again.
    """
    name, other, total = "chat template", 0, 0
    for group in groups:
        prompt = group.prompt_token_ids
        for rollout in group.rollouts:
            whole = rendered(tokenizer, group.prompt.messages, rollout.text)
            if whole[: len(prompt)] != prompt:
                at = next(
                    (place for place, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole)
                )
                detail = (
                    f"prompt {group.prompt.prompt_id} and the conversation with its answer differ from token {at} on"
                )
                cause = (
                    "the template's generation prompt is not how it renders an assistant's turn; SFT and several turns "
                    "would see other tokens than RL samples from: mend chat_template.jinja"
                )
                return Finding(name, False, detail, cause)
            total += 1
            other += whole[len(prompt) :][: len(rollout.token_ids)] != rollout.token_ids
    detail = f"the prompts' tokens begin the whole conversations; {other} of {total} answers ({other / total:.1%}) "
    warning = "would tokenize otherwise than they were sampled" + (", which does no harm: none is" if other else "")
    return Finding(name, True, detail + warning)


def end_of_turn(tokenizer: Any, messages: Sequence[Message]) -> int | None:
    """The token that the chat template puts behind an assistant's answer; None if there is none."""
    whole = [*messages, {"role": "assistant", "content": MARK}]
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    ids = tokenizer(text.rpartition(MARK)[2], add_special_tokens=False)["input_ids"]
    return ids[0] if ids else None


def stop_tokens(model: str, tokenizer: Any) -> list[int]:
    """The tokens that vLLM stops at: the tokenizer's end of sequence, and those of the generation configuration."""
    from transformers import AutoConfig, GenerationConfig

    try:
        listed = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # there is no generation_config.json
        listed = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model)).eos_token_id
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    return sorted(found - {None})


def check_end_of_turn(tokenizer: Any, stops: Sequence[int], groups: Sequence[RolloutGroup]) -> Finding:
    """The engine stops where the chat template ends an assistant's turn."""
    name = "end of turn"
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    stopped = sum(not rollout.truncated for rollout in rollouts)
    detail = f"{stopped} of {len(rollouts)} completions stopped"
    token = end_of_turn(tokenizer, groups[0].prompt.messages)
    if token is None:
        return Finding(
            name, False, detail, "the chat template puts nothing behind an assistant's turn, so none can end"
        )
    ends, names = tokenizer.convert_ids_to_tokens(token), tokenizer.convert_ids_to_tokens(list(stops))
    if token not in stops:
        cause = (
            f"the chat template ends a turn with {ends} (token {token}), the engine stops at "
            f"{', '.join(names) or 'none'}: "
            "set eos_token in tokenizer_config.json and eos_token_id in generation_config.json to the former"
        )
        return Finding(name, False, detail, cause)
    return Finding(name, True, f"{detail}; a turn ends with {ends}, where the engine stops")


# ---------------------------------------------------------------------------------------------- memory and devices


def count_parameters(model: str) -> int:
    """Parameters of a model directory, tied ones once; loads no weight."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return sum(parameter.numel() for parameter in empty.parameters())


@dataclass(frozen=True)
class Needs:
    """Bytes that a run needs, activations left out."""

    trainer: int  # of a rank: policy, gradients and AdamW's two moments, in float32, and the reference
    ranks: int
    engine: int  # weights and KV cache of each device of an engine
    engines: int  # devices
    share: float | None  # of a GPU's memory that an engine takes instead, where its KV cache has no size
    published: int  # weights in shared memory: a new version beside the old one
    gpus: Sequence[tuple[int, int]]  # ranks and engines on each, where there are any
    limit: float  # share of a GPU's memory that a rank may take

    @property
    def memory(self) -> int:
        """Of a host without GPUs."""
        return self.trainer * self.ranks + self.engine * self.engines + self.published


def needs(config: Config, parameters: int) -> Needs:
    """What a run of a model with so many parameters needs."""
    engines = config.generators
    weights = parameters * (4 if config.dtype == "float32" else 2)
    copies = 1 if config.lora else 5 if config.rl.kl_coef else 4
    cache = int((engines.kv_cache_gib or CPU_CACHE_GIB) * GIB)
    return Needs(
        trainer=parameters * 4 * copies // (config.trainer.ranks if config.trainer.parallelism == "fsdp" else 1),
        ranks=config.trainer.ranks,
        engine=weights // engines.tensor_parallel + cache,
        engines=engines.count * engines.tensor_parallel,
        share=engines.gpu_memory_utilization if engines.kv_cache_gib is None else None,
        published=weights * 2,
        gpus=Placement.of(config, ROLES["rl"]).shares(),
        limit=config.trainer.gpus,
    )


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory, in bytes."""

    free: int
    total: int

    @classmethod
    def all(cls) -> list[Self]:
        """Those of this host."""
        return [cls(*torch.cuda.mem_get_info(index)) for index in range(torch.cuda.device_count())]


def free_gpu_memory() -> list[Gpu]:
    """The GPUs of this host, if any."""
    return Gpu.all() if torch.cuda.is_available() else []


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: of the machine, or of its container where that is less."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    except (OSError, ValueError, KeyError):  # no cgroup, or no limit (`max`)
        return free
    return min(free, limit - used + int(cached))


def check_memory(needed: Needs, memory: int, gpus: Sequence[Gpu]) -> Finding:
    """There is memory for trainer, engines and published weights: on each GPU, or in RAM without any."""
    name = "memory"
    parts = (
        f"{needed.ranks} x {_gib(needed.trainer)} of the trainer, {needed.engines} x {_gib(needed.engine)} of engines, "
        f"published weights {_gib(needed.published)}; without activations"
    )
    host = needed.published if gpus else needed.memory
    detail = f"RAM needed {_gib(host)}, free {_gib(memory)} ({parts})"
    short = [] if host <= memory else ["RAM"]
    for index, (gpu, (ranks, engines)) in enumerate(zip(gpus, needed.gpus, strict=False)):
        engine = max(needed.engine, int((needed.share or 0) * gpu.total))
        wanted = ranks * needed.trainer + engines * engine
        who = f"{ranks} of the trainer and {engines} of engines"
        detail += f"; GPU {index} ({who}) needed {_gib(wanted)}, free {_gib(gpu.free)}"
        if ranks and needed.trainer > needed.limit * gpu.total:
            short.append(f"the trainer's {needed.limit:g} of GPU {index} (trainer.gpus)")
        elif wanted > gpu.free:
            short.append(f"GPU {index}")
    cause = (
        f"too little on {', '.join(short)}: free it, use fewer engines (generators.count), a smaller "
        "generators.kv_cache_gib, more trainer.ranks or a smaller model"
    )
    return Finding(name, not short, detail, cause if short else "")


def check_disk(config: Config, parameters: int, places: dict[str, Path]) -> Finding:
    """There is room for the checkpoints that are kept and, where weights are published, for two versions of them."""
    kept = config.rl.checkpoints_kept + config.sft.save_total_limit + 2  # DPO's, and one that is being written
    wanted = dict(zip(places, (kept * parameters * 12 + parameters * 4, parameters * 8), strict=True))
    detail, short = [], []
    for what, place in places.items():
        there = next(path for path in (place.resolve(), *place.resolve().parents) if path.exists())
        free = shutil.disk_usage(there).free
        detail.append(f"{what} ({there}): needed {_gib(wanted[what])}, free {_gib(free)}")
        short += [str(there)] * (wanted[what] > free)
    what_to_do = "free some, name another --run, or lower rl.checkpoints_kept"
    cause = f"too little room on {', '.join(short)}: {what_to_do}" if short else ""
    return Finding("disk", not short, f"{'; '.join(detail)}; {kept} checkpoints", cause)


def check_devices(config: Config, cluster: Cluster) -> Finding:
    """Ray answers, and has GPUs for the bundles of the run, or none at all."""
    name, address = "devices", os.environ.get("RAY_ADDRESS")
    try:
        resources = cluster.resources()
    except UserError as error:
        return Finding(name, False, f"RAY_ADDRESS={address}", str(error))
    ray = f"Ray at {address} answers" if address else "a local Ray"
    return compare_devices(config, ray, cluster.nodes(), int(resources.get("CPU", 0)))


def compare_devices(config: Config, ray: str, nodes: Sequence[float], cores: int) -> Finding:
    """Of the devices that a cluster has, the GPUs node by node, with those that the run asks for."""
    name, engines, placement = "devices", config.generators, Placement.of(config, ROLES["rl"])
    if not any(nodes):
        threads = config.threads * (engines.count + config.trainer.ranks)
        busy = " (more threads than cores halve the speed of all)" if threads > cores else ""
        return Finding(name, True, f"{ray}, no GPU; {threads} threads of engines and trainer on {cores} cores{busy}")
    lack = placement.lack(nodes)
    return Finding(name, not lack, f"{ray}, {sum(nodes):g} GPUs; needed {placement.asked()}", lack)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
