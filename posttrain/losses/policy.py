"""Policy losses, as what each token adds to the objective that is maximized.

Dimensions: N = loss tokens of a micro-batch, laid end to end; S = rollouts that they are of.

The ratio is that of the policy in training to a *proximal* policy. Without an off-policy correction this is the
behaviour policy, whose log-probabilities vLLM stored at sampling; with one it is the trainer's own policy at the start
of the step (decoupled PPO, https://arxiv.org/abs/2110.00641), and `corrections` weighs the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Tokens:
    """The loss tokens of a micro-batch: [N] each."""

    logprobs: Tensor  # of the policy in training, with gradient
    proximal_logprobs: Tensor  # of the policy that the ratio is taken against
    advantages: Tensor  # of each token's rollout
    rollouts: Tensor  # which of the S rollouts each is of, from 0; int64

    @property
    def ratios(self) -> Tensor:
        """Of each token's probability to that under the proximal policy, with gradient."""
        return (self.logprobs - self.proximal_logprobs).exp()


@dataclass(frozen=True)
class Objective:
    """What a loss gives: [N] each."""

    values: Tensor  # to be weighed, summed and maximized
    clipped: Tensor  # whether the clip changed the token's gradient; bool


def mean_by_rollout(values_N: Tensor, rollouts_N: Tensor) -> Tensor:
    """Each token gets the mean over its rollout."""
    sums_S = torch.zeros_like(values_N).index_add(0, rollouts_N, values_N)  # N is at least S
    counts_S = torch.zeros_like(values_N).index_add(0, rollouts_N, torch.ones_like(values_N))
    return (sums_S / counts_S.clamp(min=1))[rollouts_N]


def clip(tokens: Tokens, low: float, high: float) -> Objective:
    """PPO's clipped surrogate (https://arxiv.org/abs/1707.06347, eq. 7), with DAPO's wider upper clip if high > low."""
    return _surrogate(tokens.ratios, tokens.advantages, low, high)


def gspo(tokens: Tokens, low: float, high: float) -> Objective:
    """The same with one ratio for a whole rollout, the geometric mean of its tokens'.

    To be clipped much closer to 1 than single tokens. Meant for `sequence_mean`. Each token has the gradient of its own
    probability, so that a correction can weigh it; where all of a rollout weigh alike that makes no difference. Source:
    GSPO, https://arxiv.org/abs/2507.18071, eq. 5 to 7 and, by tokens, 13 and 14.
    """
    mean_N = mean_by_rollout(tokens.logprobs - tokens.proximal_logprobs, tokens.rollouts).detach()
    own_N = tokens.logprobs - tokens.logprobs.detach()
    return _surrogate((mean_N + own_N).exp(), tokens.advantages, low, high)


def _surrogate(ratios_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Objective:
    free_N, clipped_N = ratios_N * advantages_N, ratios_N.clamp(1 - low, 1 + high) * advantages_N
    return Objective(torch.minimum(free_N, clipped_N), clipped_N < free_N)


def cispo(tokens: Tokens, low: float, high: float) -> Objective:
    """Clips the weight and not the token: every token keeps a gradient, also where its ratio is far off.

    Source: CISPO of MiniMax-M1, https://arxiv.org/abs/2506.13585, eq. 4 and 5.
    """
    ratios_N = tokens.ratios.detach()
    weights_N = ratios_N.clamp(1 - low, 1 + high)
    return Objective(weights_N * tokens.advantages * tokens.logprobs, weights_N != ratios_N)


def aipo(tokens: Tokens, low: float, high: float) -> Objective:
    """The policy gradient weighed by the importance ratio to the behaviour policy, capped at `1 + high`; no lower clip.

    Source: AIPO of LlamaRL, https://arxiv.org/abs/2505.24034, where the cap is called rho.
    """
    return cispo(tokens, 1.0, high)


LOSSES = {"clip": clip, "gspo": gspo, "cispo": cispo, "aipo": aipo}
