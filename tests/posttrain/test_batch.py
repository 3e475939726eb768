"""Rows and padded micro-batches, value by value."""

import pytest
import torch

from posttrain.batch import Row, microbatches, rows_of
from rollouts.types import Prompt, Rollout, RolloutGroup


def rollout(tokens: list[int], reward: float, mask: list[bool] | None = None) -> Rollout:
    logprobs = [-0.25 * (index + 1) for index in range(len(tokens))]
    spans = [(0, len(tokens), 0)]
    return Rollout(tokens, mask or [True] * len(tokens), logprobs, spans, "stop", "", reward=reward)


def group(*rollouts: Rollout, prompt: list[int] | None = None) -> RolloutGroup:
    return RolloutGroup(0, Prompt("p", ()), prompt or [7, 8], list(rollouts))


def test_rows_are_prompt_and_completion_end_to_end() -> None:
    groups = [
        group(rollout([3, 4, 5], 1.0), rollout([6], 0.0)),
        group(rollout([9, 9], 0.2, [True, False]), rollout([1, 2], 0.6), prompt=[5]),
    ]
    rows = rows_of(groups, "dr_grpo", "token_mean")
    assert [row.token_ids for row in rows] == [[7, 8, 3, 4, 5], [7, 8, 6], [5, 9, 9], [5, 1, 2]]
    assert rows[0].loss_mask == [False, False, True, True, True]
    assert rows[2].loss_mask == [False, True, False]  # a token that the policy did not sample
    assert rows[0].logprobs == [0.0, 0.0, -0.25, -0.5, -0.75]
    assert [row.advantage for row in rows] == pytest.approx([0.5, -0.5, -0.2, 0.2])  # within each group
    assert [row.weight for row in rows] == [1 / 7] * 4  # seven sampled tokens in all
    assert groups[0].prompt_token_ids == [7, 8]


def test_a_sequence_mean_weighs_rollouts_alike() -> None:
    groups = [group(rollout([3, 4, 5], 1.0), rollout([6], 0.0)), group(rollout([9, 9], 0.2, [True, False]))]
    rows = rows_of(groups, "dr_grpo", "sequence_mean")
    assert [row.weight for row in rows] == pytest.approx([1 / 9, 1 / 3, 1 / 3])
    assert sum(row.weight * sum(row.loss_mask) for row in rows) == pytest.approx(1.0)


def test_advantages_are_of_the_chosen_kind() -> None:
    groups = [group(rollout([1], 1.0), rollout([1], 0.0), rollout([1], 0.0), rollout([1], 1.0))]
    rows = rows_of(groups, "grpo", "token_mean")
    assert [row.advantage for row in rows] == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)


def test_a_microbatch_is_padded_on_the_right() -> None:
    rows = [
        Row([7, 0, 3], [False, True, True], [0.0, -0.5, -1.0], -2.0, 0.25),
        Row([7, 8, 3, 4, 5], [False, False, True, False, True], [0.0, 0.0, -0.25, -0.5, -0.75], 1.5, 0.125),
    ]
    (batch,) = microbatches(rows, 10, pad_id=0)
    assert batch.token_ids.tolist() == [[7, 8, 3, 4, 5], [7, 0, 3, 0, 0]]  # the longest first
    assert batch.loss_mask.tolist() == [[False, False, True, False, True], [False, True, True, False, False]]
    assert batch.behaviour_logprobs.tolist() == [[0.0, 0.0, -0.25, -0.5, -0.75], [0.0, -0.5, -1.0, 0.0, 0.0]]
    assert batch.advantages.tolist() == [[0.0, 0.0, 1.5, 0.0, 1.5], [0.0, -2.0, -2.0, 0.0, 0.0]]
    assert batch.weights.tolist() == [[0.0, 0.0, 0.125, 0.0, 0.125], [0.0, 0.25, 0.25, 0.0, 0.0]]
    assert (batch.token_ids.dtype, batch.loss_mask.dtype) == (torch.int64, torch.bool)
    assert (batch.behaviour_logprobs.dtype, batch.advantages.dtype) == (torch.float32, torch.float32)


def row(length: int) -> Row:
    return Row([length] * length, [True] * length, [-1.0] * length, 1.0, 1.0)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1000, [[9, 6, 5, 5, 2, 1]]),
        (18, [[9, 6], [5, 5, 2], [1]]),
        (10, [[9], [6], [5, 5], [2, 1]]),
        (3, [[9], [6], [5], [5], [2], [1]]),  # a longer row goes alone
    ],
)
def test_microbatches_stay_below_the_limit_and_lose_no_row(limit: int, expected: list[list[int]]) -> None:
    batches = list(microbatches([row(length) for length in (5, 1, 9, 2, 6, 5)], limit, pad_id=0))
    assert [batch.loss_mask.sum(dim=1).tolist() for batch in batches] == expected
    for batch in batches:
        assert batch.token_ids.numel() <= limit or len(batch.token_ids) == 1


def test_no_rows_make_no_microbatch() -> None:
    assert list(microbatches([], 100, pad_id=0)) == []
