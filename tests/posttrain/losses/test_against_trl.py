"""Our losses beside TRL's, on the same tensors: TRL's own `GRPOTrainer` computes the loss, fed with given logprobs."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.losses.advantages import ADVANTAGES
from posttrain.losses.aggregation import AGGREGATIONS
from posttrain.losses.corrections import CORRECTIONS
from posttrain.losses.kl import k3
from posttrain.losses.policy import LOSSES, Tokens

LENGTHS = [3, 9, 1, 12, 12, 5]
LONGEST = 12


class Case:
    """Right-padded completions [B, T] with log-probabilities of four policies."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shape = (len(LENGTHS), LONGEST)
        self.mask = torch.arange(LONGEST)[None, :] < torch.tensor(LENGTHS)[:, None]
        self.logprobs = (-torch.rand(shape, dtype=torch.float64) * 3).requires_grad_()
        self.old = self.logprobs.detach() + 0.3 * torch.randn(shape, dtype=torch.float64)
        self.reference = self.logprobs.detach() + 0.3 * torch.randn(shape, dtype=torch.float64)
        self.advantages = ADVANTAGES["grpo"](torch.tensor([[1.0, 0, 0], [0, 1, 1]], dtype=torch.float64)).flatten()


def trl_loss(case: Case, weights: torch.Tensor | None, **settings: Any) -> torch.Tensor:
    """The loss that TRL computes, with as much of its trainer as that takes."""
    from trl import GRPOTrainer

    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value)
    trainer = SimpleNamespace(
        **({"importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.28} | settings),
        args=args,
        accelerator=accelerator,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled=False,
        model=torch.nn.Module(),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (case.logprobs, torch.zeros_like(case.old), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(len(LENGTHS), LONGEST, dtype=torch.int64),
        "completion_mask": case.mask.long(),
        "advantages": case.advantages,
        "old_per_token_logps": case.old,
        "ref_per_token_logps": case.reference,
        "importance_sampling_ratio": weights,
        "num_items_in_batch": case.mask.sum(),
    }
    loss: torch.Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[arg-type]
    return loss


def our_loss(
    case: Case, loss: str, aggregation: str, low: float, high: float, beta: float, weights: torch.Tensor | None
) -> torch.Tensor:
    row_N, _ = case.mask.nonzero(as_tuple=True)
    tokens = Tokens(case.logprobs[case.mask], case.old[case.mask], case.advantages[row_N], row_N)
    weights_N = torch.tensor(AGGREGATIONS[aggregation](LENGTHS, LONGEST), dtype=torch.float64)[row_N]
    values_N = LOSSES[loss](tokens, low, high).values
    if weights is not None:
        values_N = values_N * weights[case.mask]
    return ((beta * k3(tokens.logprobs, case.reference[case.mask]) - values_N) * weights_N).sum()


@pytest.mark.parametrize(
    ("settings", "loss", "aggregation", "low", "high"),
    [
        ({"loss_type": "grpo"}, "clip", "sequence_mean", 0.2, 0.28),
        ({"loss_type": "grpo", "beta": 0.1}, "clip", "sequence_mean", 0.2, 0.28),
        ({"loss_type": "dapo"}, "clip", "token_mean", 0.2, 0.28),
        ({"loss_type": "dapo", "beta": 0.1}, "clip", "token_mean", 0.2, 0.28),
        ({"loss_type": "dr_grpo"}, "clip", "constant", 0.2, 0.28),
        ({"loss_type": "cispo", "epsilon_high": 1.2}, "cispo", "token_mean", 1.0, 0.2),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
            "gspo", "sequence_mean", 0.03, 0.04,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("correction", ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_same_loss_and_gradient(
    settings: dict[str, Any], loss: str, aggregation: str, low: float, high: float, correction: str
) -> None:
    case = Case()
    weights = None
    if correction != "none":
        sampled = case.old + 0.4 * torch.randn_like(case.old)
        row_N, _ = case.mask.nonzero(as_tuple=True)
        weights = torch.zeros_like(case.old)
        weights[case.mask] = CORRECTIONS[correction]((case.old - sampled)[case.mask], row_N, 0.5, 2.0)
    theirs = trl_loss(case, weights, **settings)
    (their_gradient,) = torch.autograd.grad(theirs, case.logprobs)
    ours = our_loss(case, loss, aggregation, low, high, settings.get("beta", 0.0), weights)
    (our_gradient,) = torch.autograd.grad(ours, case.logprobs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    if loss == "gspo" and correction.startswith("token"):
        # TRL spreads the weight of a token over all of its rollout; with ours a token that is left out has no gradient.
        left_out = case.mask & (weights == 0)
        assert (our_gradient[left_out] == 0).all()
        assert left_out.any() == (correction == "token_mask")
        assert left_out.any() == (their_gradient[left_out] != 0).any()
    else:
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-12, atol=1e-15)
    assert our_gradient.abs().sum() > 0
