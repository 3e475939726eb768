"""`posttrain verify`: a verifier on a file of completions, to see what a reward would say before a run depends on it.

A row has `completion` and what the kind of verifier needs: `answer`, `tests` or `format` (see `judges.verifiers`). Each
gives a row of the output, in order: `solved`, `score`, `reason`, and `error`, null unless judging itself failed. Then
`score` is null: a row that was not judged has no score of zero, and is not in the percentage of the summary.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from curricula.datasets import prompt_reader
from curricula.rows import Row, load_rows
from judges.verifiers import VERIFIERS, lacking, limit_programs
from posttrain.config import SandboxConfig
from posttrain.progress import bar, console
from rollouts.dotted import nearest
from rollouts.errors import DataError, JudgeError, UserError
from rollouts.types import Prompt

SHOWN = 8


@dataclass(frozen=True)
class Verified:
    """A row of the output."""

    solved: bool
    score: float | None
    reason: str
    error: str | None = None


def verify(path: str, kind: str, out: Path, sandbox: SandboxConfig | None = None) -> list[Verified]:
    """Judges every row of a file and writes the verdicts, one JSON object a line.

    Args:
        path: JSONL or Parquet.
        kind: of `VERIFIERS`.
        out: the file to write; must not exist, or be empty.
        sandbox: limits of programs; None: those of a run whose configuration does not say.

    Raises:
        UserError: no such kind; a row lacks a field, or has one of another type; `out` exists; this machine cannot hold
            programs. Nothing is written then.
    """
    if kind not in VERIFIERS:
        raise UserError(f"--kind: no verifier '{kind}'{nearest(kind, VERIFIERS)}; known are {', '.join(VERIFIERS)}")
    if out.exists() and out.stat().st_size:
        raise UserError(f"{out}: exists already, and is not written over; name another file with --out, or remove it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no such directory: {out.parent}")
    limit_programs(**(sandbox or SandboxConfig()).model_dump())
    read = prompt_reader(what="verify")
    rows = [_read(row, kind, read) for row in load_rows(path, "FILE")]
    found: list[Verified] = []
    with bar("verify", len(rows), "row") as progress, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for verified in pool.map(lambda row: _judge(kind, *row), rows):
            found.append(verified)
            progress.advance()
    _write(out, found)
    return found


def _read(row: Row, kind: str, read: Callable[[Row], Prompt]) -> tuple[Prompt, str]:
    """The row as a prompt, and its completion.

    Raises:
        DataError: it lacks a field, or has one of another type.
    """
    completion = row.values.get("completion")
    if not isinstance(completion, str):
        there = ", ".join(row.values)
        problem = "no field 'completion'" if completion is None else "field 'completion': expected a text"
        raise DataError(f"{row.place}: {problem} (fields there: {there}); it is the text to be judged")
    others = {name: value for name, value in row.values.items() if name not in ("completion", "prompt", "messages")}
    prompt = read(Row({"prompt": "-", **others}, row.file, row.line))  # what was asked does not matter
    if lack := lacking(kind, prompt):
        raise DataError(f"{row.place}: {lack} (fields there: {', '.join(row.values)})")
    return prompt, completion


def _judge(kind: str, prompt: Prompt, completion: str) -> Verified:
    try:
        score = VERIFIERS[kind](prompt, completion)
    except (JudgeError, DataError) as error:  # such as tests that no program could pass
        return Verified(False, None, "", str(error).removeprefix(f"prompt {prompt.prompt_id}: "))
    return Verified(score.outcome, score.reward, score.reason)


def _write(out: Path, found: list[Verified]) -> None:
    """Atomically."""
    temporary = out.with_name(f".{out.name}.tmp")
    with temporary.open("w", errors="backslashreplace") as file:  # half a surrogate, as JSON spells it
        file.writelines(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in found)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out)


def print_summary(kind: str, found: list[Verified], out: Path) -> None:
    """How many of the judged are solved, and why the others are not, the commonest reasons first."""
    solved, failed = sum(each.solved for each in found), sum(each.error is not None for each in found)
    judged = len(found) - failed
    share = f" ({solved / judged:.1%})" if judged else ""
    console.print(
        f"{kind}: {solved} of {judged} judged rows solved{share}, {failed} could not be judged; {out}", soft_wrap=True
    )
    table = Table("rows", "reason", box=None, pad_edge=False)
    for reason, count in _reasons(found):
        table.add_row(str(count), Text(reason))
    if table.row_count:
        console.print(table)


def _reasons(found: list[Verified]) -> Iterator[tuple[str, int]]:
    counts: Counter[str] = Counter(
        each.reason if each.error is None else f"error: {each.error}" for each in found if not each.solved
    )
    yield from counts.most_common(SHOWN)
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(SHOWN))
    if rest:
        yield f"{len(counts) - SHOWN} other reasons", rest
