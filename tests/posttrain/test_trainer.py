"""One optimizer step of the policy, on the tiny base model."""

import functools
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig, MixtralConfig

from posttrain.adapters import whole_model
from posttrain.config import Config, RLConfig, load_config, resolve_model
from posttrain.config.algorithms import ALGORITHMS
from posttrain.losses.corrections import CORRECTIONS
from posttrain.step_metrics import StepMetrics
from posttrain.trainer import PolicyTrainer, check_model
from rollouts.errors import CheckpointError, ConfigError
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, RolloutGroup

BASE = resolve_model("tiny:base")


def groups(finish_reason: str = "stop") -> list[RolloutGroup]:
    """Three groups of four completions of 0 to 20 tokens; one in six tokens is not the policy's own."""
    rng = random.Random(0)

    def rollout() -> Rollout:
        length = rng.randrange(21)
        tokens, mask = [rng.randrange(512) for _ in range(length)], [rng.random() < 0.83 for _ in range(length)]
        return Rollout(
            tokens, mask, [-rng.uniform(1, 15) * own for own in mask], [], finish_reason, "", reward=rng.random()
        )

    return [
        RolloutGroup(
            index, Prompt("p", ()), [rng.randrange(512) for _ in range(9 + index)], [rollout() for _ in "1234"]
        )
        for index in range(3)
    ]


def config_of(**settings: object) -> Config:
    sections = {key: settings.pop(key) for key in ("trainer", "lora") if key in settings}
    rl = {"learning_rate": 1e-3, "tokens_per_microbatch": 10_000, **settings}
    return Config.model_validate({"model": BASE, "dtype": "float32", "rl": rl, **sections})


def stepped(of: list[RolloutGroup] | None = None, **settings: object) -> tuple[StepMetrics, list[torch.Tensor]]:
    trainer = PolicyTrainer(BASE, BASE, config_of(**settings))
    metrics = trainer.train_step(*(of or groups()))
    return metrics, [parameter.detach().clone() for parameter in trainer.policy.parameters()]


@functools.cache
def plain(**settings: float) -> tuple[StepMetrics, list[torch.Tensor]]:
    """`stepped`, for what others are compared with."""
    return stepped(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens_per_microbatch": 60},
        {"share_prompts": True},
        {"share_prompts": True, "tokens_per_microbatch": 60},
        {"share_prompts": True, "tokens_per_microbatch": 1},
    ],
)
@pytest.mark.parametrize("kl", [{}, {"kl_coef": 0.1}])
def test_how_tokens_are_laid_out_does_not_change_the_step(settings: dict[str, object], kl: dict[str, float]) -> None:
    expected, parameters = plain(**kl)
    metrics, others = stepped(**kl, **settings)
    for name in ("loss", "grad_norm", "entropy", "kl", "clip_share", "max_ratio", "tokens"):
        assert getattr(metrics, name) == pytest.approx(getattr(expected, name), rel=1e-4), name
    # Adam's first step is the learning rate times the sign of the gradient, so compare where it is not mere noise.
    for parameter, other in zip(parameters, others, strict=True):
        assert (parameter - other).abs().mean() < 1e-6


def test_every_algorithm_makes_a_step_of_its_own() -> None:
    made = {name: stepped(algorithm=name, sampling={"max_tokens": 20}) for name in ALGORITHMS} | {"plain": plain()}
    assert all(metrics.grad_norm > 0 for metrics, _ in made.values())
    same = {
        (one, other)
        for (one, (_, mine)), (other, (_, its)) in itertools.combinations(made.items(), 2)
        if all(torch.equal(parameter, another) for parameter, another in zip(mine, its, strict=True))
    }
    assert same == {("cispo", "aipo")}  # which differ by a lower clip that the one may have


