"""Presets, files, overrides: the values that come out, and the exact line for each mistake."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from posttrain.config import (
    GROUP_RELATIVE,
    Config,
    RLConfig,
    config_hash,
    load_config,
    preset_names,
    resolve_data,
    resolve_model,
)
from posttrain.config.algorithms import ALGORITHMS
from posttrain.config.load import TINY_DATA
from posttrain.losses.advantages import ADVANTAGES
from posttrain.losses.aggregation import AGGREGATIONS
from posttrain.losses.corrections import CORRECTIONS
from posttrain.losses.kl import KL_ESTIMATORS
from posttrain.losses.policy import LOSSES
from rollouts.errors import ConfigError
from rollouts.types import Sampling

NAMES = ", ".join(repr(name) for name in list(ALGORITHMS)[:-1])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write x.yaml into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> str:
        Path("x.yaml").write_text(text)
        return "x.yaml"

    return write_text


def line_of(name: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_presets():
    assert {"gsm8k-tiny", "llama-3.2-1b", "tiny"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_comes_back_from_json(name):
    config = load_config(name)
    assert Config.model_validate(json.loads(json.dumps(config.resolved()))) == config


def test_tiny():
    config = load_config("tiny")
    assert (config.model, config.judge.model, config.dtype, config.threads) == ("tiny:base", "tiny:judge", "float32", 1)
    assert (config.data.demonstrations.path, config.data.prompts.path) == ("tiny:sft", "tiny:rl")
    assert config.data.heldout.path == "tiny:heldout"
    assert (config.rl.steps, config.rl.prompts_per_step, config.rl.group_size) == (165, 16, 8)
    assert (config.rl.learning_rate, config.rl.max_staleness) == (4e-4, 2)
    assert config.rl.sampling.sampling() == Sampling(1.1, 1.0, -1, 96, ())
    assert (config.sft.learning_rate, config.sft.num_train_epochs) == (3e-4, 1.0)
    assert config.sft.per_device_train_batch_size * config.sft.gradient_accumulation_steps == 32
    assert (config.dpo.beta, config.dpo.learning_rate) == (0.1, 1.5e-4)
    assert (config.eval.temperatures, config.eval.pass_k) == ([0.0, 0.3, 0.6, 1.0], [1, 8])


def test_gsm8k_names_the_published_fields():
    data = load_config("gsm8k-tiny", ["data.prompts.path=/there/train.jsonl"]).data
    assert data.prompts.path == "/there/train.jsonl"
    assert data.prompts.fields == {"prompt": "question", "answer": "answer"}
    assert data.prompts.answer_pattern == "#### (.+)"
    assert data.prompts.constants == {"capability": "math", "format": ["####", ""]}
    assert data.demonstrations.fields == {"prompt": "question", "completion": "answer"}


def test_overrides_are_yaml_and_the_last_one_wins():
    overrides = [
        "rl.learning_rate=2e-5",
        "rl.steps=3",
        "rl.steps=4",
        "generators.kv_cache_gib=",
        "rl.quotas.math=2",
        "rl.quotas.code=1.5",
        "rl.sampling.stop=['\\n\\n', x]",
        "metrics.wandb_project=mine",
        "prune.enabled=false",
    ]
    config = load_config("tiny", overrides)
    assert (config.rl.learning_rate, config.rl.steps, config.generators.kv_cache_gib) == (2e-5, 4, None)
    assert config.rl.quotas == {"math": 2.0, "reasoning": 6.0, "code": 1.5}
    assert config.rl.sampling.sampling().stop == ("\\n\\n", "x")
    assert (config.metrics.wandb_project, config.prune.enabled) == ("mine", False)


def test_a_sparse_file_takes_the_defaults(write):
    config = load_config(write("model: some/hub-model\n"))
    assert config.rl.learning_rate == 1e-6
    assert config.generators.count == 2
    assert config.judge.model == "some/hub-model"  # never the tiny judge unasked


def test_all_engines_but_one_make_rollouts_where_nothing_is_said(write):
    for pool, rolling in (("{count: 1}", 1), ("{count: 2}", 1), ("{count: 8}", 7), ("{}", 1)):
        assert load_config(str(write(f"model: m\ngenerators: {pool}\n"))).rl.generators == rolling
    assert load_config(str(write("model: m\ngenerators: {count: 8}\nrl: {generators: 2}\n"))).rl.generators == 2
    assert load_config(str(write("model: m\n")), ["generators.count=4"]).rl.generators == 3


def test_a_saved_config_loads_again(write):
    config = load_config("tiny", ["rl.learning_rate=1e-05", "seed=7"])
    assert load_config(write(json.dumps(config.resolved(), indent=2))) == config


def test_hash_changes_with_any_setting_only():
    assert config_hash(load_config("tiny")) == config_hash(load_config("tiny", ["rl.steps=165"]))
    assert config_hash(load_config("tiny")) != config_hash(load_config("tiny", ["rl.steps=226"]))
    assert len(config_hash(load_config("tiny"))) == 16


def test_rollouts_that_are_judged_apart_have_no_common_length():
    words = ["rl.early_stop=4", "rubric.criteria.correct={reward: auto}"]
    assert load_config("tiny", words).rubric.length_penalty == 0.1  # of no grade
    words += ["rubric.criteria.style={judge: 'It is odd.'}", "rubric.model=tiny:chat-judge"]
    with pytest.raises(ConfigError) as error:
        load_config("tiny", words)
    assert str(error.value) == (
        "override 'rl.early_stop=4': rl.early_stop: 4: rubric.length_penalty=0.1 is by the lengths of a whole group, "
        "of which the first rollouts are judged alone; expected null, or rubric.length_penalty=0"
    )
    assert load_config("tiny", [*words, "rubric.length_penalty=0"]).rl.early_stop == 4


def test_config_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_config("tiny").rl.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.max_stalenes=1", "rl.max_stalenes: unknown key; did you mean 'max_staleness'?"),
        ("max_staleness=1", "max_staleness: unknown key; did you mean 'rl.max_staleness'?"),
        ("metrics.zzz=1", "metrics.zzz: unknown key; known here: tensorboard, wandb_project"),
        ("rl.steps=abc", "rl.steps: 'abc': expected a whole number"),
        ("rl.steps=true", "rl.steps: true: expected a whole number"),
        ("rl.steps=1.5", "rl.steps: 1.5: expected a whole number"),
        ("threads=", "threads: null: expected a whole number"),
        ("rl.max_staleness=-1", "rl.max_staleness: -1: expected at least 0"),
        ("rl.learning_rate=0", "rl.learning_rate: 0: expected more than 0"),
        ("rl.learning_rate=.inf", "rl.learning_rate: Infinity: expected a finite number"),
        ("rl.order=lifo", "rl.order: 'lifo': expected 'fifo' or 'ready'"),
        ("rl=3", "rl: 3: expected a section with keys"),
        ("model=3", "model: 3: expected a text"),
        ("metrics.tensorboard=1", "metrics.tensorboard: 1: expected true or false"),
        ("prune.keep_ratio=0", "prune.keep_ratio: 0: expected more than 0"),
        ("prune.keep_ratio=1.5", "prune.keep_ratio: 1.5: expected at most 1"),
        ("eval.temperatures=[a]", "eval.temperatures.0: 'a': expected a number"),
        ("eval.temperatures=[]", "eval.temperatures: []: expected at least 1 item"),
        ("eval.pass_k=[1, 16]", "eval.pass_k.1: 16: expected at least 1 and at most eval.samples=8"),
        ("rl.sampling.top_k=0", "rl.sampling.top_k: 0: expected -1 (all tokens) or at least 1"),
        (
            "rl.sampling.temperature=0",
            "rl.sampling.temperature: 0: greedy rollouts of one prompt are all alike; expected more than 0",
        ),
        (
            "rl.sampling.max_tokens=512",
            "rl.sampling.max_tokens: 512: leaves no room for a prompt; expected less than max_model_len=512",
        ),
        (
            "rl.group_size=1",
            "rl.group_size: 1: advantage 'grpo' compares rollouts of one group; expected at least 2",
        ),
        (
            "rl={algorithm: reinforce_pp, group_size: 1, prompts_per_step: 1}",
            "rl.group_size: 1: advantage 'reinforce_pp' compares the rollouts of a step; expected at least 2",
        ),
        (
            "rl.algorithm=ppo",
            f"rl.algorithm: 'ppo': expected {NAMES} or 'aipo'",
        ),
        ("rl.loss=ppo", "rl.loss: 'ppo': expected 'clip', 'gspo', 'cispo' or 'aipo'"),
        (
            "rl.correction=tis",
            f"rl.correction: 'tis': expected 'none', {', '.join(map(repr, list(CORRECTIONS)[:-1]))} or 'sequence_mask'",
        ),
        (
            "lora.rnk=8",
            "lora.rnk: unknown key; did you mean 'rank'?",
        ),
        (
            "sandbox.wall_seconds=0.5",
            "sandbox.wall_seconds: 0.5: expected at least sandbox.cpu_seconds=1",
        ),
        (
            "rl.generators=3",
            "rl.generators: 3: the pool has generators.count=2 engines; expected at most so many",
        ),
        (
            "rl.oversample=1.5",
            "rl.oversample: 1.5: only a synchronous round (rl.max_staleness=0) has last seats to wait for; expected 1",
        ),
        ("rl.early_stop=1", "rl.early_stop: 1: expected at least 2"),
        (
            "rl.early_stop=8",
            "rl.early_stop: 8: leaves none of the rl.group_size=8 rollouts for later; expected fewer, or null",
        ),
        (
            "rl={early_stop: 4, selection: uniform}",
            "rl.early_stop: 4: with rl.selection=uniform groups of equal outcomes are trained on; expected null",
        ),
        (
            "rl={early_stop: 4, algorithm: reinforce_pp}",
            "rl.early_stop: 4: with rl.advantage=reinforce_pp groups of equal outcomes are trained on; expected null",
        ),
        (
            "rl.quotas={math: 1, code: 0}",
            "rl.quotas.code: 0.0: expected more than 0; leave out what shall have no share",
        ),
        ("rl.quotas={}", "rl.quotas: {}: expected a weight for at least one capability, or null"),
        (
            "data.prompts.answer_pattern=abc",
            "data.prompts.answer_pattern: 'abc': has no group; put the answer's part in brackets, as in '#### (.+)'",
        ),
        (
            "data.prompts.answer_pattern='*'",
            "data.prompts.answer_pattern: '*': not a regular expression: nothing to repeat at position 0",
        ),
        ("model=./nope", "model: './nope' is no directory; expected a model directory, a hub name or tiny:base"),
        (
            "judge.model=tiny:x",
            "judge.model: 'tiny:x' is not in the tiny world; expected one of: tiny:base, tiny:judge, tiny:chat-judge",
        ),
        ("rl.steps", "expected KEY=VALUE, such as rl.max_staleness=0"),
        ("rl..x=1", "expected KEY=VALUE, such as rl.max_staleness=0"),
        ("rl.steps.x=3", "rl.steps: holds a value and no keys; give all of it, rl.steps=VALUE"),
        ("rl.steps=[", "rl.steps: '[' is not YAML; quote it"),
    ],
)
def test_a_wrong_override_is_one_line(override, message):
    assert line_of("tiny", override) == f"override '{override}': {message}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "model: a/b\nrl:\n  max_stalenes: 2\n",
            "x.yaml:3: rl.max_stalenes: unknown key; did you mean 'max_staleness'?",
        ),
        (
            "model: a/b\nrl: {steps: none, stepps: 3}\n",
            "x.yaml:2: rl.stepps: unknown key; did you mean 'steps'?",
        ),
        ("model: a/b\n\nsft:\n  threads: two\n", "x.yaml:4: sft.threads: 'two': expected a whole number"),
        (
            "model: a/b\nrl:\n  prompts_per_step: 1\n  quotas: {math: 1, code: 1}\n",
            "x.yaml:3: rl.prompts_per_step: 1: rl.quotas has 2 capabilities; expected at least one prompt for each",
        ),
        (
            "model: a/b\ndata:\n  prompts:\n    fields: {answer: a}\n    constants: {answer: b}\n",
            "x.yaml:5: data.prompts.constants.answer: 'b': is also in 'fields'; keep one of the two",
        ),
        ("model: a/b\nseed: 1\nseed: 2\n", "x.yaml:3: seed: given twice, first at x.yaml:2"),
        ("model: a/b\nrl: [1\n", "x.yaml:3: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed: 1\n", "x.yaml: model: is not set, and has no default"),
        ("- 1\n", "x.yaml: expected keys and values, such as 'model: tiny:base'"),
        ("", "x.yaml: expected keys and values, such as 'model: tiny:base'"),
        ("model: .\n", "x.yaml:1: model: '.' is no model directory: it has no config.json"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_line_number(write, text, line):
    assert line_of(write(text)) == line


def test_a_missing_or_unreadable_file(write, tmp_path):
    presets = ", ".join(preset_names())
    assert line_of("tinny") == f"tinny: no such file, and no preset; presets: {presets}"
    assert line_of(str(tmp_path)) == f"{tmp_path}: can not be read: Is a directory"
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert line_of("x.yaml") == "x.yaml: can not be read: not UTF-8 text"


def test_an_override_takes_the_blame_from_the_file(write):
    name = write("model: a/b\nrl:\n  steps: 3\n")
    assert line_of(name, "rl.steps=0") == "override 'rl.steps=0': rl.steps: 0: expected at least 1"
    assert line_of(name, "rl={stepz: 3}") == "override 'rl={stepz: 3}': rl.stepz: unknown key; did you mean 'steps'?"


def test_names_of_the_tiny_world(tmp_path, monkeypatch):
    world = tmp_path / "tiny" / "world"
    (world / "base").mkdir(parents=True)
    (world / "base" / "config.json").write_text("{}")
    (world / "rl.jsonl").write_text("")
    monkeypatch.setattr("posttrain.config.load.importlib.resources.files", lambda package: tmp_path)
    assert resolve_model("tiny:base") == str(world / "base")
    assert resolve_data("tiny:rl") == str(world / "rl.jsonl")
    with pytest.raises(ConfigError) as caught:
        resolve_data("tiny:sft")
    assert str(caught.value) == f"{world / 'sft.jsonl'}: missing; `posttrain tiny build` makes it"


def test_other_names_stay_as_they_are():
    assert resolve_model("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    assert resolve_data("openai/gsm8k/main:train") == "openai/gsm8k/main:train"
    for path, line in [
        ("", "no data: set the 'path' of data.demonstrations, data.prompts or data.heldout"),
        (
            "tiny:x",
            "'tiny:x' is not in the tiny world; expected one of: " + ", ".join(TINY_DATA),
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            resolve_data(path)
        assert str(caught.value) == line


def test_every_field_is_documented():
    def undocumented(model: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            found += [] if field.description else [f"{prefix}{name}"]
            if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
                found += undocumented(field.annotation, f"{prefix}{name}.")
        return found

    assert undocumented(Config, "") == []


def test_config_loads_no_engine():
    heavy = ["torch", "ray", "vllm", "transformers", "trl", "datasets", "numpy", "pyarrow"]
    code = f"import json, sys, posttrain.config; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(result.stdout) == []


def test_a_named_algorithm_sets_what_is_not_stated() -> None:
    for name, sets in ALGORITHMS.items():
        rl = RLConfig(algorithm=name)
        assert {key: getattr(rl, key) for key in sets} == sets
    stated = RLConfig(algorithm="gspo", clip_high=0.1)
    assert (stated.loss, stated.clip_low, stated.clip_high) == ("gspo", 3e-4, 0.1)
    with pytest.raises(ValidationError, match="aipo"):
        RLConfig(algorithm="aipo", correction="token_mask")


def test_every_name_has_its_function() -> None:
    for key, functions in {
        "algorithm": ALGORITHMS,
        "advantage": ADVANTAGES,
        "loss": LOSSES,
        "loss_aggregation": AGGREGATIONS,
        "correction": {"none": None, **CORRECTIONS},
        "kl_estimator": KL_ESTIMATORS,
    }.items():
        names = get_args(RLConfig.model_fields[key].annotation)
        if key == "algorithm":
            names = get_args(names[0])
        assert names == tuple(functions), key
    assert set(GROUP_RELATIVE) < set(ADVANTAGES)
