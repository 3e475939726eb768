"""The trainer's own record of what it was trained on: a Parquet file in each checkpoint, of the steps that led to it.

It is kept by the trainer alone, from the groups that it was handed, so that the ledger can be held against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from rollouts.types import RolloutGroup

TRAINED = "trained.parquet"


@dataclass
class TrainedLog:
    """Columns with an entry for each group of each train step; `tokens` are those of its completions, `digest` tells
    which (None: an older version trained on them).

    Example: `TrainedLog(step=[1, 1], draw_id=[0, 3], tokens=[310, 244], digest=["5f0c…", "91ab…"])`
    """

    step: list[int] = field(default_factory=list)
    draw_id: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    digest: list[str | None] = field(default_factory=list)

    def add(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Enters the groups of a train step."""
        for group in groups:
            completions = [rollout.token_ids for rollout in group.rollouts]
            self.step.append(step)
            self.draw_id.append(group.draw_id)
            self.tokens.append(sum(map(len, completions)))
            sequences = (group.prompt_token_ids, *completions)
            self.digest.append(digest_of(sequence_digest(np.array(tokens)) for tokens in sequences))

    def write(self, directory: Path) -> None:
        """Writes it into a checkpoint's directory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"digest": pa.string()}
        columns = {name: pa.array(values, types.get(name, pa.int64())) for name, values in vars(self).items()}
        pq.write_table(pa.table(columns), directory / TRAINED)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads it from a checkpoint's directory."""
        import pyarrow.parquet as pq

        columns = pq.read_table(directory / TRAINED).to_pydict()
        return cls(**{"digest": [None] * len(columns["step"]), **columns})


def digest_of(sequences: Iterable[bytes]) -> str:
    """16 digits that tell the tokens of a group, by the digests of its prompt and of its completions in their order."""
    return hashlib.blake2b(b"".join(sequences), digest_size=8).hexdigest()


def sequence_digest(tokens_T: np.ndarray) -> bytes:
    """16 bytes that tell a sequence of tokens."""
    return hashlib.blake2b(tokens_T.astype("<i8", copy=False).tobytes(), digest_size=16).digest()
