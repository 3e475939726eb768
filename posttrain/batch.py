"""From rollout groups to the tensors of a train step.

Dimensions: B = rows of a micro-batch, T = tokens of its longest row, N = loss tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from posttrain.config import RLConfig
from posttrain.losses.advantages import ADVANTAGES, overlong_penalty
from posttrain.losses.aggregation import AGGREGATIONS
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

    @classmethod
    def of(cls, rows: Sequence[Row], pad_id: int) -> TrainBatch:
        """Pads the rows of a micro-batch; of none, one token of padding."""
        fill: dict[str, Any] = {"token_ids": pad_id, "segments": -1}
        batch = cls(
            **{
                column.name: pad_sequence(
                    [torch.tensor(getattr(row, column.name)) for row in rows or [Row.of_prompt([pad_id])]],
                    batch_first=True, padding_value=fill.get(column.name, 0),
                )
                for column in fields(cls)
            }
        )  # fmt: skip
        # Where positions start again, transformers sees another sequence: it would make a mask of [B, 1, T, T], with
        # which attention has no fast kernel. So padding is counted on.
        places_T = torch.arange(batch.positions.shape[1])
        return replace(batch, positions=torch.where(batch.segments < 0, places_T, batch.positions))

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on a device."""
        return TrainBatch(*(getattr(self, column.name).to(device) for column in fields(self)))

    def rollouts(self) -> torch.Tensor:
        """Which rollout of the micro-batch each of its N loss tokens is of, from 0: [N]."""
        row_N, token_N = self.loss_mask.nonzero(as_tuple=True)
        keys_N = row_N * (self.segments.max() + 1) + self.segments[row_N, token_N]
        return keys_N.unique(return_inverse=True)[1]

    def attention_mask(self) -> torch.Tensor | None:
        """Who sees whom, [B, 1, T, T]: the prompt and one's own completion, up to oneself. None: plainly causal."""
        if self.segments.max() <= 1:  # padding on the right needs no mask in a causal model
            return None
        keys, queries = self.segments[:, None, None, :], self.segments[:, None, :, None]
        return ((keys == 0) | (keys == queries)).tril()


def rows_of(groups: Sequence[RolloutGroup], config: RLConfig) -> list[Row]:
    """The rollouts of the groups of one train step as rows, with their advantages and the weights of their tokens.

    With `share_prompts` completions of a prompt share a row of at most `tokens_per_microbatch` tokens, in which the
    prompt stands once; else each completion has a row of its own. Which tokens count is as stored with the rollout, but
    for truncated ones that the configuration masks.
    """
    if config.truncated == "mask":
        groups = [
            replace(group, rollouts=[_unless_truncated(rollout) for rollout in group.rollouts]) for group in groups
        ]
    advantages = iter(_advantages(groups, config))
    lengths = [sum(rollout.loss_mask) for group in groups for rollout in group.rollouts]
    weights = iter(AGGREGATIONS[config.loss_aggregation](lengths, config.sampling.max_tokens))
    most_tokens = config.tokens_per_microbatch if config.share_prompts else 0
    rows: list[Row] = []
    for group in groups:
        row = None
        for rollout in group.rollouts:
            if row is None or len(row.token_ids) + len(rollout.token_ids) > most_tokens:
                row = Row.of_prompt(group.prompt_token_ids)
                rows.append(row)
            row.append(rollout, next(advantages), next(weights))
    return rows


def _unless_truncated(rollout: Rollout) -> Rollout:
    """The rollout, with no token in the loss if it was truncated."""
    truncated = rollout.finish_reason == "length"
    return replace(rollout, loss_mask=[False] * len(rollout.token_ids)) if truncated else rollout


def _advantages(groups: Sequence[RolloutGroup], config: RLConfig) -> list[float]:
    """The advantage of each rollout of each group."""
    rewards = [
        [
            rollout.reward + overlong_penalty(len(rollout.token_ids), config.sampling.max_tokens, config.overlong_share)
            for rollout in group.rollouts
        ]
        for group in groups
    ]
    values: list[float] = ADVANTAGES[config.advantage](torch.tensor(rewards, dtype=torch.float64)).flatten().tolist()
    return values


def microbatches(rows: Sequence[Row], tokens_per_microbatch: int, rank: int = 0, ranks: int = 1) -> list[list[Row]]:
    """Splits rows, longest first, into micro-batches of at most so many tokens (but at least one row) each, padded.

    Of several ranks each gets equally many, since they exchange something in every one: where rows are few they are
    smaller, and the last ones may hold nothing but padding.
    """
    if ranks > 1:
        tokens_per_microbatch = min(tokens_per_microbatch, sum(len(row.token_ids) for row in rows) // ranks)
    ordered = sorted(rows, key=lambda row: -len(row.token_ids))
    parts: list[list[Row]] = []
    while ordered:
        count = max(1, tokens_per_microbatch // len(ordered[0].token_ids))
        parts.append(ordered[:count])
        ordered = ordered[count:]
    parts += [[]] * (-len(parts) % ranks)
    return parts[rank::ranks]
