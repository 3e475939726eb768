"""Advantages: how much better a rollout was than could be expected, from the rewards of a train step.

Dimensions: P = prompts of the train step, G = rollouts of each. All of [P, G] to [P, G].
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
EPSILON = 1e-6
"""Added to standard deviations, which are the sample's (divided by one less than the count)."""


def grpo(rewards_PG: Tensor) -> Tensor:
    """Standardized within the group (DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1).

    Example: rewards `[[1, 0, 0, 1]]` give `[[0.866, -0.866, -0.866, 0.866]]`.
    """
    return dr_grpo(rewards_PG) / (rewards_PG.std(dim=1, keepdim=True) + EPSILON)


def dr_grpo(rewards_PG: Tensor) -> Tensor:
    """Centred within the group and not scaled, which removes the extra weight of very easy and very hard prompts.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.1.
    """
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def rloo(rewards_PG: Tensor) -> Tensor:
    """Less the mean of the *other* rollouts of the group, an unbiased baseline (https://arxiv.org/abs/2402.14740)."""
    size = rewards_PG.shape[1]
    return dr_grpo(rewards_PG) * size / (size - 1)


def reinforce_pp(rewards_PG: Tensor) -> Tensor:
    """Standardized over the whole train step: one baseline for all prompts, so a group may have a single rollout.

    Source: REINFORCE++, https://arxiv.org/abs/2501.03262.
    """
    return (rewards_PG - rewards_PG.mean()) / (rewards_PG.std() + EPSILON)


def reinforce_pp_baseline(rewards_PG: Tensor) -> Tensor:
    """Centred within the group, scaled over the whole train step (REINFORCE++-baseline, the same paper)."""
    centred_PG = dr_grpo(rewards_PG)
    return centred_PG / (centred_PG.std() + EPSILON)


ADVANTAGES = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def overlong_penalty(length: int, max_tokens: int, share: float) -> float:
    """What a long completion loses of its reward: from 0 to -1 over the last `share` of the tokens it may have.

    Source: DAPO's soft overlong punishment, https://arxiv.org/abs/2503.14476, eq. 13.

    Example: `overlong_penalty(90, 100, 0.2) == -0.5`.
    """
    buffer = share * max_tokens
    return min(0.0, (max_tokens - buffer - length) / buffer) if buffer else 0.0
