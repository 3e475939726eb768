"""From rollout groups to the tensors of a train step.

Dimensions: B = rollouts of a micro-batch, T = tokens of its longest row (prompt and completion), N = loss tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from posttrain.losses import ADVANTAGES, AGGREGATIONS
from rollouts.types import RolloutGroup


@dataclass(frozen=True)
class Row:
    """One rollout, laid end to end with its prompt, ready to be padded."""

    token_ids: list[int]
    loss_mask: list[bool]
    logprobs: list[float]
    advantage: float
    weight: float  # of each of its loss tokens in the loss


@dataclass(frozen=True)
class TrainBatch:
    """A micro-batch, padded on the right.

    `loss_mask[b, t]` says whether token t was sampled by the policy; it is stored, never inferred from padding.
    `behaviour_logprobs`, `advantages` and `weights` are zero where it is False.
    """

    token_ids: torch.Tensor  # [B, T]
    loss_mask: torch.Tensor  # [B, T]
    behaviour_logprobs: torch.Tensor  # [B, T]
    advantages: torch.Tensor  # [B, T]
    weights: torch.Tensor  # [B, T]


def rows_of(groups: Sequence[RolloutGroup], advantage: str, aggregation: str) -> list[Row]:
    """The rollouts of groups as rows, with advantages computed within each group.

    Args:
        groups: of one train step.
        advantage: a key of `losses.ADVANTAGES`.
        aggregation: a key of `losses.AGGREGATIONS`.
    """
    rows = []
    lengths = [sum(rollout.loss_mask) for group in groups for rollout in group.rollouts]
    weights = iter(AGGREGATIONS[aggregation](lengths))
    for group in groups:
        rewards_G = torch.tensor([rollout.reward for rollout in group.rollouts], dtype=torch.float64)
        for rollout, value in zip(group.rollouts, ADVANTAGES[advantage](rewards_G).tolist(), strict=True):
            prompt = group.prompt_token_ids
            rows.append(
                Row(
                    token_ids=prompt + rollout.token_ids,
                    loss_mask=[False] * len(prompt) + rollout.loss_mask,
                    logprobs=[0.0] * len(prompt) + rollout.logprobs,
                    advantage=value,
                    weight=next(weights),
                )
            )
    return rows


def microbatches(rows: Sequence[Row], tokens_per_microbatch: int, pad_id: int) -> Iterator[TrainBatch]:
    """Splits rows, longest first, into padded micro-batches of at most so many tokens (but at least one row) each."""
    ordered = sorted(rows, key=lambda row: -len(row.token_ids))
    start = 0
    while start < len(ordered):
        width = len(ordered[start].token_ids)
        stop = start + max(1, tokens_per_microbatch // width)
        yield _padded(ordered[start:stop], width, pad_id)
        start = stop


def _padded(rows: Sequence[Row], width: int, pad_id: int) -> TrainBatch:
    shape = (len(rows), width)
    batch = TrainBatch(
        torch.full(shape, pad_id),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(shape),
    )
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        mask = torch.tensor(row.loss_mask)
        batch.token_ids[index, :length] = torch.tensor(row.token_ids)
        batch.loss_mask[index, :length] = mask
        batch.behaviour_logprobs[index, :length] = torch.tensor(row.logprobs)
        batch.advantages[index, :length] = row.advantage * mask
        batch.weights[index, :length] = row.weight * mask
    return batch