@pytest.mark.parametrize("correction", list(CORRECTIONS))
def test_a_correction_counts_the_tokens_whose_weight_it_cuts(correction: str) -> None:
    limits = {"correction_low": 0.5, "correction_high": 2.0}
    trainer = PolicyTrainer(BASE, BASE, config_of(advantage="dr_grpo", correction=correction, **limits))
    of, cut, tokens = near(trainer, groups()), 0, 0
    for group in of:
        for rollout in group.rollouts:
            stored_N, now_N = trainer.logprobs(replace(group, rollouts=[rollout]))
            ratios = (now_N - stored_N).exp()
            ratios = ratios.prod().expand_as(ratios) if correction.startswith("sequence") else ratios
            cut += int((ratios > 2).sum() + (ratios < 0.5).sum() * correction.endswith("mask"))
            tokens += len(ratios)
    metrics = trainer.train_step(*of)
    assert metrics.corrected_share == pytest.approx(cut / tokens)
    assert 0.05 < metrics.corrected_share < 0.95
    assert metrics.clip_share == 0  # the policy at the start of the step is the policy now
    assert plain()[0].corrected_share == 0


def near(trainer: PolicyTrainer, of: list[RolloutGroup]) -> list[RolloutGroup]:
    """The groups, sampled by a policy whose log-probabilities are up to 1 from the trainer's."""
    rng = random.Random(1)
    for group in of:
        for rollout in group.rollouts:
            _, now_N = trainer.logprobs(replace(group, rollouts=[rollout]))
            now = iter(now_N.tolist())
            rollout.logprobs = [next(now) - rng.uniform(-1, 1) if own else 0.0 for own in rollout.loss_mask]
    return of


def test_a_batch_without_a_loss_token_changes_nothing() -> None:
    metrics, parameters = stepped(truncated="mask", of=groups("length"))
    assert (metrics.loss, metrics.grad_norm, metrics.tokens) == (0, 0, 0)
    _, untouched = plain(learning_rate=1e-30)
    for parameter, other in zip(parameters, untouched, strict=True):
        torch.testing.assert_close(parameter, other)


def test_saving_memory_does_not_change_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, parameters = stepped(trainer={"gradient_checkpointing": False})
    monkeypatch.setattr("posttrain.policy.CHUNK", 7)
    metrics, others = stepped(trainer={"gradient_checkpointing": True})
    assert metrics.loss == pytest.approx(expected.loss, rel=1e-5)
    assert metrics.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for parameter, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(parameter, other, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_layers_and_head_make_the_same_step() -> None:
    expected, parameters = stepped(tokens_per_microbatch=60)
    for trainer in ({"compile": True}, {"compile": True, "gradient_checkpointing": False}):
        metrics, others = stepped(tokens_per_microbatch=60, trainer=trainer)
        for name in ("loss", "grad_norm", "entropy", "kl", "max_ratio", "tokens"):
            assert getattr(metrics, name) == pytest.approx(getattr(expected, name), rel=1e-4), name
        for parameter, other in zip(parameters, others, strict=True):
            assert (parameter - other).abs().mean() < 1e-6


def test_bfloat16_is_near_float32_and_keeps_float32_parameters() -> None:
    expected, _ = plain()
    metrics, parameters = stepped(trainer={"dtype": "bfloat16"})
    assert metrics.loss == pytest.approx(expected.loss, rel=0.1)
    assert metrics.loss != expected.loss
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def test_an_adapter_is_all_that_is_trained_published_and_saved(tmp_path: Path) -> None:
    config = config_of(lora={"rank": 4}, kl_coef=0.1)
    trainer = PolicyTrainer(BASE, BASE, config)
    first = trainer.train_step(*groups())
    assert first.loss == pytest.approx(plain(kl_coef=0.1)[0].loss, rel=1e-4)  # a new adapter changes nothing
    trainer.train_step(*groups())
    trainer.publish(str(tmp_path / "published"))
    (tmp_path / "saved").mkdir()
    trainer.save(str(tmp_path / "saved"))
    published, saved = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("published", "saved"))
    assert published.keys() == saved.keys()
    assert all("lora_" in name for name in saved)
    assert any(value.abs().sum() > 0 for name, value in saved.items() if "lora_B" in name)
    assert json.loads((tmp_path / "saved/adapter_config.json").read_text())["base_model_name_or_path"] == BASE

    resumed = PolicyTrainer(str(tmp_path / "saved"), BASE, config)
    resumed.load_optimizer(str(tmp_path / "saved"), 2)
    assert resumed.train_step(*groups()).loss == pytest.approx(trainer.train_step(*groups()).loss, rel=1e-5)
    expected = dict(trainer.policy.named_parameters())
    for name, parameter in resumed.policy.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-5, rtol=0)

    whole = AutoModelForCausalLM.from_pretrained(whole_model(tmp_path / "saved"), dtype=torch.float32)
    beneath = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(beneath, tmp_path / "saved")
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(whole(tokens).logits, adapted(tokens).logits, atol=1e-4, rtol=1e-4)
    assert whole_model(tmp_path / "saved") == str(tmp_path / "saved-merged")
    assert whole_model(BASE) == BASE


