"""What a checkpoint of RL keeps beside policy and optimizer, and what it refuses to go on with."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import Config
from posttrain.ledger import Ledger, Watermark
from posttrain.rl_state import FIXED, RLState, check_stands, fixed_settings
from rollouts.errors import CheckpointError, ConfigError

RUBRIC = {"criteria": {"right": {"reward": "exact"}}, "outcome": "right"}
CHANGED: dict[str, Any] = {
    "model": "other", "lora": {"rank": 4}, "reward": "exact", "rubric": RUBRIC, "environment": "posttrain.tiny:none",
}  # fmt: skip


def state(config: Config, watermark: Watermark | None = None) -> RLState:
    return RLState(7, fixed_settings(config), {}, watermark or Watermark(), (), {})


@pytest.mark.parametrize("name", FIXED)
def test_a_resume_with_another_fixed_setting_is_refused_by_name(name: str) -> None:
    config = Config(model="m")
    other = Config(**{"model": "m", name: CHANGED[name]})
    with pytest.raises(ConfigError) as refused:
        state(config).check(other, Path("step-000007"))
    was, now = (json.dumps(fixed_settings(each)[name]) for each in (config, other))
    assert str(refused.value) == (
        f"{name}: step-000007 was trained with {was}, not {now}, and its state has no meaning with another; "
        "set it back, or start a new --run"
    )


def test_other_settings_may_change_and_the_same_ones_are_the_same_when_read_back(tmp_path: Path) -> None:
    for name, value in CHANGED.items():
        config = Config(**{"model": "m", "seed": 1, name: value})
        state(config).write(tmp_path)
        RLState.read(tmp_path).check(config.model_copy(update={"seed": 2}), tmp_path)


def test_a_checkpoint_that_the_run_has_gone_on_without_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.begin(0, Watermark())
    early = ledger.watermark(0)
    ledger.drawn(0, "p0", "math", 0)
    late = ledger.watermark(1)
    check_stands(tmp_path, state(Config(model="m"), late))
    ledger.begin(0, early)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint of step 7 was given up when the run went on from step 0"
    ):
        check_stands(tmp_path, state(Config(model="m"), late))


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.begin(0, Watermark())
    ledger.drawn(0, "p0", "math", 0, "short")
    written = RLState(3, {"model": "m"}, {"probing": []}, ledger.watermark(1), ("a.parquet",), {"groups_trained": 2})
    written.write(tmp_path)
    assert RLState.read(tmp_path) == written
    (tmp_path / "rl_state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the state of an RL run"):
        RLState.read(tmp_path)
