"""`posttrain passk`: how often a checkpoint solves each RL prompt, as a scan that RL can start from.

Hard prompts are found by pass@k with the policy itself (https://arxiv.org/abs/2107.03374). A scan samples as RL does
(`rl.sampling`), since what RL wants to know is how its own groups will come out. It has one row for each prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from curricula.buckets import BUCKETS, bucket_of
from posttrain import data
from posttrain.adapters import whole_model
from posttrain.cluster import Cluster, GeneratorPool, run
from posttrain.config import Config, resolve_model
from posttrain.evaluate import pass_at_k, score_each, tell_not_judged
from posttrain.placement import ROLES
from posttrain.progress import bar, console, say
from posttrain.reward import judged_at_once, scorer_of
from posttrain.rundir import RunDir, check_model, check_new_file, write_json
from rollouts.dotted import load_dotted
from rollouts.errors import ConfigError, DataError, JudgeError, first_line
from rollouts.generator import Request
from rollouts.recorder import write_rows
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Scorer, question_id

NAME = "passk.parquet"
DEFAULT_K = (1, 4, 16)
CHUNK = 64
"""Prompts given to each engine at a time; the bar moves, and completions are freed, as often."""
CHUNKS_UNDER_WAY = 2
"""One is generated while another is judged, so that no engine runs empty in between."""


@dataclass(frozen=True)
class Scanned:
    """One prompt's outcomes.

    Example: `Scanned("9f…", "math", 3, "rl.jsonl", "ans-0", samples=16, solved=4)`, whose bucket is `hard`.
    """

    prompt_id: str
    capability: str
    difficulty: int | None
    source: str
    instruction: str | None
    samples: int
    solved: int
    question: str = ""  # see `question_id`

    @property
    def pass_rate(self) -> float:
        """Share of the samples that solve."""
        return self.solved / self.samples

    @property
    def bucket(self) -> str:
        """One of `BUCKETS`."""
        return bucket_of(self.pass_rate)

    def as_row(self) -> dict[str, Any]:
        """A row of the Parquet file."""
        return {**asdict(self), "pass_rate": self.pass_rate, "bucket": self.bucket}


def parse_k(text: str | None, samples: int) -> list[int]:
    """The k of pass@k, from `1,4,16`; those of the default that can be estimated where there is no text.

    Raises:
        ConfigError: not whole numbers from 1 to `samples`.
    """
    if text is None:
        return [k for k in DEFAULT_K if k <= samples]
    values = [part.strip() for part in text.split(",")]
    if not all(value.isdecimal() and 1 <= int(value) <= samples for value in values):
        raise ConfigError(
            f"--k {text}: expected whole numbers from 1 to --samples {samples}, with commas between them, such as 1,4"
        )
    return sorted({int(value) for value in values})


def scan(
    config: Config,
    rundir: RunDir,
    ks: Sequence[int],
    samples: int,
    checkpoint: str | None = None,
    out: Path | None = None,
) -> Path:
    """Scans `data.prompts`, prints pass@k and buckets, and writes the scan; returns its path.

    Args:
        config: of the run.
        rundir: where the scan goes, and whose newest checkpoint is scanned.
        ks: of pass@k.
        samples: of each prompt.
        checkpoint: a model to scan instead.
        out: another file for the scan.

    Raises:
        UserError: wrong data, checkpoint or reward; or the file exists already.
    """
    path = out or rundir.path / NAME
    if path.suffix != ".parquet":
        raise ConfigError(f"--out {path}: expected a name that ends with .parquet; the table goes beside it as .json")
    summary_path = path.with_suffix(".json")
    for each in (path, summary_path):
        check_new_file(each)
    if config.environment is not None:
        load_dotted(config.environment, "environment")
    scorer_of(config)  # so that a wrong name is told before anything is started
    model = resolve_model(checkpoint) if checkpoint else _newest(config, rundir)
    check_model(model)
    model = whole_model(model)
    renderer = Renderer(model)
    pools = data.instructions(config)
    prompts = [
        pools.for_draw(prompt, index)
        for index, prompt in enumerate(data.prompts(config, "prompts", renderer, config.rl.sampling.max_tokens, say))
    ]
    with (
        Cluster.of(config, ROLES["passk"]) as cluster,
        bar("passk", len(prompts) * samples, "sample") as progress,
    ):
        scorer, pool = scorer_of(config, cluster.graders()), cluster.pool(model)
        started = time.monotonic()
        solved, tokens = run(count_solved(pool, renderer, prompts, scorer, config, samples, progress.advance))
        seconds = time.monotonic() - started
    rows = [
        Scanned(
            prompt.prompt_id,
            prompt.capability,
            prompt.difficulty,
            prompt.source,
            prompt.instruction,
            samples,
            count,
            question_id(prompt.messages),
        )
        for prompt, count in zip(prompts, solved, strict=True)
        if count is not None
    ]
    found = summary(rows, ks)
    write_rows(path, [row.as_row() for row in rows])
    cost = {"tokens_generated": tokens, "seconds": round(seconds, 1)}
    write_json(summary_path, {"model": model, "samples": samples, **cost, **found})
    say(f"{samples} samples of each prompt, {tokens:,} tokens in {seconds:,.0f} s, by {model}")
    console.print(*tables(found, ks), sep="")
    say(f"{path} holds the pass rate of every prompt, {summary_path} the table above")
    say(f"rl.start_from_scan={path} lets RL start from it")
    return path


def _newest(config: Config, rundir: RunDir) -> str:
    """The run's newest RL checkpoint, else its newest of SFT, else the model."""
    found = rundir.newest("rl") or rundir.newest("sft")
    return str(found) if found else resolve_model(config.model)


