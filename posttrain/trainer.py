"""The policy trainer: one optimizer step for each policy version, whose weights it gives to the engines.

Runs in a Ray actor of its own, or in several that train together; usable without Ray as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import AutoConfig, AutoTokenizer, get_scheduler

from posttrain.adapters import is_adapter, with_adapter
from posttrain.batch import Row, TrainBatch, microbatches, rows_of
from posttrain.config import SCHEDULES, Config, RLConfig
from posttrain.losses.corrections import CORRECTIONS
from posttrain.losses.kl import KL_ESTIMATORS, k3
from posttrain.losses.policy import LOSSES, Tokens
from posttrain.policy import Policy, load_model, scale_and_cap
from posttrain.ranks import Ranks, is_sharded, whole, whole_state
from posttrain.sender import Sender, Sent
from posttrain.step_metrics import StepMetrics
from posttrain.trained_log import TrainedLog
from posttrain.weights import Weights, write_safetensors
from rollouts.errors import ConfigError
from rollouts.types import RolloutGroup

UNSENDABLE = ("mixtral", "deepseek_v2", "deepseek_v3")
"""Models whose weights vLLM does not find under the names that transformers has for them in memory."""


def check_model(model: str, config: RLConfig) -> None:
    """Raises ConfigError if the settings do not suit the model, a Hugging Face model directory."""
    text = AutoConfig.from_pretrained(model).get_text_config()
    scale_and_cap(text)
    if text.model_type in UNSENDABLE:
        raise ConfigError(
            f"model: RL cannot send the weights of {text.model_type}: transformers has its experts under other names "
            "than a checkpoint, and vLLM does not know them"
        )
    narrow = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if config.share_prompts and (narrow or getattr(text, "sliding_window", None)):
        kinds = ", ".join(sorted(narrow)) or "sliding_window"
        raise ConfigError(f"rl.share_prompts: {model} has layers of {kinds}, which it does not suit; set it to false")


SUMS = ("loss", "entropy", "kl", "clipped", "corrected", "padded")
"""What is added up over a train step."""


class PolicyTrainer:
    """Holds the policy in training with its optimizer and schedule: all of it, or the part of one rank."""

    def __init__(
        self,
        model: str,
        reference: str,
        config: Config,
        rank: int = 0,
        address: str = "",
        device: str | None = None,
    ) -> None:
        """Loads the policy.

        Args:
            model: a Hugging Face model directory, or an adapter's.
            reference: the one that RL started from: a KL penalty holds the policy to it, an adapter is put on it.
            config: of the run.
            rank: of this process among `trainer.ranks`.
            address: `host:port` of the store where the ranks meet; only needed for several.
            device: where to train; the first GPU if there is one, else the CPU. Ray shows an actor only its own GPU.
        """
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.config, self._settings = config.rl, config.trainer
        self._dtype = getattr(torch, config.trainer.dtype or config.dtype)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and config.trainer.gpus < 1:  # an engine has the rest
            torch.cuda.set_per_process_memory_fraction(config.trainer.gpus)
        wanted = config.trainer.compile
        self.compiled = self.device.type == "cuda" if wanted is None else wanted
        self.ranks = Ranks(self.device, rank, config.trainer.ranks, address, config.rl.step_timeout)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self._lora = config.lora
        self.policy, self._wrapped = self._load(model, beneath=reference, training=True)
        self.reference = None
        if config.rl.kl_coef and config.lora is None:  # with an adapter it is the policy without
            self.reference = self._load(reference, beneath=reference, training=False)[1]
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            lr=self.config.learning_rate,
            betas=(self.config.adam_beta1, self.config.adam_beta2),
            eps=self.config.adam_epsilon,
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.scheduler = get_scheduler(
            SCHEDULES[self.config.lr_scheduler_type], self.optimizer, num_warmup_steps=self.config.warmup_steps,
            num_training_steps=self.config.steps,
        )  # fmt: skip
        self.busy_seconds = 0.0
        self._weights = Weights(self.policy.model, getattr(torch, config.dtype))
        self._sender: Sender | None = None
        self._trained = TrainedLog()

    def _load(self, model: str, beneath: str, training: bool) -> tuple[Policy, torch.nn.Module]:
        """A model, bare and as the ranks share it; an adapter is put on the model beneath it."""
        adapted = training and self._lora is not None
        narrow = adapted and self.device.type == "cuda"  # half the memory; on a CPU float32 is faster
        loaded = load_model(beneath if adapted else model, self._dtype if narrow else torch.float32)
        loaded = loaded.to(self.device).train(training).requires_grad_(training)
        if training and self._lora is not None:
            loaded = with_adapter(loaded, self._lora, model if is_adapter(model) else None)
        save_memory = training and self._settings.gradient_checkpointing
        policy = Policy(loaded, self.config.sampling.temperature, save_memory, self.compiled)
        return policy, self.ranks.wrap(policy, self._settings.parallelism, self._dtype)

    def ready(self) -> bool:
        """Returns once the policy is loaded."""
        return True

    def train_step(self, *groups: RolloutGroup) -> StepMetrics:
        """One optimizer step on the groups of one batch; every rank is given all of them.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; the parameters are left as they were.
        """
        started = time.monotonic()
        rows = rows_of(groups, self.config)
        tokens = sum(sum(row.loss_mask) for row in rows)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        max_ratio = torch.zeros((), device=self.device)
        parts = microbatches(rows, self.config.tokens_per_microbatch, self.ranks.rank, self.ranks.count)
        for index, part in enumerate(parts):
            # A GPU is still at work on the part before, so nothing of that is read until the last one is under way.
            batch = self._padded(part)
            with self.ranks.averages(self._wrapped, last=index == len(parts) - 1):
                found, largest = self._backward(batch)
            sums += found
            max_ratio = torch.maximum(max_ratio, largest)
        loss, entropy, kl, clipped, corrected, padded = self.ranks.add_up(sums).tolist()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        grad_norm = whole(norm).item()
        if not (grad_norm < float("inf")):
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the gradient is not finite (norm {grad_norm}, loss {loss})")
        learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self._trained.add(self.version, groups)
        seconds = time.monotonic() - started
        self.busy_seconds += seconds
        return StepMetrics(
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            entropy=entropy / max(1, tokens),
            kl=kl / max(1, tokens),
            clip_share=clipped / max(1, tokens),
            corrected_share=corrected / max(1, tokens),
            max_ratio=self.ranks.largest(max_ratio).item(),
            tokens=tokens,
            padding_share=1 - sum(len(row.token_ids) for row in rows) / padded,
            seconds=seconds,
        )

    def logprobs(self, *groups: RolloutGroup) -> torch.Tensor:
        """Of every sampled token of the groups: the log-probability stored with it, and the policy's own now, [2, N].

        Computed as in a train step, in whose order of rows and tokens they come; every rank is to be asked, for all.
        """
        rows = rows_of(groups, self.config.model_copy(update={"truncated": "keep"}))  # `mask` would leave some out
        pairs = []
        for part in microbatches(rows, self.config.tokens_per_microbatch):
            there = self._padded(part)
            with torch.no_grad():
                now_N, _ = self._logprobs(self._wrapped, there)
            pairs.append(torch.stack([there.behaviour_logprobs[there.loss_mask], now_N]).cpu())
        return torch.cat(pairs, dim=1)

    def _padded(self, rows: Sequence[Row]) -> TrainBatch:
        return TrainBatch.of(rows, self.tokenizer.pad_token_id or 0).to(self.device)

    def _backward(self, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a micro-batch's gradient; gives its sums (see `SUMS`) and the largest importance ratio."""
        config, mask = self.config, batch.loss_mask
        weights_N, behaviour_N, rollouts_N = batch.weights[mask], batch.behaviour_logprobs[mask], batch.rollouts()
        logprobs_N, entropy_N = self._logprobs(self._wrapped, batch)
        # One optimizer step for each policy version: the policy at the start of the step is the policy now.
        now_N = logprobs_N.detach()
        log_ratios_N = now_N - behaviour_N
        if config.correction == "none":
            proximal_N, corrections_N = behaviour_N, torch.ones_like(weights_N)
            uncut_N = corrections_N
        else:
            correct = CORRECTIONS[config.correction]
            proximal_N = now_N
            corrections_N = correct(log_ratios_N, rollouts_N, config.correction_low, config.correction_high)
            uncut_N = correct(log_ratios_N, rollouts_N, 0.0, float("inf"))
        objective = LOSSES[config.loss](
            Tokens(logprobs_N, proximal_N, batch.advantages[mask], rollouts_N), config.clip_low, config.clip_high
        )
        loss = -(objective.values * corrections_N * weights_N).sum()
        if config.kl_coef:
            reference_N = self._reference_logprobs(batch)
            loss = (
                loss + config.kl_coef * (KL_ESTIMATORS[config.kl_estimator](logprobs_N, reference_N) * weights_N).sum()
            )
        (loss * self.ranks.count).backward()  # weights are those of the whole batch, and ranks are averaged
        kl_N = k3(behaviour_N, now_N)  # of the behaviour policy, whose samples these are, to the policy now
        sums = (
            loss.detach(),
            entropy_N.sum(),
            kl_N.sum(),
            objective.clipped.sum(),
            (corrections_N != uncut_N).sum(),
            torch.ones_like(mask).sum(),
        )
        largest = log_ratios_N.max().exp() if len(log_ratios_N) else log_ratios_N.new_zeros(())
        return torch.stack([value.double() for value in sums]), largest

    @torch.no_grad()
    def _reference_logprobs(self, batch: TrainBatch) -> torch.Tensor:
        if self.reference is not None:
            return self._logprobs(self.reference, batch)[0]
        with self.policy.model.disable_adapter():
            return self._logprobs(self._wrapped, batch)[0]

    def _logprobs(self, policy: torch.nn.Module, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the loss tokens: [N] each."""
        narrow = self._dtype != torch.float32 and not is_sharded(policy)  # a sharded one has its own mixed precision
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=narrow):
            logprobs_N, entropy_N = policy(batch)
        return logprobs_N, entropy_N

    # ------------------------------------------------------------------------------------------ weights and state

    @property
    def version(self) -> int:
        """Train steps done, those before a resume included."""
        return int(self.scheduler.last_epoch)

    def publish(self, path: str) -> int:
        """Writes what is trained for the engines to load (into shared memory), in their number format.

        Args:
            path: of a safetensors file, or of a new directory for an adapter, which is written as it is trained.

        Returns:
            The version that was written.
        """
        if self._lora is not None:
            tensors = whole_state(self.policy.model, trained_only=True)
            if self.ranks.rank == 0:
                self.policy.model.save_pretrained(path, state_dict=tensors)
        elif self.ranks.rank == 0:
            write_safetensors(path, self._weights.metadata(), self._weights)
        else:
            for _ in self._weights:  # gathered together, parameter by parameter
                pass
        return self.version

    def gpu(self) -> str:
        """The UUID of the GPU that this rank trains on; "" for a CPU."""
        return str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""

    def connect(self, backend: str, engines: Sequence[Any], workers: Sequence[int], limit: float) -> None:
        """Meets the engines, in the place of those met before; see `Sender`. Every rank is to be asked."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._sender = Sender(backend, self._weights, engines, workers, limit, self.ranks.rank)

    def send(self, version: int) -> Sent:
        """Sends the weights to the engines met; every rank is to be asked."""
        assert self._sender is not None, "not connected"
        return self._sender.send(version)

    def save(self, directory: str) -> None:
        """Writes the model (or the adapter) and the optimizer's state into an existing directory.

        The optimizer is stored as safetensors too: a checkpoint holds no pickle.
        """
        tensors = whole_state(self.policy.model, trained_only=self._lora is not None)
        # Torch fills a fresh optimizer by a step of zero gradients, which Adam counts as one.
        optimizer = self._optimizer_state() if self.version else {"state": {}}
        if self.ranks.rank > 0:
            return
        self.policy.model.save_pretrained(directory, state_dict=tensors)
        self.tokenizer.save_pretrained(directory)
        flat = {f"{name}.{key}": value for name, entry in optimizer["state"].items() for key, value in entry.items()}
        # In a folder of its own: who loads the model takes every safetensors file beside config.json for weights.
        (Path(directory) / "optimizer").mkdir()
        save_file(flat, Path(directory) / "optimizer" / "state.safetensors")
        self._trained.write(Path(directory))

    def load_optimizer(self, directory: str, step: int) -> None:
        """Restores what `save` wrote, on any number of ranks (the policy itself is loaded at construction)."""
        self._trained = TrainedLog.read(Path(directory))
        if step == 0:
            return
        optimizer = self._optimizer_state()
        if self.ranks.rank == 0:
            for name, value in load_file(Path(directory) / "optimizer" / "state.safetensors").items():
                parameter, key = name.rsplit(".", 1)
                optimizer["state"].setdefault(parameter, {})[key] = value
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.ranks.count > 1)
        set_optimizer_state_dict(self.policy, self.optimizer, optimizer, options=options)
        for _ in range(step):
            self.scheduler.step()

    def _optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state by the parameters' names, whole, on rank 0; nothing on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_optimizer_state_dict(self.policy, self.optimizer, options=options)
        return dict(state)

    def metrics(self) -> dict[str, float]:
        """Seconds spent in train steps since the start."""
        return {"busy_seconds": self.busy_seconds}
