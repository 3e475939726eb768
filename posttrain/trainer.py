"""The policy trainer: one optimizer step for each policy version, weights published through shared memory.

Runs in a Ray actor of its own; usable without Ray as well.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, get_scheduler

from posttrain.batch import TrainBatch, microbatches, rows_of
from posttrain.config import RLConfig
from posttrain.losses.corrections import CORRECTIONS
from posttrain.losses.kl import KL_ESTIMATORS, k3
from posttrain.losses.policy import LOSSES, Tokens
from posttrain.step_metrics import StepMetrics
from rollouts.errors import ConfigError
from rollouts.types import RolloutGroup


def check_model(model: str, config: RLConfig) -> None:
    """Raises ConfigError if the settings do not suit the model, a Hugging Face model directory."""
    text = AutoConfig.from_pretrained(model).get_text_config()
    narrow = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if config.share_prompts and (narrow or getattr(text, "sliding_window", None)):
        kinds = ", ".join(sorted(narrow)) or "sliding_window"
        raise ConfigError(f"rl.share_prompts: {model} has layers of {kinds}, which it does not suit; set it to false")


SUMS = ("loss", "entropy", "kl", "clipped", "corrected")
"""What is added up over the tokens of a train step."""


class PolicyTrainer:
    """Holds the policy in training with its optimizer and schedule."""

    def __init__(
        self, model: str, reference: str, config: RLConfig, seed: int, threads: int, device: str | None = None
    ) -> None:
        """Loads the policy.

        Args:
            model: a Hugging Face model directory.
            reference: the one that a KL penalty holds the policy to; loaded only where `kl_coef` is not 0.
            config: the `rl` section of the configuration.
            seed: of everything random in training (dropout, where a model has it).
            threads: CPU threads of this process.
            device: where to train; the first GPU if there is one, else the CPU.
        """
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(self.device)
        self.policy.train()
        self.reference = None
        if config.kl_coef:
            self.reference = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).to(self.device).eval()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
        )  # fmt: skip
        self.busy_seconds = 0.0

    def ready(self) -> bool:
        """Returns once the policy is loaded."""
        return True

    def train_step(self, *groups: RolloutGroup) -> StepMetrics:
        """One optimizer step on the groups of one batch.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; the parameters are left as they were.
        """
        started = time.monotonic()
        rows = rows_of(groups, self.config)
        tokens = sum(sum(row.loss_mask) for row in rows)
        num_tokens, padded = sum(len(row.token_ids) for row in rows), 0
        sums, max_ratio = torch.zeros(len(SUMS), dtype=torch.float64), 0.0
        for batch in microbatches(rows, self.config.tokens_per_microbatch, self.tokenizer.pad_token_id or 0):
            found, largest = self._backward(batch.to(self.device))
            padded += batch.token_ids.numel()
            sums += found.cpu()
            max_ratio = max(max_ratio, largest.item())
        loss, entropy, kl, clipped, corrected = sums.tolist()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm).item()
        if not (grad_norm < float("inf")):
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the gradient is not finite (norm {grad_norm}, loss {loss})")
        learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
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
            max_ratio=max_ratio,
            tokens=tokens,
            padding_share=1 - num_tokens / padded,
            seconds=seconds,
        )

    def logprobs(self, *groups: RolloutGroup) -> torch.Tensor:
        """Of every sampled token of the groups: the log-probability stored with it, and the policy's own now, [2, N].

        Computed as in a train step, in whose order of rows and tokens they come.
        """
        rows = rows_of(groups, self.config.model_copy(update={"truncated": "keep"}))  # `mask` would leave some out
        pairs = []
        for batch in microbatches(rows, self.config.tokens_per_microbatch, self.tokenizer.pad_token_id or 0):
            there = batch.to(self.device)
            with torch.no_grad():
                now_N, _ = self._logprobs(self.policy, there)
            pairs.append(torch.stack([there.behaviour_logprobs[there.loss_mask], now_N]).cpu())
        return torch.cat(pairs, dim=1)

    def _backward(self, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a micro-batch's gradient; gives its sums over tokens (see `SUMS`) and the largest importance ratio."""
        config, mask = self.config, batch.loss_mask
        weights_N, behaviour_N, rollouts_N = batch.weights[mask], batch.behaviour_logprobs[mask], batch.rollouts()
        logprobs_N, entropy_N = self._logprobs(self.policy, batch)
        # One optimizer step for each policy version: the policy at the start of the step is the policy now.
        now_N = logprobs_N.detach()
        log_ratios_N = now_N - behaviour_N
        if config.correction == "none":
            proximal_N, corrections_N = behaviour_N, torch.ones_like(weights_N)
        else:
            correct = CORRECTIONS[config.correction]
            proximal_N = now_N
            corrections_N = correct(log_ratios_N, rollouts_N, config.correction_low, config.correction_high)
        objective = LOSSES[config.loss](
            Tokens(logprobs_N, proximal_N, batch.advantages[mask], rollouts_N), config.clip_low, config.clip_high
        )
        loss = -(objective.values * corrections_N * weights_N).sum()
        if self.reference is not None:
            with torch.no_grad():
                reference_N, _ = self._logprobs(self.reference, batch)
            loss = (
                loss + config.kl_coef * (KL_ESTIMATORS[config.kl_estimator](logprobs_N, reference_N) * weights_N).sum()
            )
        loss.backward()
        cut_N = (corrections_N != log_ratios_N.exp()) & (config.correction != "none")
        kl_N = k3(behaviour_N, now_N)  # of the behaviour policy, whose samples these are, to the policy now
        sums = (loss.detach(), entropy_N.sum(), kl_N.sum(), objective.clipped.sum(), cut_N.sum())
        largest = log_ratios_N.max().exp() if len(log_ratios_N) else log_ratios_N.new_zeros(())
        return torch.stack([value.double() for value in sums]), largest

    def _logprobs(self, model: Any, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the loss tokens, at the sampling temperature: [N] each.

        Only the positions before a sampled token go through the output head.
        """
        hidden = model.base_model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            attention_mask=batch.attention_mask(),
            use_cache=False,
        ).last_hidden_state
        row_N, token_N = batch.loss_mask.nonzero(as_tuple=True)
        before_N = hidden[row_N, batch.previous[row_N, token_N]]
        logits = model.get_output_embeddings()(before_N).float() / self.config.sampling.temperature
        logprobs = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, batch.token_ids[row_N, token_N, None]).squeeze(1), entropy

    # ------------------------------------------------------------------------------------------ weights and state

    def publish(self, path: str) -> None:
        """Writes the policy's parameters to a safetensors file (in shared memory) for the generators to load."""
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.policy.named_parameters()}
        save_file(tensors, path)

    def save(self, directory: str) -> None:
        """Writes the model directory and the optimizer's state into an existing directory.

        The optimizer is stored as safetensors too: a checkpoint holds no pickle.
        """
        self.policy.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        state = self.optimizer.state_dict()["state"]
        flat = {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}
        # In a folder of its own: who loads the model takes every safetensors file beside config.json for weights.
        (Path(directory) / "optimizer").mkdir()
        save_file(flat, Path(directory) / "optimizer" / "state.safetensors")

    def load_optimizer(self, directory: str, step: int) -> None:
        """Restores what `save` wrote (the policy itself is loaded from the directory at construction)."""
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in load_file(Path(directory) / "optimizer" / "state.safetensors").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for _ in range(step):
            self.scheduler.step()

    def metrics(self) -> dict[str, float]:
        """Seconds spent in train steps since the start."""
        return {"busy_seconds": self.busy_seconds}
