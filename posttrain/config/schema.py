"""Every setting of the pipeline: its name, meaning, unit, default and range, once, beneath the field.

The defaults suit a model of about 1B parameters on a GPU; a preset states only what differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from posttrain.config.algorithms import ALGORITHMS
from rollouts.types import Sampling

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: dict[str, str] = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""Their names in transformers, whose `constant` would leave out the warm-up."""
PairKind = Literal["format", "run_on", "empty", "repetition", "refusal", "near_miss"]
GROUP_RELATIVE = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
"""The advantage estimators that compare the rollouts of a group with each other."""


def conflict(key: str, value: object, why: str) -> PydanticCustomError:
    """An error of the value of `key` (relative to the model that raises it) that another setting causes."""
    return PydanticCustomError("conflict", "{why}", {"key": key, "value": value, "why": why})


class Section(BaseModel):
    """What every section has in common: unknown keys are errors, values are not coerced, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # so that documentation can be generated from the schema
    )


class DataSource(Section):
    """Where rows come from and how their fields are called there."""

    path: str = ""
    """A JSONL or Parquet file, a directory of them, a function of your own that returns rows (`my_module:rows`), a
    `datasets` name (`owner/name` or `owner/name/config`, either with
    `:split`), or `tiny:sft`, `tiny:rl`, `tiny:heldout`. Relative to the current directory. Empty: not given, which is
    an error in the stages that read it."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Our field's name → the row's, where they differ, e.g. `{prompt: question}`. Ours are `messages` (chat turns) or
    `prompt` (text of the user's turn), `completion` (demonstrations), `system`, `answer`, `tests`, `format` (`[left,
    right]`), `capability`, `difficulty`, `instruction`, `images`. `''`: the row's field of our name means something
    else."""
    constants: dict[str, Any] = Field(default_factory=dict)
    """Our field's name → a value that every row has, e.g. `{capability: math}`."""
    answer_pattern: str | None = None
    """A regular expression whose group 1 is the answer within the answer's field, e.g. `'#### (.+)'`. null: all of
    it."""
    system: str | None = None
    """A system instruction put before rows that have none. null: none."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows. null: all."""
    window: int | None = Field(default=None, ge=1)
    """Of `data.prompts`: hold at most so many prompts, and read the next rows as these are drawn, for a source that is
    too large, or has no end: a function that goes on yielding, or a `datasets` name, which is streamed then. Each
    capability has its share of the window (see `rl.quotas`; without quotas, those of the first so many prompts). With
    `uniform` and `dynamic_sampling` each prompt is drawn once, in the order of the source; with the others it stays as
    long as it is worth drawing. A source that ends is read from its start again. A resumed run goes on with the prompts
    that it held and behind the row where it was, so a function should yield the same rows when it is called again.
    Everything but RL takes the first so many prompts. null: all rows are read at once."""

    @field_validator("answer_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if groups < 1:
                raise ValueError("has no group; put the answer's part in brackets, as in '#### (.+)'")
        return pattern

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        for key in self.constants:
            if key in self.fields:
                raise conflict(f"constants.{key}", self.constants[key], "is also in 'fields'; keep one of the two")
        return self


class InstructionConfig(Section):
    """A system instruction of a pool."""

    id: str = Field(min_length=1)
    """Its name in the ledger, the recorded rollouts and the evaluations."""
    text: str = Field(min_length=1)
    """What it says."""
    format: list[str] | None = None
    """The delimiters `[left, right]` that it asks the answer in. null: the row's own."""
    train: bool = True
    """false: is asked in evaluations only."""

    @field_validator("format")
    @classmethod
    def _left_and_right(cls, texts: list[str] | None) -> list[str] | None:
        if texts is not None and (len(texts) != 2 or not texts[0]):
            raise ValueError("expected the two texts [left, right]")
        return texts


class InstructionsConfig(Section):
    """Pools of system instructions. Each draw of a prompt is asked under one of its capability's, at random, instead of
    its own. A held-out prompt is asked under any of them, those with `train: false` included; evaluations tell the two
    apart.
    """

    path: str = ""
    """A file, directory, function or `datasets` name as in `data.prompts.path`, with a row for each instruction:
    `capability`, `id`, `text` and, where wanted, `format` and `train`; or `tiny:instructions`."""
    pools: dict[str, list[InstructionConfig]] = Field(default_factory=dict)
    """Capability → its instructions, in the place of `path`. A capability without any keeps its rows' own."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.path and self.pools:
            raise conflict("pools", sorted(self.pools), "data.instructions.path is set too; keep one of the two")
        for capability, pool in self.pools.items():
            names = [instruction.id for instruction in pool]
            for index, name in enumerate(names):
                if name in names[:index]:
                    raise conflict(f"pools.{capability}.{index}.id", name, "is in the pool already")
            if not any(instruction.train for instruction in pool):
                why = "no instruction but held-out ones (train: false); expected one to train with"
                raise conflict(f"pools.{capability}", names, why)
        return self


class DataConfig(Section):
    """The sets of rows."""

    demonstrations: DataSource = DataSource()
    """What `prune` judges and `sft` learns from."""
    prompts: DataSource = DataSource()
    """The verifiable prompts of `rl`."""
    heldout: DataSource = DataSource()
    """The prompts of every evaluation; none of them may be in the two others."""
    instructions: InstructionsConfig = InstructionsConfig()
    """System instructions that prompts are asked under, by capability. Not given: their own."""

    @model_validator(mode="after")
    def _only_prompts_are_streamed(self) -> Self:
        for name, source in (("demonstrations", self.demonstrations), ("heldout", self.heldout)):
            if source.window is not None:
                why = f"only data.prompts has a window; data.{name}.limit takes the first so many rows"
                raise conflict(f"{name}.window", source.window, why)
        return self


class GeneratorsConfig(Section):
    """The pool of vLLM engines."""

    count: int = Field(default=2, ge=1)
    """Engines in the pool, each in an actor of its own."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """KV cache on each GPU of an engine, in GiB; saves the profiling at start. null: what `gpu_memory_utilization`
    leaves of a GPU; 0.25 on a CPU."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that an engine takes; without meaning on a CPU. On a shared GPU at most `gpus`."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that an engine's weights are spread over, all on one node."""
    gpus: float | None = Field(default=None, gt=0)
    """GPUs of each engine, where the cluster has any. Below 1 it shares one with others, which `tensor_parallel: 1`
    allows. null: `tensor_parallel`."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Completions that an engine works on at a time. More of them make each step more efficient; but after a weight
    update the key-value cache of all of them is computed anew."""
    keep_cache: bool = False
    """Keep the key-value cache of rollouts in flight over a weight update, as PipelineRL does
    (https://arxiv.org/abs/2509.19128), rather than compute it anew. Importance ratios stay exact, since
    log-probabilities are stored as sampled; but those of a rollout's later tokens are of no version alone."""
    enforce_eager: bool | None = None
    """Run without compiling: starts in seconds instead of minutes, generates more slowly. null: on a CPU."""
    weight_transfer: Literal["auto", "shm", "nccl", "ipc"] = "auto"
    """How RL's engines get new weights. `shm`: a file in shared memory. `nccl`: a broadcast between GPUs. `ipc`: read
    from a GPU that they share with the trainer. `auto`: `ipc` or `nccl` where GPUs allow it. LoRA adapters always go as
    files."""
    start_timeout: float = Field(default=300.0, gt=0)
    """Seconds until an engine that does not start is an error."""
    request_timeout: float = Field(default=600.0, gt=0)
    """Seconds after which an engine that has not answered is asked whether it lives. One that does is waited for, up to
    `rl.step_timeout`; another counts as dead: its draws are re-issued, it is restarted."""

    @property
    def gpus_each(self) -> float:
        """GPUs of each engine, where the cluster has any."""
        return self.tensor_parallel if self.gpus is None else self.gpus

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        whole = self.tensor_parallel
        if self.gpus_each != whole and (self.gpus_each > 1 or whole > 1):
            below = " or less" if whole == 1 else ""
            why = f"an engine with generators.tensor_parallel={whole} takes so many GPUs; expected {whole}{below}"
            raise conflict("gpus", self.gpus, why)
        if self.gpus_each < 1 and self.gpu_memory_utilization > self.gpus_each:
            why = f"an engine has generators.gpus={self.gpus:g} of a GPU that it shares; expected at most so much"
            raise conflict("gpu_memory_utilization", self.gpu_memory_utilization, why)
        return self


class TrainerConfig(Section):
    """The processes that train the policy in RL."""

    ranks: int = Field(default=1, ge=1)
    """Processes that train together."""
    gpus: float = Field(default=1, gt=0, le=1)
    """GPUs of each rank, where the cluster has any. Below 1 it shares one with an engine, whose `generators.gpus` is
    below 1 too, and takes at most this share of its memory."""
    parallelism: Literal["ddp", "fsdp"] = "fsdp"
    """Of several ranks. `ddp`: each holds the whole policy. `fsdp`: each holds a part of parameters, gradients and
    optimizer."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of forward and backward pass; parameters and optimizer are float32. null: the top-level `dtype`."""
    gradient_checkpointing: bool = True
    """Compute activations and logits again in the backward pass: saves memory, costs about a third of the speed."""
    compile: bool | None = None
    """Fuse the small operations of layers and output head by torch.compile, which takes minutes at the first step.
    null: on a GPU."""


class EndpointConfig(Section):
    """A judge behind an OpenAI-compatible endpoint."""

    base_url: str
    """Such as `http://127.0.0.1:8000/v1`."""
    model: str
    """Its name there."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that has the key, if one is needed."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once, of each process that asks."""
    retries: int = Field(default=5, ge=0)
    """Further tries after a time-out, a refused connection, 429, 5xx, or an answer without a label."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that a try may take."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in tokens; a model that reasons first needs room for that."""
    samples: int = Field(default=1, ge=1)
    """Answers to each question, that vote, if more than half of them come: their shares make a score, and more than
    half have to give a preference."""


