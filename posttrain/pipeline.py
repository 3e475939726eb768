"""`posttrain run`: every stage in turn, an evaluation after each, a summary and an export at the end.

On a run directory that exists, it continues where the run stands: finished stages and evaluations are not repeated, a
stage that was stopped is resumed from its newest checkpoint. What was finished with another checkpoint than there is
now, or evaluated by other prompts or settings, does not count.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import load_file, save_file

from judges.corner_cases import KINDS
from judges.llm import PLACES
from posttrain import data
from posttrain.adapters import whole_model
from posttrain.cluster import Cluster, run
from posttrain.config import Config, resolve_model
from posttrain.dpo import NothingToRepairError, train_dpo
from posttrain.evaluate import Report, change, evaluate
from posttrain.passk import read_questions, read_scan
from posttrain.placement import ROLES
from posttrain.progress import bar, console, say
from posttrain.prune import prune
from posttrain.reward import scorer_of
from posttrain.rl_stage import train_rl
from posttrain.rundir import MANIFEST, RunDir, check_model, identity, write_json
from posttrain.sft import train_sft
from posttrain.templates import read_template
from rollouts.dotted import load_dotted
from rollouts.errors import ConfigError, DataError
from rollouts.renderer import Renderer
from rollouts.types import Prompt

Train = Callable[[Config, RunDir, str | None], Path]
TRAIN: dict[str, Train] = {"sft": train_sft, "rl": train_rl, "dpo": train_dpo}


def run_all(config: Config, rundir: RunDir) -> Path:
    """Runs what is left of a run; returns the path of its summary.

    Raises:
        UserError: from any stage.
        Stopped: by the user; the run can be continued.
    """
    asked = _asked(config, _check(config))
    started = time.monotonic()
    clock = rundir.path / "seconds.json"
    before = json.loads(clock.read_text()) if clock.is_file() else 0.0
    reports: dict[str, dict[str, Any]] = {}
    pruning = config.prune.enabled and not (rundir.stage("sft") / "kept.parquet").is_file()
    try:
        with Cluster.of(config, ROLES["run" if pruning else "rl"]):
            if pruning:  # before the pool starts: the judge's engines take its GPUs, and the trainer's
                _heading("prune")
                prune(config, rundir)
            base = resolve_model(config.model)
            reports["base"] = _evaluated(config, rundir, "base", base, asked)
            checkpoint: Path | None = None
            for stage, train in TRAIN.items():
                try:
                    checkpoint = _trained(config, rundir, stage, train, checkpoint)
                except NothingToRepairError as error:
                    say(f"{stage}: left out: {error}")
                    write_json(rundir.stage(stage) / "done.json", {"left_out": str(error), "asked": _mined(config)})
                    continue
                reports[stage] = _evaluated(config, rundir, stage, str(checkpoint), asked)
            assert checkpoint is not None
            _export(checkpoint, rundir.path / "export", config.dtype)
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        write_json(clock, seconds)
    summary = rundir.path / "summary.json"
    _compare(reports)
    write_json(summary, {"seconds": seconds, "stages": reports, **_numbers(rundir)})
    _print_summary(reports, seconds)
    say(f"{summary} holds every number; {rundir.path / 'export'} the model")
    return summary


def _compare(reports: dict[str, dict[str, Any]]) -> None:
    """Puts what each stage changed into its report, and takes out the prompts one by one."""
    names = list(reports)
    for before, after in itertools.pairwise(names):
        reports[after][f"change_from_{before}"] = change(reports[before], reports[after])
    for report in reports.values():
        for name in ("by_prompt", *_IDENTITY):
            del report[name]


def _check(config: Config) -> list[Prompt]:
    """Reads reward, models and data once, so that a mistake in a later stage's is told before the first one starts;
    returns the held-out prompts.
    """
    scorer_of(config)
    base = resolve_model(config.model)
    check_model(base)
    if config.environment is not None:
        load_dotted(config.environment, "environment")
    if config.prune.enabled:
        for model in [*([] if config.judge.endpoint else [config.judge.model]), *config.judge.panel]:
            check_model(resolve_model(model))
        if config.judge.template is not None:
            read_template("judge.template", config.judge.template, PLACES)
        if config.prune.pass_rates is not None:
            read_questions(config.prune.pass_rates)
    if config.rl.start_from_scan is not None:
        read_scan(config.rl.start_from_scan)
    if config.rubric is not None and config.rubric.model is not None:
        check_model(resolve_model(config.rubric.model))
    renderer = Renderer(base)
    for row in data.demonstrations(config):
        try:
            renderer.text(row.messages)
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from None
    for what, max_tokens in (("prompts", config.rl.sampling.max_tokens), ("heldout", config.eval.max_tokens)):
        found = data.prompts(config, what, renderer, max_tokens, lambda _: None)
        if what == "prompts":
            data.check_quotas(config, found)
    return found


def _asked(config: Config, heldout: Sequence[Prompt]) -> str:
    """A hash of what an evaluation depends on beside the checkpoint."""
    settings = config.resolved()
    names = ("eval", "seed", "reward", "rubric", "sandbox", "environment", "max_model_len")
    whole = [{name: settings[name] for name in names}, settings["data"]["instructions"], [*map(repr, heldout)]]
    whole.append(settings["rl"]["sampling"]["stop"])
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _trained(config: Config, rundir: RunDir, stage: str, train: Train, start: Path | None) -> Path:
    """The stage's last checkpoint; trains what is missing of it.

    Raises:
        ConfigError: the stage began with another checkpoint than `start`, that of the stage before, is now.
        NothingToRepairError: it was left out, with the same start.
    """
    path, newest, began = rundir.stage(stage) / "done.json", rundir.newest(stage), start and identity(start)
    done = json.loads(path.read_text()) if path.is_file() else {}
    begun = rundir.stage(stage) / "start.json"
    of = json.loads(begun.read_text()) if begun.is_file() else {"start": began}  # else begun by a command of its own
    if of["start"] == began and done.get("asked") == _mined(config):
        raise NothingToRepairError(done["left_out"])
    if newest is not None and of["start"] != began:
        raise ConfigError(
            f"{rundir.path}: stage '{stage}' began with another checkpoint than {start} is now; move {stage}/ away to "
            "repeat it, or choose another --run"
        )
    if newest is not None and done.get("identity") == identity(newest):
        say(f"{stage}: done ({newest})")
        return newest
    write_json(begun, {"start": began})
    _heading(stage)
    checkpoint = train(config, rundir, "auto" if newest else None)
    gc.collect()
    torch.cuda.empty_cache()  # this process trained; what comes next may need the memory of the same GPU
    write_json(path, {"checkpoint": str(checkpoint), "identity": identity(checkpoint)})
    return checkpoint


def _mined(config: Config) -> dict[str, Any]:
    """What it depends on, beside the checkpoint, whether there is something to repair."""
    settings = config.resolved()
    return {name: settings[name] for name in ("dpo", "environment")}


def _heading(name: str) -> None:
    console.rule(f"[bold]{name}", align="left")


_IDENTITY = ("identity", "asked")
"""What tells a report from another one of the same checkpoint's name."""


