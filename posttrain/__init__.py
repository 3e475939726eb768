"""The pipeline: CLI, config, the three stages, trainer, losses, weight sync, checkpoints, ledger, reports."""

__version__ = "0.1.0"
