"""The policy in training: how likely it finds the tokens of a micro-batch.

Dimensions: B = rows of a micro-batch, T = tokens of its longest row, N = loss tokens, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.batch import TrainBatch
from rollouts.errors import ConfigError

Tensor = torch.Tensor
CHUNK = 4096
"""Loss tokens whose logits are held at once, where memory is saved by computing them again in the backward pass."""


UNKNOWN_HEADS = ("lm_head_multiplier", "output_multiplier")
"""Fields of models whose logits are made in a way of their own."""


def scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What a model does to its head's output to make logits: a factor, and a bound of their size (Gemma's soft cap).

    Args:
        config: of transformers, of the language model.

    Raises:
        ConfigError: something else, as the model's configuration says.
    """
    scaling = getattr(config, "logits_scaling", None) or 1.0  # Granite divides by it
    unknown = [name for name in UNKNOWN_HEADS if getattr(config, name, None) not in (None, 1.0)]
    if scaling != 1.0 and "granite" not in config.model_type:
        unknown.append("logits_scaling")
    if unknown:
        raise ConfigError(f"model: {config.model_type} makes its logits by {unknown[0]}, which is not known here")
    return (getattr(config, "logit_scale", None) or 1.0) / scaling, getattr(config, "final_logit_softcapping", None)


def load_model(path: str, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of transformers. What is trained is float32; what lies beneath an adapter may be less."""
    capped = getattr(AutoConfig.from_pretrained(path), "attn_logit_softcapping", None)
    # The usual attention leaves out the soft cap of Gemma 2's.
    attention = "eager" if capped else None
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, attn_implementation=attention)


class Policy(torch.nn.Module):
    """A causal language model of transformers; one forward pass gives log-probabilities and entropies."""

    def __init__(self, model: Any, temperature: float, save_memory: bool = False, compiled: bool = False) -> None:
        """Takes a model with an output head.

        Args:
            model: of transformers, or of peft around one.
            temperature: of sampling; log-probabilities are those at it, as vLLM's are.
            save_memory: keep neither the layers' activations nor the logits for the backward pass.
            compiled: fuse the small operations of each layer and of the output head, by torch.compile; once for all
                shapes, since those of micro-batches differ.
        """
        super().__init__()
        self._scale, self._cap = scale_and_cap(model.config.get_text_config())
        self.model, self.temperature, self.save_memory = model, temperature, save_memory
        if save_memory:
            self.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._head = torch.compile(self._logprobs_and_entropy, dynamic=True) if compiled else self._logprobs_and_entropy
        for block in self.blocks() if compiled else ():
            block.compile(dynamic=True)

    def blocks(self) -> Iterator[torch.nn.Module]:
        """The layers: what is wrapped, recomputed or compiled one by one."""
        names = set(self.causal._no_split_modules or [])
        return (module for module in self.modules() if type(module).__name__ in names)

    @property
    def causal(self) -> Any:
        """The model of transformers itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _layers(self) -> Any:
        """The model without its output head. Llama 4's `base_model` is the whole: it names a missing attribute."""
        found = self.causal.base_model
        return self.causal.model if found is self.causal else found

    def forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the loss tokens, [N] each; the entropy has no gradient.

        Only the positions before a sampled token go through the output head.
        """
        hidden_BTD = self._layers(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            attention_mask=batch.attention_mask(),
            use_cache=False,
        ).last_hidden_state
        row_N, token_N = batch.loss_mask.nonzero(as_tuple=True)
        before_ND = hidden_BTD[row_N, batch.previous[row_N, token_N]]
        targets_N = batch.token_ids[row_N, token_N]
        if torch.is_grad_enabled() and not self.save_memory:
            return self._head(before_ND, targets_N)
        head = partial(checkpoint, self._head, use_reentrant=False) if torch.is_grad_enabled() else self._head
        parts = [head(*part) for part in zip(before_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _logprobs_and_entropy(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = self.causal.get_output_embeddings()(hidden_ND).float()
        if self._cap is not None:
            logits_NV = self._cap * torch.tanh(logits_NV / self._cap)
        logprobs_NV = torch.log_softmax(logits_NV / (self.temperature / self._scale), dim=-1)
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N
