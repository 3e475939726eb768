"""What an RL checkpoint holds beside policy and optimizer: `rl_state.json`.

All of it is as of one step boundary, before the engines get the step's weights: the loop's own state, where the ledger
stood, and which shards of rollouts led to here. The curriculum's statistics and random state are in `sampler.npz`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from posttrain.config import Config
from posttrain.ledger import Ledger, Watermark
from posttrain.rundir import complete_checkpoints, write_json
from rollouts.errors import CheckpointError, ConfigError

STATE, LEDGER, UNDER_WAY = "rl_state.json", "ledger.db", "under_way.parquet"
FIXED = ("model", "lora", "reward", "rubric", "environment")
"""Settings without which the state has no meaning: what is trained, and what its outcomes are."""


@dataclass(frozen=True)
class RLState:
    """One checkpoint's state; `shards` are the names of files in `RUN/rl/rollouts`, oldest first."""

    version: int
    settings: dict[str, Any]
    controller: dict[str, Any]
    watermark: Watermark
    shards: tuple[str, ...]
    summary: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Writes it into a checkpoint's directory."""
        write_json(directory / STATE, asdict(self))

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """Reads a checkpoint's.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            values = json.loads((checkpoint / STATE).read_text())
            return cls(
                **{
                    **values,
                    "watermark": Watermark.from_json(values["watermark"]),
                    "shards": tuple(values["shards"]),
                }
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            problem = f"not the state of an RL run ({type(error).__name__}: {error})"
            raise CheckpointError(f"{checkpoint / STATE}: {problem}; choose another checkpoint") from None

    def check(self, config: Config, checkpoint: Path) -> None:
        """Raises ConfigError if a setting has changed without which the state has no meaning."""
        for name, now in fixed_settings(config).items():
            was = self.settings.get(name)
            if now != was:
                raise ConfigError(
                    f"{name}: {checkpoint} was trained with {json.dumps(was)}, not {json.dumps(now)}, and its "
                    "state has no meaning with another; set it back, or start a new --run"
                )


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings that a run keeps as long as it lives."""
    resolved = config.resolved()
    return {name: resolved[name] for name in FIXED}


def standing_checkpoint(run: Path) -> Path | None:
    """A run's newest RL checkpoint that it has not gone on without.

    A resume from an older one puts the later ones aside; one that was killed before may have left some.

    Raises:
        CheckpointError: a checkpoint's state cannot be read.
    """
    found = complete_checkpoints(run, "rl")
    if not (run / LEDGER).is_file():
        return next(reversed(found), None)
    ledger = Ledger(run / LEDGER, read_only=True)
    try:
        return next((path for path in reversed(found) if not ledger.given_up(RLState.read(path).watermark)), None)
    finally:
        ledger.close()


def check_stands(run: Path, state: RLState) -> None:
    """Raises CheckpointError if a run has gone on without the checkpoint of a state."""
    if (run / LEDGER).is_file():
        ledger = Ledger(run / LEDGER, read_only=True)
        try:
            ledger.check(state.version, state.watermark)
        finally:
            ledger.close()


def shards(run: Path) -> list[Path]:
    """The shards of rollouts that led to a run's newest RL checkpoint, oldest first.

    Others may lie beside them, of a future that was given up for a resume.
    """
    checkpoint = standing_checkpoint(run)
    if checkpoint is None:
        return []
    return [run / "rl" / "rollouts" / name for name in RLState.read(checkpoint).shards]
