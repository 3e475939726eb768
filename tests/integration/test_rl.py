"""The RL stage with real engines: stopped by Ctrl-C, continued, a generator killed, and data without a signal."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from posttrain.audit import audit
from posttrain.curriculum_log import read_snapshots
from posttrain.ledger import Ledger
from posttrain.rundir import Manifest
from tests.integration.commands import SMALL, Ended, Running, posttrain

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared/data/gsm8k"


@dataclass(frozen=True)
class Stopped:
    """A run that Ctrl-C ended."""

    cwd: Path
    ended: Ended
    left: dict[int, str]

    @property
    def checkpoint(self) -> Path:
        return max((self.cwd / "r/rl/checkpoints").iterdir())

    @property
    def step(self) -> int:
        return int(self.checkpoint.name.removeprefix("step-"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    """`posttrain rl`, interrupted while it trains."""
    cwd = tmp_path_factory.mktemp("rl")
    running = Running("rl", "tiny", "--run", "r", *SMALL, "rl.steps=1000", cwd=cwd)
    try:
        running.wait_for("step    2  reward")
        running.interrupt()
        yield Stopped(cwd, running.ended(60), running.left())
    finally:
        running.end()


def test_ctrl_c_stops_soon_and_leaves_no_process(stopped: Stopped) -> None:
    assert stopped.ended.code == 130
    assert stopped.left == {}
    assert "Traceback" not in stopped.ended.err
    assert stopped.ended.err.splitlines()[-1] == (
        f"posttrain: rl stopped after step {stopped.step} of 1000; {stopped.checkpoint} holds it; "
        "continue with --resume auto"
    )


def test_ctrl_c_leaves_a_complete_checkpoint(stopped: Stopped) -> None:
    assert 2 <= stopped.step < 1000
    manifest = Manifest.read(stopped.checkpoint)
    assert (manifest.stage, manifest.step, manifest.policy_version) == ("rl", stopped.step, stopped.step)
    assert "optimizer/state.safetensors" in manifest.files
    assert json.loads((stopped.checkpoint / "rl_state.json").read_text())["version"] == stopped.step


@dataclass(frozen=True)
class Resumed:
    """The same run, continued to its end by two trainer ranks, with a generator killed on the way."""

    stopped: Stopped
    ended: Ended
    generators: set[int]
    first_step: int


@pytest.fixture(scope="module")
def resumed(stopped: Stopped) -> Iterator[Resumed]:
    first = stopped.step
    words = ["rl", "tiny", "--run", "r", "--resume", "auto", *SMALL, f"rl.steps={first + 5}", "trainer.ranks=2"]
    running = Running(*words, cwd=stopped.cwd)

    def generators() -> set[int]:
        return {pid for pid, name in running.processes().items() if name.startswith("ray::Generator")}

    try:
        running.wait_for(f"step {first + 1:4d}  reward")
        seen = generators()
        for pid in seen:
            os.kill(pid, signal.SIGKILL)
        while running.process.poll() is None:
            seen |= generators()
            time.sleep(0.2)
        ended = running.ended()
        assert running.left() == {}
        yield Resumed(stopped, ended, seen, first)
    finally:
        running.end()


def test_resume_auto_goes_on_to_the_end(resumed: Resumed) -> None:
    assert resumed.ended.code == 0, resumed.ended.err
    last = resumed.first_step + 5
    checkpoint = Path(resumed.ended.out.splitlines()[-1])
    assert checkpoint == resumed.stopped.cwd / f"r/rl/checkpoints/step-{last:06d}"
    assert Manifest.read(checkpoint).step == last
    lines = (resumed.stopped.cwd / "r/metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "reward" in line]
    assert steps == list(range(1, last + 1))  # none twice, none left out


def test_resume_auto_loses_no_draw(resumed: Resumed) -> None:
    run = resumed.stopped.cwd / "r"
    assert audit(run).problems == ()
    rows = Ledger(run / "ledger.db", read_only=True).rows("voided_by IS NULL")
    assert [row.draw_id for row in rows] == list(range(len(rows)))
    assert Counter(row.step for row in rows if row.step) == dict.fromkeys(range(1, resumed.first_step + 6), 6)
    assert any(row.attempt == 1 and (row.step or 0) > resumed.first_step for row in rows)  # were pending, then trained


def test_the_curriculum_is_recorded_over_both_attempts(resumed: Resumed) -> None:
    last = resumed.first_step + 5
    folder = resumed.stopped.cwd / "r/rl"
    rows = read_snapshots(folder / "curriculum.jsonl")
    assert [row.version for row in rows] == list(range(1, last + 1))
    assert {sum(row.trained.values()) for row in rows} == {6}
    assert all(0 <= row.mixed <= row.drawn for row in rows)
    with Image.open(folder / "curriculum.png") as page:
        assert page.info["Title"] == "Curriculum of r"
        assert page.info["Description"].startswith(f"after step {last}: ")


def test_a_killed_generator_is_replaced(resumed: Resumed) -> None:
    assert len(resumed.generators) >= 2  # a child that it forks has its name for a moment
    assert "engine 0 died; starting another in its place" in resumed.ended.err
    assert resumed.ended.code == 0
    assert "Traceback" not in resumed.ended.err


# ------------------------------------------------------------------------------------------------------------- GSM8K


@pytest.fixture
def gsm8k(tmp_path: Path) -> list[str]:
    """Overrides of the preset that name the published files, or rows written in their form."""
    files = {name: PUBLISHED / f"{name}.jsonl" for name in ("train", "test")}
    if not all(path.is_file() for path in files.values()):
        files = dict.fromkeys(files, tmp_path / "rows.jsonl")
        rows = (
            {
                "question": f"Ada has {count} boxes with {2 * count} pens each. She gives away {count} pens. "
                "How many pens does she have left?",
                "answer": f"She has {count} * {2 * count} = <<{count}*{2 * count}={2 * count**2}>>{2 * count**2} pens. "
                f"Then {2 * count**2 - count} are left.\n#### {2 * count**2 - count:,}",
            }
            for count in range(3, 43)
        )
        files["train"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"data.demonstrations.path={files['train']}", f"data.prompts.path={files['train']}",
        f"data.heldout.path={files['test']}", "generators.count=1", "rl.generators=1",
    ]  # fmt: skip


def test_gsm8k_ends_with_the_error_that_no_prompt_gives_a_signal(gsm8k: list[str], tmp_path: Path) -> None:
    words = ["rl.max_rejected_in_a_row=12", "rl.group_size=4", "rl.sampling.max_tokens=32", "rl.eval_every=0"]
    ended = posttrain("rl", "gsm8k-tiny", "--run", "r", *gsm8k, *words, "data.prompts.limit=40", cwd=tmp_path, code=2)
    *_, line = ended.err.splitlines()
    assert line.startswith("posttrain: no prompt gives a learning signal: in each group all rollouts fail, or all")
    assert "(groups rejected in a row: math: 12)" in line
    assert "pass rates of the 12 groups judged: 0.0-0.1: 12;" in line
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "r/rl").glob("checkpoints/step-*"))


def test_gsm8k_demonstrations_are_judged_as_they_are_published(gsm8k: list[str], tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    posttrain("prune", "gsm8k-tiny", "--run", "r", *gsm8k, "data.demonstrations.limit=12", cwd=tmp_path)
    rows = read_table(tmp_path / "r/sft/verdicts.parquet").to_pylist()
    assert len(rows) == 12
    system, user, assistant = json.loads(rows[0]["messages"])
    assert system == {"role": "system", "content": "Write #### before the answer."}
    assert user["content"] in Path(gsm8k[0].partition("=")[2]).read_text()
    assert "\n#### " in assistant["content"]
    assert 0 < sum(row["kept"] for row in rows) <= 6