async def count_solved(
    pool: GeneratorPool,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    config: Config,
    samples: int,
    advance: Callable[[int], object] = int,
) -> tuple[list[int | None], int]:
    """How many samples of each prompt are solved by the weights that the engines hold (None: they were not judged), and
    how many tokens were generated.

    `advance` is told of samples.

    Raises:
        JudgeError: none were judged, of all or of the first `CHUNK`.
    """
    solved: list[int | None] = [None] * len(prompts)
    tokens = failed = 0
    last: JudgeError | None = None
    sampling, size = config.rl.sampling.sampling(), CHUNK * len(pool.actors)
    starts = iter(range(0, len(prompts), size))

    async def work() -> None:
        nonlocal tokens, failed, last
        for start in starts:
            part = prompts[start : start + size]
            requests = [
                Request(
                    renderer.prompt_tokens(prompt.messages),
                    sampling,
                    samples,
                    seed=config.seed + 1_000_003 * index,
                    conversation=data.conversation(config, prompt),
                )
                for index, prompt in enumerate(part, start)
            ]
            completions = await pool.generate(requests)
            tokens += sum(sum(rollout.loss_mask) for group in completions for rollout in group)
            limits = judged_at_once(config), config.generators.request_timeout
            judged, failure = await asyncio.to_thread(score_each, scorer, part, completions, *limits)
            for index in judged:
                solved[start + index] = sum(rollout.outcome for rollout in completions[index])
            failed, last = failed + len(part) - len(judged), failure or last
            if last is not None and failed >= min(CHUNK, len(prompts)) and all(count is None for count in solved):
                raise last
            advance(samples * len(part))

    await asyncio.gather(*(work() for _ in range(CHUNKS_UNDER_WAY)))
    if last is not None:
        tell_not_judged(failed, len(prompts), last)
    return solved, tokens


