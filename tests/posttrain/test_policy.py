"""Log-probabilities of the policy against those of the model's own forward pass."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.batch import TrainBatch, rows_of
from posttrain.config import RLConfig
from posttrain.policy import Policy, scale_and_cap
from rollouts.errors import ConfigError
from rollouts.types import Prompt, Rollout, RolloutGroup

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "special"),
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("gemma3_text", {"final_logit_softcapping": 3.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("granitemoe", {"logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
@pytest.mark.parametrize("save_memory", [False, True])
def test_the_head_does_what_the_models_own_does(kind: str, special: dict[str, float], save_memory: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **special)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    prompt, answer = [5, 9, 7], [11, 3, 20, 42]
    rollouts = [Rollout(answer, [True] * 4, [-1.0] * 4, [], "stop", "", reward=float(index)) for index in range(2)]
    batch = TrainBatch.of(rows_of([RolloutGroup(0, Prompt("p", ()), prompt, rollouts)], RLConfig()), 0)
    found, entropy = Policy(model, 0.7, save_memory)(batch)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, 2:-1]
        logprobs = torch.log_softmax(logits / 0.7, dim=-1)
    plain = torch.log_softmax(model.lm_head(model.base_model(torch.tensor([prompt + answer]))[0][0, 2:-1]) / 0.7, -1)
    expected = logprobs[torch.arange(4), answer]
    torch.testing.assert_close(found.view(2, 4), expected.expand(2, 4), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy[:4], -(logprobs.exp() * logprobs).sum(-1), atol=1e-4, rtol=1e-4)
    assert ((plain[torch.arange(4), answer] - expected).abs().max() > 0.1) == bool(special)  # else it tests nothing


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="hyperclovax makes its logits by logits_scaling"):  # it multiplies
        scale_and_cap(AutoConfig.for_model("hyperclovax", logits_scaling=2.0))
    assert scale_and_cap(AutoConfig.for_model("hyperclovax", logits_scaling=1.0)) == (1.0, None)
    assert scale_and_cap(AutoConfig.for_model("gemma2")) == (1.0, 30.0)
