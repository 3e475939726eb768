"""Rows and padded micro-batches, value by value."""

import pytest
import torch
from transformers import AutoConfig
from transformers.masking_utils import create_causal_mask

from posttrain.batch import Row, TrainBatch, microbatches, rows_of
from posttrain.config import RLConfig, resolve_model
from rollouts.types import Prompt, Rollout, RolloutGroup


def settings(**changes: object) -> RLConfig:
    return RLConfig.model_validate({"advantage": "dr_grpo", "sampling": {"max_tokens": 10}, **changes})


def rollout(tokens: list[int], reward: float, mask: list[bool] | None = None, finish_reason: str = "stop") -> Rollout:
    logprobs = [-0.25 * (index + 1) for index in range(len(tokens))]
    spans = [(0, len(tokens), 0)]
    return Rollout(tokens, mask or [True] * len(tokens), logprobs, spans, finish_reason, "", reward=reward)


def group(*rollouts: Rollout, prompt: list[int] | None = None) -> RolloutGroup:
    return RolloutGroup(0, Prompt("p", ()), prompt or [7, 8], list(rollouts))


def row(prompt: list[int], completion: Rollout, advantage: float = 1.0, weight: float = 1.0) -> Row:
    made = Row.of_prompt(prompt)
    made.append(completion, advantage, weight)
    return made


def test_rows_are_prompt_and_completion_end_to_end() -> None:
    groups = [
        group(rollout([3, 4, 5], 1.0), rollout([6], 0.0)),
        group(rollout([9, 9], 0.2, [True, False]), rollout([1, 2], 0.6), prompt=[5]),
    ]
    rows = rows_of(groups, settings())
    assert [row.token_ids for row in rows] == [[7, 8, 3, 4, 5], [7, 8, 6], [5, 9, 9], [5, 1, 2]]
    assert rows[0].loss_mask == [False, False, True, True, True]
    assert rows[2].loss_mask == [False, True, False]  # a token that the policy did not sample
    assert rows[0].behaviour_logprobs == [0.0, 0.0, -0.25, -0.5, -0.75]
    assert [row.advantages[row.prompt_length] for row in rows] == pytest.approx([0.5, -0.5, -0.2, 0.2])  # in each group
    assert rows[0].weights == [0, 0] + [1 / 7] * 3  # seven sampled tokens in all
    assert rows[2].weights == [0, 1 / 7, 0]
    assert rows[0].segments == [0, 0, 1, 1, 1]
    assert rows[0].positions == [0, 1, 2, 3, 4]
    assert rows[0].previous == [0, 0, 1, 2, 3]
    assert groups[0].prompt_token_ids == [7, 8]


def test_a_sequence_mean_weighs_rollouts_alike() -> None:
    groups = [
        group(rollout([3, 4, 5], 1.0), rollout([6], 0.0)),
        group(rollout([9, 9], 0.2, [True, False]), rollout([1, 1], 0.0)),
    ]
    rows = rows_of(groups, settings(loss_aggregation="sequence_mean"))
    assert [max(row.weights) for row in rows] == pytest.approx([1 / 12, 1 / 4, 1 / 4, 1 / 8])
    assert sum(sum(row.weights) for row in rows) == pytest.approx(1.0)


def test_advantages_are_of_the_chosen_kind() -> None:
    groups = [group(rollout([1], 1.0), rollout([1], 0.0), rollout([1], 0.0), rollout([1], 1.0))]
    rows = rows_of(groups, settings(advantage="grpo"))
    assert [row.advantages[2] for row in rows] == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)


def test_a_truncated_rollout_may_be_left_out_of_the_loss() -> None:
    groups = [group(rollout([3, 4, 5], 0.0, finish_reason="length"), rollout([6], 1.0))]
    truncated, other = rows_of(groups, settings(truncated="mask"))
    assert truncated.loss_mask == [False] * 5
    assert truncated.weights == [0.0] * 5
    assert other.weights == [0, 0, 1.0]
    assert other.advantages == [0, 0, 0.5]  # it is still compared with
    assert groups[0].rollouts[0].loss_mask == [True] * 3
    assert rows_of(groups, settings())[0].loss_mask == [False] * 2 + [True] * 3


def test_overlong_rollouts_lose_reward() -> None:
    groups = [group(rollout([3] * 9, 1.0), rollout([6], 1.0))]
    long, short = rows_of(groups, settings(overlong_share=0.2))
    assert (long.advantages[2], short.advantages[2]) == pytest.approx((-0.25, 0.25))