def _evaluated(config: Config, rundir: RunDir, name: str, checkpoint: str, asked: str) -> dict[str, Any]:
    """The report of a checkpoint, from its file if it was made before, by the same prompts and settings."""
    path = rundir.stage("eval") / f"{name}.json"
    which = identity(Path(checkpoint)) if (Path(checkpoint) / MANIFEST).is_file() else None
    of = {"checkpoint": checkpoint, "identity": which, "asked": asked}
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if of.items() <= found.items():
            return found
    _heading(f"evaluation of {name}")
    report = evaluate_checkpoint(config, checkpoint)
    print_report(name, report)
    values = {**of, **report.as_json()}
    write_json(path, values)
    return values


def evaluate_checkpoint(config: Config, checkpoint: str) -> Report:
    """Evaluates a checkpoint on the held-out prompts, on every engine of the pool."""
    checkpoint = resolve_model(checkpoint)
    check_model(checkpoint)
    checkpoint = whole_model(checkpoint)
    renderer = Renderer(checkpoint)
    prompts = data.prompts(config, "heldout", renderer, config.eval.max_tokens, say)
    scorer_of(config)  # so that a wrong name is told before anything is started
    settings = config.eval
    each = {1.0: settings.samples} | {
        temperature: 1 if temperature == 0 else settings.samples_other
        for temperature in settings.temperatures
        if temperature != 1.0
    }
    with Cluster.of(config, ROLES["eval"]) as cluster:
        pool, scorer = cluster.pool(checkpoint), scorer_of(config, cluster.graders())
        with bar("eval", len(prompts) * sum(each.values()), "sample") as progress:
            report: Report = run(evaluate(pool, renderer, prompts, scorer, config, advance=progress.advance))
    return report


