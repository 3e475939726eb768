"""`curriculum.jsonl`: a snapshot of the curriculum after each train step, from which the plots are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curricula.sampler import PromptSampler
from curricula.snapshot import CurriculumSnapshot, Snapshots
from posttrain.rl import Totals
from posttrain.rundir import write_lines

NAME = "curriculum.jsonl"


class CurriculumLog:
    """One line of JSON for each train step of a run, over all attempts that led to its newest checkpoint."""

    def __init__(self, path: Path, version: int, sampler: PromptSampler, asked: Mapping[str, int]) -> None:
        """Opens the file.

        Args:
            path: of the file.
            version: that the run starts or resumes from; what earlier attempts wrote after it is dropped.
            sampler: as of that version.
            asked: groups of a batch that each capability is to have.
        """
        self.path, self._asked, self._snapshots, self._before = path, dict(asked), Snapshots(sampler), Totals()
        write_lines(path, (json.dumps(line) for line in _lines(path) if line["version"] <= version))
        self._file = path.open("a", buffering=1)

    def write(self, version: int, totals: Totals) -> None:
        """Appends the snapshot after a train step; `totals` are of all steps since the file was opened."""
        before, self._before = self._before, deepcopy(totals)
        drawn = totals.groups_judged - before.groups_judged
        snapshot = self._snapshots.take(
            version,
            asked=self._asked,
            trained=totals.trained_by_capability - before.trained_by_capability,
            drawn=drawn,
            mixed=totals.groups_mixed - before.groups_mixed,
            solve_rate=(totals.solve_rates - before.solve_rates) / drawn if drawn else None,
        )
        self._file.write(json.dumps(asdict(snapshot)) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_snapshots(path: Path) -> list[CurriculumSnapshot]:
    """The snapshots of a run, oldest first; none where there is no file."""
    return [
        CurriculumSnapshot(**{**line, "band": None if line["band"] is None else tuple(line["band"])})
        for line in _lines(path)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file: a process that is killed may leave half of one at its end."""
    if not path.is_file():
        return []
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line) for line in lines]
