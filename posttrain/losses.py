"""Advantages and policy losses: pure functions of tensors.

Dimensions: G = rollouts of a group, N = sampled tokens of a micro-batch, laid end to end.
"""

from __future__ import annotations

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
    num_loss_tokens: int,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """The clipped surrogate of PPO (https://arxiv.org/abs/1707.06347, eq. 7) with DAPO's wider upper clip.

    The ratio is taken against the behaviour policy's log-probabilities as vLLM sampled them, so tokens of an older
    policy version are weighed right. The sum is divided by the token count of the whole batch, not of the
    micro-batch (DAPO's token mean, https://arxiv.org/abs/2503.14476, eq. 12).

    Args:
        logprobs_N: of the policy in training, with gradient.
        behaviour_logprobs_N: stored at sampling.
        advantages_N: of each token's rollout.
        num_loss_tokens: sampled tokens of the whole train step.
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
    return PolicyLoss(-surrogate.sum() / num_loss_tokens, clipped, kl, max_ratio)


def kl_penalty(logprobs_N: Tensor, ref_logprobs_N: Tensor, num_loss_tokens: int) -> Tensor:
    """The k3 estimate of KL(policy || reference), per token (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = ref_logprobs_N - logprobs_N
    return (log_ratio.exp() - 1 - log_ratio).sum() / num_loss_tokens
