"""Metrics of a run: `metrics.jsonl` always, TensorBoard and Weights & Biases where the user wants them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config import MetricsConfig
from rollouts.errors import ConfigError


class MetricsLog:
    """Writes scalars by step; one line of JSON for each call."""

    def __init__(self, run: Path, config: MetricsConfig, name: str) -> None:
        """Opens the files; `name` is the stage's.

        Raises:
            ConfigError: `wandb_project` is set and wandb is not installed.
        """
        self._name = name
        self._file = (run / "metrics.jsonl").open("a", buffering=1)
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run / "tensorboard" / name))
        if config.wandb_project:
            try:
                import wandb  # type: ignore[import-not-found, unused-ignore]
            except ImportError:
                raise ConfigError(
                    "metrics.wandb_project: wandb is not installed; `pip install wandb`, or unset it"
                ) from None

            self._wandb = wandb.init(project=config.wandb_project, name=f"{run.name}-{name}", dir=str(run))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars at a step."""
        self._file.write(
            json.dumps({"time": round(time.time(), 3), "stage": self._name, "step": step, **values}) + "\n"
        )
        if self._tensorboard is not None:
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
