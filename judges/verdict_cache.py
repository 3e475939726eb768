"""Verdicts that were given before, in a file: a rerun judges nothing again, and neither does a run that was killed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from judges.llm import Verdict
from rollouts.errors import DataError
from rollouts.types import Message


def key_of(judge: str, template: str, messages: Sequence[Message]) -> str:
    """The identity of a question to a judge: its own (model and settings), the template's and the demonstration's."""
    text = json.dumps([judge, template, list(messages)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(model: str) -> str:
    """A model's name and, of a directory, the sizes and times of its weights, tokenizer and template: with others there
    it is another judge.
    """
    kinds = ("*.safetensors", "*token*", "*.jinja", "*.json")
    files = sorted({file for kind in kinds for file in Path(model).glob(kind)}) if Path(model).is_dir() else []
    return json.dumps([model, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)])


class VerdictCache:
    """A context manager on an SQLite file; what was put is on disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            DataError: it is something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: no cache of verdicts ({error}); remove it, or set judge.cache elsewhere"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Those of the keys that are there."""
        found = {}
        for key in keys:
            row = self._database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
            if row:
                found[key] = Verdict(**json.loads(row[0]))
        return found

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        """Adds some."""
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?)",
                [(key, json.dumps(asdict(verdict))) for key, verdict in verdicts.items()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
