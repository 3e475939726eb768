"""The policy in training: how likely it finds the tokens of a micro-batch.

Dimensions: B = rows of a micro-batch, T = tokens of its longest row, N = loss tokens, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from posttrain.batch import TrainBatch

Tensor = torch.Tensor
CHUNK = 4096
"""Loss tokens whose logits are held at once, where memory is saved by computing them again in the backward pass."""


class Policy(torch.nn.Module):
    """A causal language model of transformers; one forward pass gives log-probabilities and entropies."""

    def __init__(self, model: Any, temperature: float, save_memory: bool = False) -> None:
        """Takes a model with an output head.

        Args:
            model: of transformers, or of peft around one.
            temperature: of sampling; log-probabilities are those at it, as vLLM's are.
            save_memory: keep neither the layers' activations nor the logits for the backward pass.
        """
        super().__init__()
        self.model, self.temperature, self.save_memory = model, temperature, save_memory
        if save_memory:
            self.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def causal(self) -> Any:
        """The model of transformers itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the loss tokens, [N] each; the entropy has no gradient.

        Only the positions before a sampled token go through the output head.
        """
        hidden_BTD = self.causal.base_model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            attention_mask=batch.attention_mask(),
            use_cache=False,
        ).last_hidden_state
        row_N, token_N = batch.loss_mask.nonzero(as_tuple=True)
        before_ND = hidden_BTD[row_N, batch.previous[row_N, token_N]]
        targets_N = batch.token_ids[row_N, token_N]
        if not self.save_memory or not torch.is_grad_enabled():
            return self._head(before_ND, targets_N)
        parts = [
            checkpoint(self._head, hidden, targets, use_reentrant=False)
            for hidden, targets in zip(before_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _head(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = self.causal.get_output_embeddings()(hidden_ND).float() / self.temperature
        logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N