def test_which_rollout_a_loss_token_is_of() -> None:
    groups = [group(rollout([3, 4], 1.0), rollout([], 0.0), rollout([5], 0.0)), group(*[rollout([9], 1.0)] * 3)]
    batch = TrainBatch.of(rows_of(groups, settings(share_prompts=True, tokens_per_microbatch=6)), pad_id=0)
    assert batch.token_ids[batch.loss_mask].tolist() == [3, 4, 5, 9, 9, 9]
    assert batch.rollouts().tolist() == [0, 0, 1, 2, 3, 4]


def test_completions_share_a_row_as_long_as_they_fit() -> None:
    groups = [group(rollout([3, 4], 1.0), rollout([], 0.0), rollout([5], 0.0), rollout([6, 6, 6], 0.0))]
    first, second = rows_of(groups, settings(share_prompts=True, tokens_per_microbatch=6))
    assert first.token_ids == [7, 8, 3, 4, 5]
    assert first.segments == [0, 0, 1, 1, 2]  # an empty completion has no token to see another
    assert first.positions == [0, 1, 2, 3, 2]
    assert first.previous == [0, 0, 1, 2, 1]
    assert first.advantages == [0, 0, 0.75, 0.75, -0.25]
    assert (second.token_ids, second.segments) == ([7, 8, 6, 6, 6], [0, 0, 1, 1, 1])
    (long,) = rows_of([group(rollout([9] * 20, 1.0))], settings(share_prompts=True, tokens_per_microbatch=6))
    assert len(long.token_ids) == 22


def test_a_completion_sees_its_prompt_and_itself() -> None:
    (row,) = rows_of(
        [group(rollout([3, 4], 1.0), rollout([5], 0.0))], settings(share_prompts=True, tokens_per_microbatch=9)
    )
    (plain,) = rows_of([group(rollout([3], 1.0))], settings())
    batch = TrainBatch.of([row, plain], pad_id=0)
    mask = batch.attention_mask()
    assert mask is not None
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert mask[1, 0].any(dim=-1).all()  # padding sees something, or its softmax would be of nothing
    batch = TrainBatch.of([plain], pad_id=0)
    assert batch.attention_mask() is None


def test_a_microbatch_is_padded_on_the_right() -> None:
    rows = [
        row([7], rollout([0, 3], 1.0), -2.0, 0.25),
        row([7, 8], rollout([3, 4, 5], 1.0, [True, False, True]), 1.5, 0.125),
    ]
    (part,) = microbatches(rows, 10)
    batch = TrainBatch.of(part, pad_id=0)
    assert batch.token_ids.tolist() == [[7, 8, 3, 4, 5], [7, 0, 3, 0, 0]]  # the longest first
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4]] * 2  # counted on over padding
    model = AutoConfig.from_pretrained(resolve_model("tiny:base"), attn_implementation="sdpa")
    embeddings = torch.zeros(2, 5, model.hidden_size)
    mask = create_causal_mask(model, embeddings, None, past_key_values=None, position_ids=batch.positions)
    assert mask is None  # plainly causal, for which attention has its fastest kernels
    assert batch.loss_mask.tolist() == [[False, False, True, False, True], [False, True, True, False, False]]
    assert batch.behaviour_logprobs.tolist() == [[0.0, 0.0, -0.25, -0.5, -0.75], [0.0, -0.25, -0.5, 0.0, 0.0]]
    assert batch.advantages.tolist() == [[0.0, 0.0, 1.5, 0.0, 1.5], [0.0, -2.0, -2.0, 0.0, 0.0]]
    assert batch.weights.tolist() == [[0.0, 0.0, 0.125, 0.0, 0.125], [0.0, 0.25, 0.25, 0.0, 0.0]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, -1, -1]]
    assert (batch.token_ids.dtype, batch.loss_mask.dtype) == (torch.int64, torch.bool)
    assert (batch.behaviour_logprobs.dtype, batch.advantages.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1000, [[9, 6, 5, 5, 3, 2]]),
        (18, [[9, 6], [5, 5, 3], [2]]),
        (10, [[9], [6], [5, 5], [3, 2]]),
        (3, [[9], [6], [5], [5], [3], [2]]),  # a longer row goes alone
    ],
)
def test_microbatches_stay_below_the_limit_and_lose_no_row(limit: int, expected: list[list[int]]) -> None:
    parts = microbatches([row([1], rollout([2] * length, 1.0)) for length in (4, 1, 8, 2, 5, 4)], limit)
    assert [[len(each.token_ids) for each in part] for part in parts] == expected
    for batch in (TrainBatch.of(part, pad_id=0) for part in parts):
        assert batch.token_ids.numel() <= limit or len(batch.token_ids) == 1


def test_no_rows_make_no_microbatch() -> None:
    assert microbatches([], 100) == []