def summary(rows: Sequence[Scanned], ks: Sequence[int]) -> dict[str, Any]:
    """pass@k (the unbiased estimate, mean over prompts), and prompts by bucket: of each capability, and of all.

    Example: `{"capabilities": {"math": {"prompts": 2, "pass@1": 0.25, "buckets": {"hard": 2, …}}}, "all": {…}}`
    """
    by_capability: dict[str, list[Scanned]] = {}
    for row in rows:
        by_capability.setdefault(row.capability, []).append(row)

    def of(part: Sequence[Scanned]) -> dict[str, Any]:
        rates = {f"pass@{k}": sum(pass_at_k(row.samples, row.solved, k) for row in part) / len(part) for k in ks}
        counts = Counter(row.bucket for row in part)
        return {"prompts": len(part), **rates, "buckets": {bucket: counts[bucket] for bucket in BUCKETS}}

    return {"capabilities": {name: of(part) for name, part in by_capability.items()}, "all": of(rows)}


def tables(found: Mapping[str, Any], ks: Sequence[int]) -> list[Table]:
    """A summary for people."""
    passes, buckets = _table("prompts", *(f"pass@{k}" for k in ks)), _table(*BUCKETS)
    for name, part in [*found["capabilities"].items(), ("all", found["all"])]:
        count = part["prompts"]
        passes.add_row(name, str(count), *(f"{part[f'pass@{k}']:.3f}" for k in ks))
        buckets.add_row(name, *(f"{each} ({each / count:.0%})" for each in part["buckets"].values()))
    return [passes, buckets]


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


# ------------------------------------------------------------------------------------------------- starting RL from it


def read_scan(path: str) -> dict[str, tuple[int, int]]:
    """Prompt id → (samples, solved) of a scan.

    Raises:
        DataError: no such file, no Parquet, or a row that is none of a scan.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    what, columns = f"rl.start_from_scan: {path}", ["prompt_id", "samples", "solved"]
    try:
        with pq.ParquetFile(Path(path).expanduser()) as file:
            there = file.schema_arrow.names
            if not set(columns) <= set(there):
                problem = f"expected the columns {', '.join(columns)} (there: {', '.join(there)})"
                raise DataError(f"{what}: {problem}; `posttrain passk` writes them")
            table = file.read(columns)
    except FileNotFoundError:
        raise DataError(f"{what}: no such file; `posttrain passk` writes one") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{what}: no Parquet file that can be read ({reason}); `posttrain passk` writes one") from None
    rows = (table[name].to_pylist() for name in columns)
    found: dict[str, tuple[int, int]] = {}
    for line, (prompt_id, count, right) in enumerate(zip(*rows, strict=True), 1):
        if not (isinstance(prompt_id, str) and isinstance(count, int) and isinstance(right, int)):
            raise DataError(f"{what}:{line}: expected a text and two whole numbers in {', '.join(columns)}")
        if not 0 <= right <= count:
            raise DataError(f"{what}:{line}: field 'solved': {right}: expected 0 to samples={count}")
        found[prompt_id] = (count, right)
    return found


def read_questions(path: str) -> dict[str, float]:
    """Question (see `question_id`) → mean pass rate, of a scan.

    Raises:
        DataError: no such file, or no scan.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    what = f"prune.pass_rates: {path}"
    try:
        table = pq.read_table(Path(path).expanduser(), columns=["question", "pass_rate"])
    except FileNotFoundError:
        raise DataError(f"{what}: no such file; `posttrain passk` writes one") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{what}: no scan that can be read ({reason}); `posttrain passk` writes one") from None
    rates: dict[str, list[float]] = {}
    for row in table.to_pylist():
        rates.setdefault(row["question"], []).append(row["pass_rate"])
    return {question: sum(values) / len(values) for question, values in rates.items()}


def check_matches(path: str, found: Mapping[str, tuple[int, int]], prompts: Sequence[Prompt]) -> int:
    """How many of the prompts the scan knows.

    Raises:
        DataError: none.
    """
    matched = sum(prompt.prompt_id in found for prompt in prompts)
    if matched == 0:
        raise DataError(
            f"rl.start_from_scan: {path}: none of its {len(found)} prompts is among the {len(prompts)} of "
            "data.prompts; scan those that RL trains on (an edited prompt is another prompt)"
        )
    return matched
