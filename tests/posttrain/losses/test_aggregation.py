"""The weights of tokens."""

import pytest

from posttrain.losses.aggregation import AGGREGATIONS, constant, sequence_mean, token_mean


def test_weights() -> None:
    assert token_mean([3, 1], 10) == [0.25, 0.25]
    assert sequence_mean([4, 1], 10) == [0.125, 0.5]
    assert constant([4, 1], 10) == [0.05, 0.05]
    assert sequence_mean([0, 2], 10) == [0.5, 0.25]  # a rollout without a sampled token has nothing to weigh
    assert token_mean([0, 0], 10) == [1.0, 1.0]


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean"])
def test_a_mean_weighs_one_in_all(name: str) -> None:
    lengths = [5, 2, 9]
    weights = AGGREGATIONS[name](lengths, 20)
    assert sum(weight * length for weight, length in zip(weights, lengths, strict=True)) == pytest.approx(1.0)


def test_which_weigh_a_token_by_its_rollout_and_which_by_its_batch() -> None:
    """The bias of each: GRPO's by the own length, DAPO's by the others', Dr. GRPO's by neither."""
    short, long = [10, 10], [10, 90]
    changes = {name: weights(long, 100)[0] != weights(short, 100)[0] for name, weights in AGGREGATIONS.items()}
    assert changes == {"token_mean": True, "sequence_mean": False, "constant": False}
    differs = {name: len(set(weights(long, 100))) == 2 for name, weights in AGGREGATIONS.items()}
    assert differs == {"token_mean": False, "sequence_mean": True, "constant": False}