def test_an_adapter_without_the_model_beneath_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/model"}')
    with pytest.raises(CheckpointError, match="/gone/model"):
        whole_model(tmp_path)


def test_a_run_that_was_stopped_before_its_first_step_goes_on_as_a_fresh_one(tmp_path: Path) -> None:
    def trained(trainer: PolicyTrainer) -> list[torch.Tensor]:
        for _ in range(2):
            trainer.train_step(*groups())
        return [parameter.detach() for parameter in trainer.policy.parameters()]

    expected = trained(PolicyTrainer(BASE, BASE, config_of()))
    stopped = PolicyTrainer(BASE, BASE, config_of())
    stopped.save(str(tmp_path))
    assert load_file(tmp_path / "optimizer/state.safetensors") == {}
    resumed = PolicyTrainer(str(tmp_path), BASE, config_of())
    resumed.load_optimizer(str(tmp_path), 0)
    for trainer in (stopped, resumed):
        assert all(map(torch.equal, trained(trainer), expected))


def test_a_step_moves_the_policy() -> None:
    _, parameters = plain()
    _, untouched = plain(learning_rate=1e-30)
    assert all((a != b).any() for a, b in zip(parameters, untouched, strict=True))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_warm_up_begins_at_zero_whatever_the_schedule(schedule: str) -> None:
    trainer = PolicyTrainer(BASE, BASE, config_of(lr_scheduler_type=schedule, warmup_steps=4, steps=100))
    assert [trainer.train_step(*groups()).learning_rate for _ in range(3)] == pytest.approx([0, 2.5e-4, 5e-4])


def test_llama_4_and_models_with_their_head_elsewhere(tmp_path: Path) -> None:
    """Log-probabilities of a small random mixture of experts are those of a plain forward pass."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "intermediate_size_mlp": 64, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2}
    torch.manual_seed(0)
    model = Llama4ForCausalLM(Llama4TextConfig(vocab_size=512, pad_token_id=0, **sizes))
    model.save_pretrained(tmp_path)
    Renderer(BASE).tokenizer.save_pretrained(tmp_path)
    check_model(str(tmp_path), config_of().rl)
    with pytest.raises(ConfigError, match="has layers of chunked_attention"):
        check_model(str(tmp_path), config_of(share_prompts=True).rl)
    trainer = PolicyTrainer(str(tmp_path), str(tmp_path), config_of())
    (group, *_) = of = groups()
    rollout = max(group.rollouts, key=lambda each: len(each.token_ids))
    tokens = torch.tensor([[*group.prompt_token_ids, *rollout.token_ids]])
    with torch.no_grad():
        plain_TV = model.eval()(tokens).logits[0, len(group.prompt_token_ids) - 1 : -1].log_softmax(-1)
    expected = plain_TV.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0][torch.tensor(rollout.loss_mask)]
    (_, own_N) = trainer.logprobs(replace(group, rollouts=[rollout]))
    torch.testing.assert_close(own_N, expected, atol=1e-5, rtol=0)
    assert trainer.train_step(*of).grad_norm > 0


def test_models_whose_weights_vllm_would_not_find_are_an_error_beforehand(tmp_path: Path) -> None:
    MixtralConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model: RL cannot send the weights of mixtral: "):
        check_model(str(tmp_path), RLConfig())


def test_logits_that_are_made_in_an_unknown_way_are_an_error_beforehand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "falcon_h1", "lm_head_multiplier": 0.5}')
    with pytest.raises(ConfigError, match=r"^model: falcon_h1 makes its logits by lm_head_multiplier, which is not"):
        check_model(str(tmp_path), RLConfig())


def test_prompts_are_shared_only_where_all_layers_attend_to_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "sliding_window": 512}')
    check_model(str(tmp_path), RLConfig())
    with pytest.raises(ConfigError, match=r"rl\.share_prompts"):
        check_model(str(tmp_path), RLConfig(share_prompts=True))
    check_model(BASE, load_config("tiny").rl)