class PreferenceConfig(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint that compares answers."""

    template: str | None = None
    """Path of a text file with the question to it, with `{prompt}`, `{first}` and `{second}`, and where wanted
    `{fence}`, a line around an answer that no answer can foretell. It is to be answered as the built-in one, with the
    object `{"better": "A"}`, `B` or `tie`. null: the built-in one."""


class JudgeConfig(Section):
    """The model that judges demonstrations."""

    model: str = ""
    """A model directory, hub name or `tiny:judge`. Not given: the value of the top-level `model`."""
    template: str | None = None
    """Path of a text file with the judge's prompt, with `{prompt}` and `{response}`, and where wanted `{fence}`, a line
    around the answer that the answer cannot foretell; or `tiny:judge-template`. null: the built-in one."""
    max_prompt_tokens: int = Field(default=4096, ge=1)
    """Longest prompt that the judge reads, in tokens. Of a longer one the beginning of the answer is judged; where the
    question alone is longer, nothing is."""
    count: int | None = Field(default=None, ge=1)
    """Engines that judge, on the GPUs that the pool and the trainer use later. null: `generators.count`."""
    tensor_parallel: int | None = Field(default=None, ge=1)
    """GPUs of each of them. null: `generators.tensor_parallel`."""
    endpoint: EndpointConfig | None = None
    """Ask this one instead of loading `model`. null: load it."""
    panel: list[str] = Field(default_factory=list)
    """More models, directories or hub names, that judge after the first; scores are means over all, and a
    demonstration that one of them cannot judge is not judged."""
    cache: str | None = None
    """File of the verdicts given so far, which runs may share. null: `sft/verdicts.sqlite` of the run."""
    max_failed: float = Field(default=0.1, ge=0, le=1)
    """Largest share of the demonstrations that may stay without a verdict, by any judge of the panel; with more, the
    stage ends."""


class SandboxConfig(Section):
    """What a program that a model wrote may use up where a reward runs it."""

    cpu_seconds: float = Field(default=1.0, gt=0)
    """CPU time of a program for all inputs of its tests together; of a script for each."""
    wall_seconds: float = Field(default=20.0, gt=0)
    """Time that it may take, waiting included: so long that a busy machine changes no verdict."""
    memory_mib: int = Field(default=256, ge=64)
    """Its address space."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.wall_seconds < self.cpu_seconds:
            why = f"expected at least sandbox.cpu_seconds={self.cpu_seconds:g}"
            raise conflict("wall_seconds", self.wall_seconds, why)
        return self


class PruneConfig(Section):
    """Which demonstrations are dropped as easy."""

    enabled: bool = True
    """false: keep every demonstration and judge none."""
    keep_ratio: float = Field(default=0.5, gt=0, le=1)
    """Largest share of the demonstrations that is kept, in each capability; the easiest go first. The recipe has two
    settings: half, and for its largest model all but the hardest twentieth (0.05)."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Keep those whose score is at least this, instead of a share. Scores go from 0, easy, to 1, hard. null: a
    share."""
    method: Literal["judge", "random", "longest"] = "judge"
    """`random` and `longest` keep as many as `judge` would, by chance or by length: what judging is worth is what it is
    better than they are."""
    near_duplicates: float | None = Field(default=0.9, gt=0, le=1)
    """Demonstrations that share this much (Jaccard, of three-word sequences) with an earlier one are dropped before
    they are judged. null: none is."""
    pass_rates: str | None = None
    """A scan by `posttrain passk` of the same questions; the report then says how well the judge's scores agree with
    it. null: it does not."""


class CriterionConfig(Section):
    """One criterion of a rubric: `reward` or `judge`."""

    reward: str | None = None
    """A built-in verifier, or a function of your own, as under the top-level `reward`."""
    judge: str | None = None
    """What a model is asked about an answer, such as `The answer is polite.`: an endpoint's grades it from 0 to 10, the
    grade of `rubric.model` is the probability with which it says yes."""
    template: str | None = None
    """A text file with the question to that model, with `{criterion}`, `{prompt}` and `{response}`, and where wanted
    `{fence}`, a line around the answer that the answer cannot foretell; or `tiny:chat-template`. null: the built-in
    one."""
    weight: float = Field(default=1.0, gt=0)
    """In the reward, relative to the other criteria."""
    pass_grade: float = Field(default=0.7, ge=0, le=1)
    """Grade, from 0 to 1, from which on the criterion is met."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.reward is None) == (self.judge is None):
            raise conflict("judge", self.judge, "expected either `reward` or `judge`")
        return self


class RubricConfig(Section):
    """A reward of several criteria, in the place of the top-level `reward`."""

    capabilities: list[str] | None = None
    """Whose prompts have it; the others keep `reward`. null: all."""

    criteria: dict[str, CriterionConfig] = Field(min_length=1)
    """By their names, under which they appear in a rollout's `breakdown`."""
    outcome: str | None = None
    """The criterion that says whether a rollout is solved. null: the reward does, by `threshold`."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Reward, from 0 to 1, from which on a rollout is solved where `outcome` names no criterion."""
    endpoint: EndpointConfig | None = None
    """The model that grades, behind an address."""
    model: str | None = None
    """The model that grades, on engines of the run's own: a directory, hub name or `tiny:chat-judge`."""
    count: int = Field(default=1, ge=1)
    """Engines of `model`, beside those of the pool."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of each of them."""
    max_prompt_tokens: int = Field(default=4096, ge=1)
    """Longest prompt that `model` reads, in tokens; what is longer counts as not judged, and its group is rejected."""
    length_penalty: float = Field(default=0.1, ge=0)
    """Taken off a grade for each doubling of an answer's length beyond the median of its group, since judges favour
    long answers. Must be 0 with `rl.early_stop`, which has the first answers of a group judged alone."""

    @property
    def asks(self) -> bool:
        """Whether a model grades any criterion."""
        return any(each.judge is not None for each in self.criteria.values())

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.outcome is not None and self.outcome not in self.criteria:
            raise conflict("outcome", self.outcome, f"expected one of the criteria: {', '.join(self.criteria)}")
        if self.asks and self.endpoint is None and self.model is None:
            raise conflict("endpoint", None, "a criterion with `judge` needs it, or `model`")
        if self.endpoint is not None and self.model is not None:
            raise conflict("model", self.model, "expected either `endpoint` or `model`")
        return self


class LoRAConfig(Section):
    """Low-rank adapters (https://arxiv.org/abs/2106.09685), by peft; without dropout, which would part the trainer's
    log-probabilities from the engines'.
    """

    rank: int = Field(default=16, ge=1, le=512)
    """Of the two matrices that are trained for each layer."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; `all-linear`: every linear one but the output head."""


class SFTConfig(Section):
    """Light supervised fine-tuning on what `prune` kept; the names are those of TRL's `SFTConfig`."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the optimizer steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the kept rows."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Rows per device and forward pass."""
    gradient_accumulation_steps: int = Field(default=8, ge=1)
    """Forward passes per optimizer step."""
    max_length: int = Field(default=512, ge=2)
    """Longest row, in tokens; longer ones are left out, and counted."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of metrics."""
    save_steps: int = Field(default=200, ge=1)
    """Optimizer steps between two checkpoints; the last step always makes one."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are deleted."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the trainer of SFT and DPO: nothing else runs beside it, so it may have every core."""


class SamplingConfig(Section):
    """How completions are drawn; names, ranges and meanings are vLLM's `SamplingParams`."""

    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together have this probability; 1: all."""
    top_k: int = Field(default=-1, ge=-1)
    """Only so many likeliest tokens; -1: all."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest completion, in tokens; one that reaches it counts as unsolved."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end a completion, beside the end of the turn."""

    @field_validator("top_k")
    @classmethod
    def _all_or_some(cls, top_k: int) -> int:
        if top_k == 0:
            raise ValueError("expected -1 (all tokens) or at least 1")
        return top_k

    def sampling(self) -> Sampling:
        """The same as the type that generators take."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, tuple(self.stop))


class CurriculumConfig(Section):
    """Which prompts RL's selection prefers."""

    band_start: list[float] = Field(default_factory=lambda: [0.2, 0.95], min_length=2, max_length=2)
    """Lowest and highest pass rate that `signal` aims at, at the first step."""
    band_end: list[float] = Field(default_factory=lambda: [0.05, 0.95], min_length=2, max_length=2)
    """The same at the last step; in between the band moves evenly. Lower rates are harder prompts."""
    novelty: float = Field(default=1.0, ge=0)
    """How much `signal` prefers prompts that it drew seldom: after n groups a prompt is worth (1 + n)^-novelty of what
    a new one is, but against prompts never drawn at least a quarter. 0: those likeliest to teach are drawn again and
    again, and the policy sees few different ones."""
    explore_until: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, from its start, in which `signal` tries more prompts that were never drawn: what is found then
    teaches for longest."""
    easy_floor: float = Field(default=0.05, ge=0, lt=1)
    """Share of the draws by `signal` that goes to easy prompts, against forgetting, and against completions that grow
    longer and longer. Easy are expected pass rates from 0.8 on, up to where groups are mixed with a chance below 0.35
    (from about 0.95, of 8 rollouts): such prompts count as solved, and have `retest_share`."""
    retest_share: float = Field(default=0.03, ge=0, lt=1)
    """Largest share of the draws by `signal` that goes to prompts that were found solved or unsolved and are due to be
    tested again."""
    retest_after: int = Field(default=10, ge=1)
    """Policy versions until such a prompt is due; each test that changes nothing doubles the wait, to at most 16
    times the first."""
    easy_pool: float = Field(default=0.1, ge=0, le=1)
    """Share of the draws by `pools` that goes to prompts with a rate of at least 0.8 in their last group."""
    hard_pool: float = Field(default=0.1, ge=0, le=1)
    """Share of the draws by `pools` that goes to prompts with a rate of at most 0.2 in their last group."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key in ("band_start", "band_end"):
            low, high = getattr(self, key)
            if not 0 <= low < high <= 1:
                raise conflict(key, [low, high], "expected two pass rates from 0 to 1, the lower one first")
        if self.easy_floor + self.retest_share >= 1:
            why = f"with retest_share={self.retest_share:g} none are left for others; expected less than 1 together"
            raise conflict("easy_floor", self.easy_floor, why)
        if self.easy_pool + self.hard_pool > 1:
            why = f"with hard_pool={self.hard_pool:g} it is more than all draws; expected at most 1 together"
            raise conflict("easy_pool", self.easy_pool, why)
        return self


class RLConfig(Section):
    """Asynchronous online RL."""

    steps: int = Field(default=200, ge=1)
    """Train steps; each makes one policy version."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Groups in a batch."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts of each prompt; at least 2 for the group-relative advantages."""
    early_stop: int | None = Field(default=None, ge=2)
    """So many rollouts of a group, the first by index, are made and judged before the others; where their outcomes are
    all alike the others are not made and the group is rejected. Saves (G - early_stop) / G of the tokens of hopeless
    groups, G = `group_size`, and loses the same share of the groups with one rollout solved: it favours medium prompts.
    Groups that are trained on take two rounds. null: all rollouts are made at once, and no group is given up."""
    max_staleness: int = Field(default=1, ge=0)
    """Most policy versions between the weights that sampled a token and those trained on it; a hard bound.
    0: synchronous, on-policy and reproducible."""
    oversample: float = Field(default=1.0, ge=1)
    """Groups drawn for each one needed, with `max_staleness: 0`; the surplus, last in draw order, is recorded as
    rejected."""
    order: Literal["fifo", "ready"] = "fifo"
    """`fifo`: groups are trained as they were drawn, which favours no length. `ready`: as they finish, within the
    staleness bound."""
    generators: int = Field(default=1, ge=1)
    """How many engines of the pool make rollouts; the others evaluate. Not given: all but one, and one of one."""
    max_concurrent_rollouts: int | None = Field(default=None, ge=1)
    """Most completions under way in an engine, in whole groups and at least one; further draws wait their turn. Fewer
    mean less to compute anew at each weight update, and fresher tokens; too few leave the engine half empty. null: as
    many as are drawn."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Schedule = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's term beside the root of the second moment: parameters with smaller gradients hardly move."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    algorithm: Literal["grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "aipo"] | None = None
    """Sets `advantage`, `loss`, `loss_aggregation`, the clips and `overlong_share` as its paper has them, but what is
    stated beside it; see `posttrain/config/algorithms.py`. null: the defaults, which are DAPO's without the
    overlong penalty."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"] = "grpo"
    """`grpo`: rewards less the group's mean, over its standard deviation. `dr_grpo`: not divided. `rloo`: less the mean
    of the others. `reinforce_pp`: standardized over the whole batch; `reinforce_pp_baseline`: centred within the
    group, scaled over the batch."""
    loss: Literal["clip", "gspo", "cispo", "aipo"] = "clip"
    """`clip`: PPO's, token by token. `gspo`: by rollout. `cispo`: clips the weight and keeps the gradient. `aipo`: the
    same without a lower clip, against the policy that sampled."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """The policy ratio is clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0)
    """The policy ratio is clipped above 1 + clip_high."""
    loss_aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """`token_mean`: every token of a batch weighs alike, so long rollouts weigh more. `sequence_mean`: every rollout
    weighs alike. `constant`: every token of every batch weighs alike: divided by rollouts times the longest allowed."""
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """What is done about tokens that an older policy, or vLLM's other kernels, sampled. `none`: the ratio is taken
    against the log-probabilities stored at sampling, and the clip bounds it. Others: the ratio is taken against the
    trainer's own policy at the start of the step, and each token is weighed by the ratio of that one to the one that
    sampled: truncated at `correction_high`, or left out (IcePop) where it is outside of `correction_low` to
    `correction_high`; by token, or by whole rollout."""
    correction_low: float = Field(default=0.5, ge=0, le=1)
    """Least ratio that is kept, by the masking corrections."""
    correction_high: float = Field(default=5.0, ge=1)
    """Largest ratio that is kept, or where it is truncated."""
    overlong_share: float = Field(default=0.0, ge=0, le=1)
    """Over this last share of `sampling.max_tokens` a rollout's reward falls by up to 1 (DAPO's overlong penalty); its
    outcome stays. 0: not."""
    truncated: Literal["keep", "mask", "reject"] = "keep"
    """Rollouts that reached `sampling.max_tokens`, which count as unsolved. `keep`: are trained on. `mask`: are only
    compared with. `reject`: their groups are rejected, which favours short answers."""
    tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Most tokens, padding included, in one forward pass; a longer row goes alone."""
    share_prompts: bool = False
    """Completions of one prompt share a row, in which the prompt is computed once. Faster where prompts are long beside
    completions, slower where they are short; for models whose layers all attend to the whole sequence."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the checkpoint that RL started from; 0 saves its forward passes."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of that divergence. As a loss, `k2` has its gradient on the policy's own samples, `k3` that of the reverse one,
    and `k1` none on average."""
    sampling: SamplingConfig = SamplingConfig()
    """How rollouts are drawn."""
    selection: Literal["signal", "pools", "dynamic_sampling", "uniform"] = "signal"
    """`signal`: prompts whose pass rate by the policy itself promises a gradient. `pools`: easy, normal and hard ones
    in fixed shares, by the rate of the last group. `dynamic_sampling`: every prompt alike, as DAPO does
    (https://arxiv.org/abs/2503.14476). With these three, groups of equal outcomes are rejected and replaced, even
    where their rewards differ (not with `advantage: reinforce_pp`, whose baseline is the batch's). `uniform`: every
    prompt alike, and such groups keep their place in the batch."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """What `signal` and `pools` aim at."""
    quotas: dict[str, float] | None = None
    """Capability → weight of its share in every batch; prompts of others are left out. null: equal shares for those of
    the prompts."""
    retest_every: int = Field(default=10, ge=1)
    """Train steps after which a capability that lends its share is tried again."""
    max_rejected_in_a_row: int = Field(default=64, ge=1)
    """Rejected groups in a row after which a capability lends its share to the others; when every capability does, the
    run stops: no prompt gives a signal."""
    start_from_scan: str | None = None
    """Path of a Parquet file that `posttrain passk` wrote: its pass rates are what is known of the prompts before the
    first step. null: nothing is known."""
    drift_every: int = Field(default=25, ge=0)
    """Train steps between two comparisons of the engines' log-probabilities with the trainer's, on a few fresh
    completions; the first is before the first step. 0: never."""
    max_drift: float | None = Field(default=None, gt=0)
    """Largest mean absolute difference of the two, in nats, with which the run goes on. null: by `dtype`, 0.001 for
    float32 and 0.05 for bfloat16."""
    eval_every: int = Field(default=25, ge=0)
    """Train steps between two evaluations on held-out prompts; 0: none."""
    eval_prompts: int | None = Field(default=None, ge=1)
    """Held-out prompts in such an evaluation. null: all."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Train steps between two checkpoints; the last step always makes one."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are deleted."""
    step_timeout: float = Field(default=1800.0, gt=0)
    """Seconds without a finished train step after which the run stops with an error."""

    @property
    def rejects_equal_outcomes(self) -> bool:
        """Whether groups of equal outcomes are rejected: not where `uniform` keeps every group in its place, nor where
        a baseline of the whole batch gives them an advantage.
        """
        return self.selection != "uniform" and self.advantage in GROUP_RELATIVE

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Any) -> Any:
        """What the named algorithm sets, beneath what is stated."""
        name = values.get("algorithm") if isinstance(values, Mapping) else None
        return {**ALGORITHMS[name], **values} if isinstance(name, str) and name in ALGORITHMS else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.loss == "aipo" and self.correction != "none":
            why = "loss 'aipo' weighs tokens against the policy that sampled them already; expected 'none'"
            raise conflict("correction", self.correction, why)
        if self.advantage in GROUP_RELATIVE and self.group_size < 2:
            why = f"advantage '{self.advantage}' compares rollouts of one group; expected at least 2"
            raise conflict("group_size", self.group_size, why)
        if self.prompts_per_step * self.group_size < 2:
            why = f"advantage '{self.advantage}' compares the rollouts of a step; expected at least 2"
            raise conflict("group_size", self.group_size, why)
        if self.sampling.temperature == 0:
            why = "greedy rollouts of one prompt are all alike; expected more than 0"
            raise conflict("sampling.temperature", 0, why)
        if self.oversample > 1 and self.max_staleness > 0:
            why = "only a synchronous round (rl.max_staleness=0) has last seats to wait for; expected 1"
            raise conflict("oversample", self.oversample, why)
        self._check_early_stop()
        self._check_quotas()
        return self

    def _check_early_stop(self) -> None:
        if self.early_stop is None:
            return
        if self.early_stop >= self.group_size:
            why = f"leaves none of the rl.group_size={self.group_size} rollouts for later; expected fewer, or null"
            raise conflict("early_stop", self.early_stop, why)
        if not self.rejects_equal_outcomes:
            kept = "selection" if self.selection == "uniform" else "advantage"
            why = f"with rl.{kept}={getattr(self, kept)} groups of equal outcomes are trained on; expected null"
            raise conflict("early_stop", self.early_stop, why)

    def _check_quotas(self) -> None:
        if self.quotas is None:
            return
        for capability, weight in self.quotas.items():
            if weight <= 0:
                why = "expected more than 0; leave out what shall have no share"
                raise conflict(f"quotas.{capability}", weight, why)
        if not self.quotas:
            raise conflict("quotas", {}, "expected a weight for at least one capability, or null")
        if self.prompts_per_step < len(self.quotas):
            why = f"rl.quotas has {len(self.quotas)} capabilities; expected at least one prompt for each"
            raise conflict("prompts_per_step", self.prompts_per_step, why)


class DPOConfig(Section):
    """Light DPO on mined corner cases; the optimizer's names are those of TRL's `DPOConfig`."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the RL checkpoint."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Schedule = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimizer steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Pairs per device and forward pass."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Forward passes per optimizer step."""
    max_length: int = Field(default=512, ge=2)
    """Longest prompt with completion, in tokens; pairs whose better side is longer are left out, and counted."""
    max_pairs: int = Field(default=2000, ge=1)
    """Most pairs in all."""
    pairs_per_kind: int = Field(default=500, ge=1)
    """Most pairs of one kind."""
    kinds: list[PairKind] = Field(default_factory=lambda: list(get_args(PairKind)), min_length=1)
    """What is rejected: corner cases (see `judges/corner_cases.py`), and `near_miss`, a wrong answer beside a right one
    to the same prompt of similar length."""
    preference: PreferenceConfig | None = None
    """A model that says which of two right answers is better, in both orders; pairs of the kind `preferred`. null: none
    is asked."""
    samples_per_prompt: int = Field(default=8, ge=2)
    """Fresh completions of each fresh prompt."""
    fresh_prompts: int = Field(default=256, ge=0)
    """RL prompts that are sampled again, with the RL checkpoint; 0: only the run's own rollouts are mined."""
    drop_words: int = Field(default=0, ge=0)
    """Most words left out, at random, of the system instruction of each fresh prompt; never those of the asked format.
    A policy breaks the format more often under wordings that it does not know, and what it learns there holds for other
    wordings too. 0: instructions stay as they are."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the fresh samples."""


class EvalConfig(Section):
    """What every evaluation measures."""

    temperatures: list[float] = Field(default_factory=lambda: [0.0, 0.3, 0.6, 1.0], min_length=1)
    """pass@1 at each of these; 0 is greedy."""
    samples: int = Field(default=8, ge=1)
    """Completions of each prompt at temperature 1."""
    samples_other: int = Field(default=1, ge=1)
    """Completions of each prompt at every other temperature above 0."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest completion, in tokens."""
    pass_k: list[int] = Field(default_factory=lambda: [1, 8], min_length=1)
    """The k of pass@k, at temperature 1."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for index, temperature in enumerate(self.temperatures):
            if temperature < 0:
                raise conflict(f"temperatures.{index}", temperature, "expected at least 0")
        for index, k in enumerate(self.pass_k):
            if not 1 <= k <= self.samples:
                why = f"expected at least 1 and at most eval.samples={self.samples}"
                raise conflict(f"pass_k.{index}", k, why)
        return self


class MetricsConfig(Section):
    """Where metrics go beside `metrics.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard files into the run directory."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project. null: not."""


class Config(Section):
    """All settings of a run, one section for each stage.

    Example: `load_config("tiny", ["rl.max_staleness=0"]).rl.max_staleness == 0`
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything that is drawn."""
    model: str
    """The base checkpoint: a model directory, a hub name, or `tiny:base`, the model that comes with the package."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the vLLM engines, of the weights sent to them and of the export; on a GPU also of the passes of
    SFT and DPO, and of RL's unless `trainer.dtype` says otherwise."""
    max_model_len: int = Field(default=512, ge=2)
    """Longest prompt with completion of the vLLM engines, in tokens."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each engine and of the RL trainer. More of them than cores together halves the speed of all."""
    data: DataConfig = DataConfig()
    """The rows."""
    reward: str = "auto"
    """What scores a completion: `auto` (by the prompt: hidden tests, else the answer), the name of a built-in
    verifier, or a function of your own by dotted path, `package.module:function`."""
    rubric: RubricConfig | None = None
    """Several criteria instead of one `reward`. null: `reward`."""
    sandbox: SandboxConfig = SandboxConfig()
    """Limits of the programs that the verifier `code` runs."""
    environment: str | None = None
    """What answers the policy within a rollout: a function of your own by dotted path (see `rollouts/env.py`). null:
    each rollout is a single turn."""
    generators: GeneratorsConfig = GeneratorsConfig()
    """The pool of vLLM engines."""
    trainer: TrainerConfig = TrainerConfig()
    """The RL trainer."""
    judge: JudgeConfig = JudgeConfig()
    """The judge of demonstrations."""
    prune: PruneConfig = PruneConfig()
    """Dropping the easy demonstrations."""
    lora: LoRAConfig | None = None
    """Train an adapter in all three stages, and leave the model as it is. null: train all parameters."""
    sft: SFTConfig = SFTConfig()
    """Stage 1."""
    rl: RLConfig = RLConfig()
    """Stage 2."""
    dpo: DPOConfig = DPOConfig()
    """Stage 3."""
    eval: EvalConfig = EvalConfig()
    """Evaluation of the checkpoint of each stage."""
    metrics: MetricsConfig = MetricsConfig()
    """Logging."""

    @model_validator(mode="before")
    @classmethod
    def _judge_with_the_model_itself(cls, values: Any) -> Any:
        """Without a judge of its own, a run is judged by the model it starts from, never by the tiny judge."""
        if isinstance(values, Mapping) and "model" in values:
            judge = values.get("judge", {})
            if isinstance(judge, Mapping) and not judge.get("model"):
                return {**values, "judge": {**judge, "model": values["model"]}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _roll_with_all_engines_but_one(cls, values: Any) -> Any:
        """An engine that nobody gave anything to do would cost a GPU and do nothing."""
        if isinstance(values, Mapping):
            rl, pool = values.get("rl", {}), values.get("generators", {})
            count = pool.get("count") if isinstance(pool, Mapping) else None
            if isinstance(rl, Mapping) and "generators" not in rl and isinstance(count, int) and count > 2:
                return {**values, "rl": {**rl, "generators": count - 1}}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.rl.generators > self.generators.count:
            why = f"the pool has generators.count={self.generators.count} engines; expected at most so many"
            raise conflict("rl.generators", self.rl.generators, why)
        if self.trainer.ranks > self.rl.prompts_per_step * self.rl.group_size:
            why = "a batch has rl.prompts_per_step * rl.group_size = {} rollouts; expected at most one rank for each"
            why = why.format(self.rl.prompts_per_step * self.rl.group_size)
            raise conflict("trainer.ranks", self.trainer.ranks, why)
        if self.trainer.gpus < 1 and self.trainer.gpus + self.generators.gpus_each > 1:
            why = (
                "a rank with a part of a GPU shares it with an engine, whose generators.gpus={:g}; expected at most 1 "
            )
            why = why.format(self.generators.gpus_each) + "for the two together"
            raise conflict("trainer.gpus", self.trainer.gpus, why)
        if self.rl.early_stop is not None and self.rubric and self.rubric.asks and self.rubric.length_penalty > 0:
            why = (
                "rubric.length_penalty={:g} is by the lengths of a whole group, of which the first rollouts are judged "
            )
            why = why.format(self.rubric.length_penalty) + "alone; expected null, or rubric.length_penalty=0"
            raise conflict("rl.early_stop", self.rl.early_stop, why)
        window, rl = self.data.prompts.window, self.rl
        least = 2 * rl.prompts_per_step * (rl.max_staleness + 1)
        if window is not None and window < least:
            why = (
                f"expected at least 2 * rl.prompts_per_step * (rl.max_staleness + 1) = {least}, twice what is under way"
            )
            raise conflict("data.prompts.window", window, why)
        lengths = {"rl.sampling.max_tokens": self.rl.sampling.max_tokens, "eval.max_tokens": self.eval.max_tokens}
        for key, length in lengths.items():
            if length >= self.max_model_len:
                why = f"leaves no room for a prompt; expected less than max_model_len={self.max_model_len}"
                raise conflict(key, length, why)
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, made of JSON types only; `Config.model_validate` takes it back."""
        return self.model_dump(mode="json")
