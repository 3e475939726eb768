"""Estimates of KL(policy || other) from the tokens that the policy sampled (http://joschu.net/blog/kl-approx.html).

Dimensions: N = loss tokens of a micro-batch, laid end to end. The gradient flows through the policy's logprobs.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def k1(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """The log-ratio: unbiased, of high variance. Its expected gradient is 0: to look at, not to train on."""
    return logprobs_N - other_logprobs_N


def k2(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """Half its square: biased in value; its gradient on the policy's own samples is that of the KL divergence."""
    return 0.5 * (logprobs_N - other_logprobs_N).square()


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """Unbiased and never negative; its gradient on the policy's own samples is that of KL(other || policy)."""
    log_ratio_N = other_logprobs_N - logprobs_N
    return log_ratio_N.exp() - 1 - log_ratio_N


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
