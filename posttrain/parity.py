"""Whether two computations of the same tokens' log-probabilities agree, and which mistake explains it if they do not.

The engine stores a log-probability with each token that it samples, and the trainer divides by it. A difference between
the two computations is therefore a factor of every importance ratio, whatever the policies are.
Dimensions: N = sampled tokens, V = the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from posttrain.config import RLConfig


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that rounding explains, in nats."""

    mean: float
    largest: float


TOLERANCES = {"float32": Tolerance(1e-4, 1e-4), "bfloat16": Tolerance(0.02, 0.5)}
"""By the engine's number format, which is the trainer's as well unless `trainer.dtype` says otherwise.

float32: two correct kernels differ by the order in which they add, some 1e-6. bfloat16: it has 8 bits, so that a logit
of 20 is rounded by up to 0.06, and so is every layer's output on the way to it. The mean is over many tokens and
steady; the largest one is of an unlikely token, and grows with how many are looked at.
"""

MAX_DRIFT = {"float32": 1e-3, "bfloat16": 0.05}
"""`rl.max_drift` where it is null: the mean that stops a run. Measured on the tiny model: 2e-7 in float32; in bfloat16
0.002 to 0.003 on weights that are stored as bfloat16, up to 0.008 on others, which the engine has to round."""

EXPLAINED = 0.1
"""A mistake explains a difference if assuming it leaves no more than this share of the mean."""


@dataclass(frozen=True)
class Difference:
    """Of two computations, over so many tokens, in nats."""

    mean: float
    largest: float
    tokens: int

    @classmethod
    def of(cls, left_N: torch.Tensor, right_N: torch.Tensor) -> Self:
        """The absolute difference of two tensors of log-probabilities, token by token."""
        apart_N = (left_N.double() - right_N.double()).abs()
        if not len(apart_N):
            return cls(0.0, 0.0, 0)
        return cls(apart_N.mean().item(), apart_N.max().item(), len(apart_N))

    def within(self, tolerance: Tolerance) -> bool:
        """Whether rounding explains it; what is not a number, nothing explains."""
        return self.mean <= tolerance.mean and self.largest <= tolerance.largest

    def __str__(self) -> str:
        return f"mean {self.mean:.2g}, largest {self.largest:.2g} over {self.tokens} tokens"


@dataclass(frozen=True)
class Hypothesis:
    """A mistake, as the way in which the engine's log-probabilities would come out of the trainer's weights.

    Example: `Hypothesis("rl.sampling.top_p=0.5: …", temperature=1.0, top_p=0.5)`
    """

    cause: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    dropout: bool = True  # as the model has it in training


def hypotheses(config: RLConfig) -> list[Hypothesis]:
    """What may be wrong where engine and trainer disagree, under these settings."""
    sampling = config.sampling
    found = [
        Hypothesis(
            "the trainer's layout of rows (rl.share_prompts, padding): a plain forward pass agrees with the engine",
            sampling.temperature,
        ),
        Hypothesis(
            "dropout: the model has it in training and the engine has not; set it to 0 in the model's config.json",
            sampling.temperature,
            dropout=False,
        ),
    ]
    if sampling.temperature != 1:
        why = "the engine's log-probabilities are at temperature 1; it must run with logprobs_mode processed_logprobs"
        found.append(Hypothesis(f"rl.sampling.temperature={sampling.temperature:g}: {why}", 1.0))
    if cut := truncation(config):
        why = "the engine renormalizes over the tokens that are left, which biases every importance ratio"
        found.append(
            Hypothesis(
                f"{cut}: {why}; set top_p to 1 and top_k to -1", sampling.temperature, sampling.top_p, sampling.top_k
            )
        )
    return found


def truncation(config: RLConfig) -> str:
    """The settings that leave tokens out of the engine's distribution, as `key=value`; empty if none does."""
    sampling = config.sampling
    cut = {
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "top_k": sampling.top_k if sampling.top_k > 0 else None,
    }
    return ", ".join(f"rl.sampling.{name}={value:g}" for name, value in cut.items() if value is not None)


def probable_causes(config: RLConfig) -> str:
    """What a drift within a run most likely comes from."""
    rest = (
        "weights that an update did not reach, log-probabilities at another temperature, an engine in a lower precision"
    )
    cut = truncation(config)
    return f"{cut}, which the engine renormalizes and the trainer does not" if cut else rest


def explain(
    stored_N: torch.Tensor, difference: Difference, under: Sequence[tuple[str, torch.Tensor]], dtype: str
) -> str:
    """The cause of a difference.

    Args:
        stored_N: the engine's log-probabilities.
        difference: theirs to the trainer's.
        under: causes, with the log-probabilities [N] as each would make them.
        dtype: of the engine, as configured.
    """
    left = {cause: Difference.of(stored_N, assumed_N) for cause, assumed_N in under}
    best = min(left, key=lambda cause: left[cause].mean, default=None)
    if best is not None and (left[best].within(TOLERANCES[dtype]) or left[best].mean <= EXPLAINED * difference.mean):
        return f"{best} (this assumed, what is left is: {left[best]})"
    if dtype == "float32" and difference.within(TOLERANCES["bfloat16"]):
        return (
            "dtype: the differences are as large as bfloat16's; something in the engine computes in less than float32"
        )
    tried = "neither temperature, top-p, top-k, dropout nor the layout of rows explains it"
    return (
        f"{tried}; the engine may have other weights than the trainer (see the weight update), or another architecture"
    )


def token_logprobs(
    logits_NV: torch.Tensor, token_ids_N: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = -1
) -> torch.Tensor:
    """Log-probability of each token under its logits, renormalized over what top-k and then top-p leave: [N].

    A token that they leave out has -inf.
    """
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    sorted_NV, order_NV = logprobs_NV.sort(dim=-1, descending=True)
    if top_k > 0:
        sorted_NV[:, top_k:] = -torch.inf
        sorted_NV = torch.log_softmax(sorted_NV, dim=-1)
    if top_p < 1:
        probabilities_NV = sorted_NV.exp()
        before_NV = probabilities_NV.cumsum(-1) - probabilities_NV  # of the likelier ones
        sorted_NV = torch.log_softmax(sorted_NV.masked_fill(before_NV >= top_p, -torch.inf), dim=-1)
    kept_NV = torch.empty_like(sorted_NV).scatter(1, order_NV, sorted_NV)
    return kept_NV.gather(1, token_ids_N[:, None]).squeeze(1)