def print_report(name: str, report: Report) -> None:
    """A checkpoint's scores on the terminal."""
    low, high = report.ci95
    passes = "  ".join(f"pass@{k} {value:.3f}" for k, value in report.pass_at_k.items())
    greedy = "" if report.greedy is None else f"  greedy {report.greedy:.3f}"
    say(f"{name}: pass@1 {report.pass_at_1:.3f} ({low:.3f}-{high:.3f})  {passes}{greedy}  best {report.best:.3f}")
    splits = {
        "capability": report.by_capability,
        "difficulty": report.by_difficulty,
        "use of the instruction": report.by_instruction_use,
    }
    for title, parts in splits.items():
        if parts:
            say(f"  by {title}: " + "  ".join(f"{part} {value:.3f}" for part, value in parts.items()))
    graded = report.reward_by_capability
    if graded != report.by_capability:
        lengths = report.tokens_by_capability
        shown = "  ".join(f"{name} {reward:.3f} ({lengths[name]:.0f} tokens)" for name, reward in graded.items())
        say(f"  reward by capability: {shown}")
    say("  corner cases: " + "  ".join(f"{kind} {rate:.2%}" for kind, rate in report.corner_cases.items()))


def _numbers(rundir: RunDir) -> dict[str, Any]:
    """What the stages counted."""
    from pyarrow.parquet import read_metadata

    numbers: dict[str, Any] = {"rl": json.loads((rundir.path / "rl" / "summary.json").read_text())}
    verdicts = rundir.path / "sft" / "verdicts.parquet"
    if verdicts.is_file():
        rows_in = read_metadata(verdicts).num_rows
        rows_kept = read_metadata(rundir.path / "sft" / "kept.parquet").num_rows
        numbers["sft"] = {"rows_in": rows_in, "rows_kept": rows_kept, "dropped_share": 1 - rows_kept / rows_in}
    numbers["sft"] = numbers.get("sft", {}) | json.loads((rundir.path / "sft" / "summary.json").read_text())
    pairs = rundir.path / "dpo" / "pairs.parquet"
    numbers["dpo"] = {"pairs": read_metadata(pairs).num_rows if pairs.is_file() else 0}
    return numbers


def _export(checkpoint: Path, out: Path, dtype: str) -> None:
    """The model alone: what transformers and vLLM load, without optimizer and state, in the number format that the
    engines evaluated it in; one that is there stays.
    """
    of, key = out.with_name(f".{out.name}"), f"{identity(checkpoint)} {dtype}"
    if out.is_dir() and of.is_file() and of.read_text() == key:
        return
    names = ("config.json", "generation_config.json", "model", "tokenizer", "chat_template", "special_tokens", "vocab")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in Path(whole_model(checkpoint)).iterdir():
        if not path.name.startswith(names):
            continue
        if path.suffix == ".safetensors" and dtype != "float32":
            save_file(_narrowed(load_file(path), dtype), temporary / path.name, {"format": "pt"})
        elif path.name == "config.json" and dtype != "float32":
            write_json(temporary / path.name, json.loads(path.read_text()) | {"dtype": dtype})
        else:
            shutil.copy2(path, temporary / path.name)
    of.unlink(missing_ok=True)
    before = out.with_name(f".{out.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.rename(before)
    temporary.rename(out)
    shutil.rmtree(before, ignore_errors=True)
    of.write_text(key)


def _narrowed(tensors: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    wanted = getattr(torch, dtype)
    return {name: each.to(wanted) if each.is_floating_point() else each for name, each in tensors.items()}


def _print_summary(reports: dict[str, dict[str, Any]], seconds: float) -> None:
    table = Table(title=f"held-out prompts, after {seconds / 60:.1f} minutes")
    passes = [key for key in reports["base"] if key.startswith("pass@") and key != "pass@1"]
    for column in ("", "pass@1", "95 %", *passes, "greedy", "best", "corner cases"):
        table.add_column(column, justify="left" if not column else "right")
    for name, report in reports.items():
        low, high = report["ci95"]
        values = [report["pass@1"], *(report[key] for key in passes), report["greedy"], report["best"]]
        first, *rest = ("-" if value is None else f"{value:.3f}" for value in values)
        table.add_row(name, first, f"{low:.3f}-{high:.3f}", *rest, f"{report['corner_cases']['any']:.2%}")
    console.print(table)
    for before, after in itertools.pairwise(reports):
        parts = []
        changes = reports[after][f"change_from_{before}"]
        for what, found in changes.items():
            if what in KINDS or (what == "reward" and found == changes["pass@1"]):
                continue  # summary.json has them; a reward that is nothing but the outcome is no news
            low, high = found["ci95"]
            parts.append(f"{what.replace('_', ' ')} {found['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
        say(f"{before} -> {after}: " + "  ".join(parts))
