"""Off-policy corrections: what each token weighs because another policy sampled it.

The weight is the ratio of the trainer's own probability, at the start of the step, to the one that vLLM stored at
sampling: of an older version of the policy, computed by other kernels. Ratios above `high` (or below `low`) are cut, to
bound the variance. No gradient flows through it.

Dimensions: N = loss tokens of a micro-batch, laid end to end.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def token_truncate(log_ratios_N: Tensor, rollouts_N: Tensor, low: float, high: float) -> Tensor:
    """Each token's ratio, at most `high` (truncated importance sampling, https://fengyao.notion.site/off-policy-rl)."""
    return log_ratios_N.exp().clamp(max=high)


def token_mask(log_ratios_N: Tensor, rollouts_N: Tensor, low: float, high: float) -> Tensor:
    """Each token's ratio within `[low, high]`, else 0 (IcePop, https://arxiv.org/abs/2510.18855)."""
    return _masked(log_ratios_N.exp(), low, high)


def sequence_truncate(log_ratios_N: Tensor, rollouts_N: Tensor, low: float, high: float) -> Tensor:
    """The ratio of the whole rollout, the product of its tokens', at most `high`."""
    return _of_rollout(log_ratios_N, rollouts_N).clamp(max=high)


def sequence_mask(log_ratios_N: Tensor, rollouts_N: Tensor, low: float, high: float) -> Tensor:
    """The ratio of the whole rollout within `[low, high]`, else 0: the rollout is left out."""
    return _masked(_of_rollout(log_ratios_N, rollouts_N), low, high)


def _of_rollout(log_ratios_N: Tensor, rollouts_N: Tensor) -> Tensor:
    sums_S = torch.zeros_like(log_ratios_N).index_add(0, rollouts_N, log_ratios_N)
    return sums_S[rollouts_N].exp()


def _masked(ratios_N: Tensor, low: float, high: float) -> Tensor:
    return ratios_N.where((ratios_N >= low) & (ratios_N <= high), torch.zeros_like(ratios_N))


CORRECTIONS = {
    "token_truncate": token_truncate,
    "token_mask": token_mask,
    "sequence_truncate": sequence_truncate,
    "sequence_mask": sequence_mask,
}
