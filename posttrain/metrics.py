"""Metrics of a run: `metrics.jsonl` always, TensorBoard and Weights & Biases where the user wants them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.config import MetricsConfig
from posttrain.rundir import write_lines
from rollouts.errors import ConfigError


class MetricsLog:
    """Writes scalars by step; one line of JSON for each call."""

    def __init__(self, run: Path, config: MetricsConfig, name: str) -> None:
        """Opens the files; `name` is the stage's.

        Raises:
            ConfigError: `wandb_project` is set and wandb is not installed.
        """
        self._name, self._path = name, run / "metrics.jsonl"
        self._file = self._path.open("a", buffering=1)
        self._open_tensorboard: Callable[..., Any] | None = None
        self._tensorboard: Any = None  # from the first scalar on
        self._first: int | None = None  # step from which TensorBoard forgets what it has
        self._wandb: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._open_tensorboard = partial(SummaryWriter, str(run / "tensorboard" / name))
        if config.wandb_project:
            try:
                import wandb  # type: ignore[import-not-found, unused-ignore]
            except ImportError:
                raise ConfigError(
                    "metrics.wandb_project: wandb is not installed; `pip install wandb`, or unset it"
                ) from None

            self._wandb = wandb.init(project=config.wandb_project, name=f"{run.name}-{name}", dir=str(run))

    def drop_after(self, step: int | None) -> None:
        """Drops what earlier attempts at the stage wrote after the step that it goes on from; None: it starts anew.

        To be called before the first `write`.
        """
        self._first = 0 if step is None else step + 1
        self._file.close()
        write_lines(
            self._path, [line for line in self._path.read_text().splitlines() if self._stays(line, self._first)]
        )
        self._file = self._path.open("a", buffering=1)

    def _stays(self, line: str, first: int) -> bool:
        """Whether a line is another stage's, or of a step before the first that is to be written."""
        try:
            values = json.loads(line)
        except ValueError:  # half of one: the process was killed
            return False
        return bool(values["stage"] != self._name or values["step"] < first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars at a step."""
        self._file.write(
            json.dumps({"time": round(time.time(), 3), "stage": self._name, "step": step, **values}) + "\n"
        )
        if self._open_tensorboard is not None:
            self._tensorboard = self._tensorboard or self._open_tensorboard(purge_step=self._first)
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log({f"{self._name}/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
