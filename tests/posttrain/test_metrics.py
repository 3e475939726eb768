"""Scalars on disk."""

import json
from pathlib import Path

import pytest

from posttrain.config import MetricsConfig
from posttrain.metrics import MetricsLog


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stages_share_one_file(tmp_path: Path) -> None:
    for stage in ("sft", "rl"):
        log = MetricsLog(tmp_path, MetricsConfig(tensorboard=False), stage)
        log.write(3, {"loss": 0.5, "lr": 1e-4})
        log.close()
    assert [{key: line[key] for key in line if key != "time"} for line in lines(tmp_path)] == [
        {"stage": "sft", "step": 3, "loss": 0.5, "lr": 1e-4},
        {"stage": "rl", "step": 3, "loss": 0.5, "lr": 1e-4},
    ]
    assert lines(tmp_path)[0]["time"] > 1.6e9
    assert not (tmp_path / "tensorboard").exists()


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, MetricsConfig(tensorboard=False), "rl")
    log.write(1, {"reward": 0.25})
    assert lines(tmp_path)[0]["reward"] == 0.25
    log.close()


@pytest.mark.parametrize(("resumed", "left"), [(2, [0, 1, 2]), (5, [0, 1, 2, 3, 4, 5]), (None, [])])
def test_resuming_drops_what_the_stage_wrote_after_the_checkpoint(
    tmp_path: Path, resumed: int | None, left: list[int]
) -> None:
    for stage in ("sft", "rl"):
        log = MetricsLog(tmp_path, MetricsConfig(tensorboard=False), stage)
        for step in range(6):
            log.write(step, {"loss": 0.5})
        log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "sta')  # killed while it wrote
    log = MetricsLog(tmp_path, MetricsConfig(tensorboard=False), "rl")
    log.drop_after(resumed)
    log.write(9, {"loss": 0.25})
    log.close()
    found = [(line["stage"], line["step"]) for line in lines(tmp_path)]
    assert found == [*(("sft", step) for step in range(6)), *(("rl", step) for step in left), ("rl", 9)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, (first, end) in enumerate([(1, 5), (3, 6)]):
        log = MetricsLog(tmp_path, MetricsConfig(), "rl")
        log.drop_after(first - 1)
        for step in range(first, end):
            log.write(step, {"loss": attempt})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard/rl")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, MetricsConfig(), "rl")
    for step in (1, 2):
        log.write(step, {"train/loss": step / 4})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard/rl")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.5)]
