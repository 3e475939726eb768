"""What one train step reports; apart from the trainer, so that reading it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """What one train step did; rates and means are over its sampled tokens."""

    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float
    kl: float  # k3 estimate of KL(behaviour || policy): how far the policy has moved from the one that sampled
    clip_share: float
    corrected_share: float  # of tokens whose off-policy weight was truncated or masked
    max_ratio: float
    tokens: int
    padding_share: float
    seconds: float
