"""From rollout groups to the tensors of a train step.

Dimensions: B = rows of a micro-batch, T = tokens of its longest row, N = loss tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from posttrain.losses import ADVANTAGES, AGGREGATIONS
from rollouts.types import Rollout, RolloutGroup


@dataclass
class Row:
    """A prompt and, end to end behind it, one or several of its completions; ready to be padded. One entry a token."""

    token_ids: list[int]
    segments: list[int]  # 0: the prompt; n: its n-th completion in this row
    positions: list[int]  # in the token's own sequence, which is the prompt and one completion
    previous: list[int]  # where in the row the token before it in its own sequence is
    loss_mask: list[bool]
    behaviour_logprobs: list[float]
    advantages: list[float]
    weights: list[float]
    prompt_length: int

    @classmethod
    def of_prompt(cls, token_ids: Sequence[int]) -> Row:
        """A row without a completion."""
        length = len(token_ids)
        nothing = [0.0] * length
        places = list(range(length))
        return cls(
            list(token_ids), [0] * length, places, [0, *places[:-1]], [False] * length,
            nothing, nothing.copy(), nothing.copy(), length,
        )  # fmt: skip

    def append(self, rollout: Rollout, advantage: float, weight: float) -> None:
        """Adds a completion; weight is that of each of its loss tokens in the loss."""
        start, length = len(self.token_ids), len(rollout.token_ids)
        self.token_ids += rollout.token_ids
        self.segments += [self.segments[-1] + 1] * length
        self.positions += range(self.prompt_length, self.prompt_length + length)
        self.previous += [self.prompt_length - 1, *range(start, start + length - 1)][:length]
        self.loss_mask += rollout.loss_mask
        self.behaviour_logprobs += rollout.logprobs
        self.advantages += [advantage * mask for mask in rollout.loss_mask]
        self.weights += [weight * mask for mask in rollout.loss_mask]


@dataclass(frozen=True)
class TrainBatch:
    """A micro-batch, padded on the right; all tensors are [B, T].

    `loss_mask[b, t]` says whether token t was sampled by the policy; it is stored, never inferred from padding.
    `behaviour_logprobs`, `advantages` and `weights` are zero where it is False. `segments` is -1 on padding.
    """

    token_ids: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    loss_mask: torch.Tensor
    behaviour_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on a device."""
        return TrainBatch(*(getattr(self, column.name).to(device) for column in fields(self)))

    def attention_mask(self) -> torch.Tensor | None:
        """Who sees whom, [B, 1, T, T]: the prompt and one's own completion, up to oneself. None: plainly causal."""
        if self.segments.max() <= 1:  # padding on the right needs no mask in a causal model
            return None
        keys, queries = self.segments[:, None, None, :], self.segments[:, None, :, None]
        return ((keys == 0) | (keys == queries)).tril()


def rows_of(
    groups: Sequence[RolloutGroup], advantage: str, aggregation: str, most_tokens: int | None = None
) -> list[Row]:
    """The rollouts of groups as rows, with advantages computed within each group.

    Args:
        groups: of one train step.
        advantage: a key of `losses.ADVANTAGES`.
        aggregation: a key of `losses.AGGREGATIONS`.
        most_tokens: completions of a prompt share a row of at most so many tokens, in which the prompt stands once.
            None: each completion has a row of its own.
    """
    rows = []
    lengths = [sum(rollout.loss_mask) for group in groups for rollout in group.rollouts]
    weights = iter(AGGREGATIONS[aggregation](lengths))
    for group in groups:
        rewards_G = torch.tensor([rollout.reward for rollout in group.rollouts], dtype=torch.float64)
        row = None
        for rollout, value in zip(group.rollouts, ADVANTAGES[advantage](rewards_G).tolist(), strict=True):
            if row is None or len(row.token_ids) + len(rollout.token_ids) > (most_tokens or 0):
                row = Row.of_prompt(group.prompt_token_ids)
                rows.append(row)
            row.append(rollout, value, next(weights))
    return rows


def microbatches(rows: Sequence[Row], tokens_per_microbatch: int, pad_id: int) -> Iterator[TrainBatch]:
    """Splits rows, longest first, into padded micro-batches of at most so many tokens (but at least one row) each."""
    ordered = sorted(rows, key=lambda row: -len(row.token_ids))
    start = 0
    while start < len(ordered):
        stop = start + max(1, tokens_per_microbatch // len(ordered[start].token_ids))
        yield _padded(ordered[start:stop], pad_id)
        start = stop


def _padded(rows: Sequence[Row], pad_id: int) -> TrainBatch:
    fill: dict[str, Any] = {"token_ids": pad_id, "segments": -1}
    return TrainBatch(
        **{
            column.name: pad_sequence(
                [torch.tensor(getattr(row, column.name)) for row in rows],
                batch_first=True, padding_value=fill.get(column.name, 0),
            )
            for column in fields(TrainBatch)
        }
    )  # fmt: skip
