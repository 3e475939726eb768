"""How much each token of a train step weighs: from the lengths of its rollouts, the weight of each one's tokens.

Weights are those of the whole train step, so that the losses of its micro-batches, on any rank, add up to its loss.
"""

from __future__ import annotations

from collections.abc import Sequence


def token_mean(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """All tokens weigh alike, so a rollout weighs by its length (DAPO, https://arxiv.org/abs/2503.14476, eq. 12)."""
    return [1 / max(1, sum(lengths))] * len(lengths)


def sequence_mean(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """All rollouts weigh alike, whatever their lengths (GRPO, https://arxiv.org/abs/2402.03300, eq. 3).

    Short answers are heard beside long ones; a token of a long wrong answer is punished less than one of a short wrong
    answer (which Dr. GRPO warns of).
    """
    return [1 / (len(lengths) * max(1, length)) for length in lengths]


def constant(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """All tokens of all train steps weigh alike: divided by rollouts times the longest possible one.

    Neither length nor the other rollouts' lengths bias a token. Source: Dr. GRPO, https://arxiv.org/abs/2503.20783.
    """
    return [1 / (len(lengths) * max_tokens)] * len(lengths)


AGGREGATIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
