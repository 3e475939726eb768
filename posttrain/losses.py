"""Advantages and policy losses: pure functions of tensors.

Dimensions: G = rollouts of a group, N = sampled tokens of a micro-batch, laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


def grpo_advantages(rewards_G: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Rewards standardized within their group (DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1).

    Example: rewards `[1, 0, 0, 1]` give `[0.866, -0.866, -0.866, 0.866]` (the sample's standard deviation, as in TRL).
    """
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + epsilon)


def dr_grpo_advantages(rewards_G: Tensor) -> Tensor:
    """Rewards centred, not scaled, which removes the weight on very easy and very hard prompts.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.1.
    """
    return rewards_G - rewards_G.mean()


ADVANTAGES = {"grpo": grpo_advantages, "dr_grpo": dr_grpo_advantages}


def token_mean(lengths: Sequence[int]) -> list[float]:
    """The weight of each token of each rollout of a train step: alike for all (DAPO, eq. 12).

    A rollout counts by its length. Source: https://arxiv.org/abs/2503.14476.
    """
    return [1 / sum(lengths)] * len(lengths)


def sequence_mean(lengths: Sequence[int]) -> list[float]:
    """The weight of each token of each rollout of a train step: alike for all rollouts, whatever their lengths.

    Short answers are heard beside long ones; a token of a long wrong answer is punished less than one of a short wrong
    answer (which Dr. GRPO warns of). Source: GRPO, https://arxiv.org/abs/2402.03300, eq. 3.
    """
    return [1 / (len(lengths) * max(1, length)) for length in lengths]


AGGREGATIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean}


@dataclass(frozen=True)
class PolicyLoss:
    """A loss to call `backward` on, and sums over tokens for the metrics."""

    loss: Tensor  # scalar
    clipped: Tensor  # scalar: tokens whose gradient the clip removed
    kl: Tensor  # scalar: sum of the k3 estimate of KL(behaviour || policy)
    max_ratio: Tensor  # scalar


def clipped_policy_loss(
    logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """The clipped surrogate of PPO (https://arxiv.org/abs/1707.06347, eq. 7) with DAPO's wider upper clip.

    The ratio is taken against the behaviour policy's log-probabilities as vLLM sampled them, so tokens of an older
    policy version are weighed right. The weights are those of the whole train step, so that the losses of its
    micro-batches add up to its loss.

    Args:
        logprobs_N: of the policy in training, with gradient.
        behaviour_logprobs_N: stored at sampling.
        advantages_N: of each token's rollout.
        weights_N: of each token, see `AGGREGATIONS`.
        clip_low: the ratio is not rewarded for falling below `1 - clip_low`.
        clip_high: nor for rising above `1 + clip_high`.
    """
    log_ratio = logprobs_N - behaviour_logprobs_N
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages_N, clipped_ratio * advantages_N)
    with torch.no_grad():
        clipped = (clipped_ratio * advantages_N < ratio * advantages_N).sum()
        kl = (ratio - 1 - log_ratio).sum()
        max_ratio = ratio.max()
    return PolicyLoss(-(surrogate * weights_N).sum(), clipped, kl, max_ratio)


def kl_penalty(logprobs_N: Tensor, ref_logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference), weighted by token (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = ref_logprobs_N - logprobs_N
    return ((log_ratio.exp() - 1 - log_ratio) * weights_N).sum()
