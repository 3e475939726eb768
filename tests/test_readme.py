"""What the README shows works: commands parse, keys and targets exist, the reward scores, the rows load."""

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import typer.main
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from curricula.datasets import load_demonstrations, load_prompts
from judges.scorer import load_scorer
from posttrain.cli import app
from posttrain.config import Config, DataSource, load_config, preset_names
from rollouts.types import Prompt, Rollout, Score

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def commands(program: str) -> list[list[str]]:
    """The arguments of each shown command, without comments and leading variables."""
    lines = [line for _, text in BLOCKS for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(rf"(?:[A-Z_]+=\S+ )?{program} ", line)]
    return [line[line.index(program) + 1 :] for line in words]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the README's files in it, as a reader would have made them."""
    full, *_ = blocks("yaml")
    reply, bill = blocks("json")
    (reward,) = blocks("python")
    (tmp_path / "models/my-model").mkdir(parents=True)
    (tmp_path / "models/my-model/config.json").write_text("{}")
    (tmp_path / "data/heldout").mkdir(parents=True)
    (tmp_path / "data/replies.jsonl").write_text(reply)
    (tmp_path / "data/bills.jsonl").write_text(bill)
    (tmp_path / "data/heldout/a.jsonl").write_text(bill)
    (tmp_path / "my.yaml").write_text(full)
    (tmp_path / "my_rewards.py").write_text(reward)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def parse(arguments: list[str]) -> dict:
    """The parameters that a command would get; raises what the command line would say."""
    command, name, context = typer.main.get_command(app), "posttrain", None
    rest = list(arguments)
    while hasattr(command, "commands"):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(name, rest, parent=context).params


def source(data: DataSource) -> tuple:
    return (data.path, data.fields, data.limit), {"constants": data.constants, "system": data.system}


# ------------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("arguments", commands("posttrain"), ids=" ".join)
def test_a_shown_command_parses_and_its_settings_exist(arguments: list[str], project: Path) -> None:
    given = parse(arguments)
    if "config" in given:
        load_config(given["config"], given.get("overrides") or ())


def test_commands_are_found_and_a_wrong_one_does_not_parse() -> None:
    assert {arguments[0] for arguments in commands("posttrain")} >= {"run", "prune", "sft", "rl", "dpo", "eval"}
    assert parse(["rl", "tiny", "rl.steps=3", "--resume", "auto"])["overrides"] == ["rl.steps=3"]
    with pytest.raises(Exception, match="No such option"):
        parse(["rl", "tiny", "--resumes", "auto"])


def test_the_shown_dry_run_prints_settings_and_plan(project: Path) -> None:
    (arguments,) = [arguments for arguments in commands("posttrain") if {"my.yaml", "--dry-run"} <= {*arguments}]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert '"reward": "my_rewards:exact_total"' in result.output
    assert "# rl: 200 steps of 64 prompts x 8 rollouts from data/bills.jsonl" in result.output
    assert not (project / "runs").exists()


def test_commands_in_the_text_exist() -> None:
    named = [text.split()[1:] for text in INLINE if text.startswith("posttrain ")]
    assert ["run"] in named
    for words in named:
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]


def test_make_targets_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    inline = [shlex.split(text)[1:] for text in INLINE if text.startswith("make ")]
    named = [word for words in [*inline, *commands("make")] for word in words]
    assert {"demo", "test", "rl", "eval"} <= set(named)
    for word in named:
        variable, equals, _ = word.partition("=")
        assert re.search(rf"\b{variable}\b", makefile) if equals else word in targets, word


# ------------------------------------------------------------------------------------------------------ settings


def test_settings_in_the_text_exist() -> None:
    dotted = [text.partition("=")[0] for text in INLINE if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(=\S+)?", text)]
    keys = [key for key in dotted if key.split(".")[0] in Config.model_fields and not key.endswith(".py")]
    assert {"rl.max_staleness", "rl.sampling.max_tokens", "eval.samples"} <= set(keys)
    for key in keys:
        model: type[BaseModel] = Config
        *sections, last = key.split(".")
        for name in sections:
            annotation = model.model_fields[name].annotation
            model = next(iter(get_args(annotation)), annotation)  # a section that may be null: `Section | None`
        assert last in model.model_fields, key


def test_yaml_blocks_are_valid_settings(project: Path) -> None:
    for text in blocks("yaml"):
        values = yaml.safe_load(text)
        Path("block.yaml").write_text(text if "model" in values else f"model: ./models/my-model\n{text}")
        load_config("block.yaml")


def test_presets_named_are_the_presets() -> None:
    sentence = PROSE.partition("Presets in `configs/`")[2].partition("Relative paths")[0]
    assert set(preset_names()) == set(re.findall(r"`([\w.-]+)`", sentence))


def test_links_within_the_repository_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PROSE) if not link.startswith("http")]
    headings = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in _headings()}
    assert "docs/ARCHITECTURE.md" in links
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (ROOT / link).is_file(), link


def _headings() -> list[str]:
    return re.findall(r"^#+ (.+)$", PROSE, flags=re.MULTILINE)


# ------------------------------------------------------------------------------------------------ rows and reward


def test_the_shown_rows_load_through_the_shown_mapping(project: Path) -> None:
    data = load_config("my.yaml").data
    arguments, options = source(data.demonstrations)
    (demonstration,) = load_demonstrations(*arguments, **options)
    assert [message["role"] for message in demonstration.messages] == ["system", "user", "assistant"]
    assert demonstration.messages[-1]["content"].endswith("\nTotal: 6.25")
    for name in ("prompts", "heldout"):
        arguments, options = source(getattr(data, name))
        (prompt,) = load_prompts(*arguments, **options)
        assert (prompt.answer, prompt.capability, dict(prompt.extra)) == ("16.4", "math", {"shop": "north"})


def test_the_shown_gsm8k_mapping_reads_its_rows(project: Path) -> None:
    (text,) = [text for text in blocks("yaml") if "gsm8k" in text]
    Path("gsm8k.yaml").write_text(f"model: ./models/my-model\n{text}")
    Path("train.jsonl").write_text(r'{"question": "Two and two?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"}')
    settings = load_config("gsm8k.yaml", ["data.prompts.path=train.jsonl"]).data.prompts
    arguments, options = source(settings)
    (prompt,) = load_prompts(*arguments, **options, answer_pattern=settings.answer_pattern)
    assert (prompt.answer, prompt.answer_format) == ("4", ("####", ""))


def test_the_shown_reward_scores(project: Path) -> None:
    names = {yaml.safe_load(text).get("reward") for text in blocks("yaml")} - {None}
    assert names == {"my_rewards:exact_total"}
    prompt = Prompt("p", ({"role": "user", "content": "4 cups at 2.10 and 1 jug at 8.00?"},), answer="16.4")
    texts = ["8.40 + 8.00 = 16.40\nTotal: 16.40", "Total: 16.5", "16.4", "Total: 16.4\nor so", ""]
    rollouts = [Rollout([], [], [], [], "stop", text) for text in texts]
    missing = Score(0.0, False, "no 'Total: N' in the last line")
    assert load_scorer(names.pop())(prompt, rollouts) == [
        Score(1.0, True),
        Score(0.1, False, "16.5 instead of 16.4"),
        missing,
        missing,
        missing,
    ]
