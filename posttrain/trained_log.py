"""The trainer's own record of what it was trained on: a Parquet file in each checkpoint, of the steps that led to it.

It is kept by the trainer alone, from the groups that it was handed, so that the ledger can be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rollouts.types import RolloutGroup

TRAINED = "trained.parquet"


@dataclass
class TrainedLog:
    """Columns with an entry for each group of each train step; `tokens` are those of its completions.

    Example: `TrainedLog(step=[1, 1], draw_id=[0, 3], tokens=[310, 244])`
    """

    step: list[int] = field(default_factory=list)
    draw_id: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Enters the groups of a train step."""
        for group in groups:
            self.step.append(step)
            self.draw_id.append(group.draw_id)
            self.tokens.append(sum(len(rollout.token_ids) for rollout in group.rollouts))

    def write(self, directory: Path) -> None:
        """Writes it into a checkpoint's directory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(values, pa.int64()) for name, values in vars(self).items()}
        pq.write_table(pa.table(columns), directory / TRAINED)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads it from a checkpoint's directory."""
        import pyarrow.parquet as pq

        return cls(**pq.read_table(directory / TRAINED).to_pydict())
