"""TRL's `DPOTrainer` on pairs that are tokens already."""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer


class PairTrainer(DPOTrainer):
    """Takes rows with `prompt_ids`, `chosen_ids` and `rejected_ids` as they are.

    TRL would render a pair's texts by the chat template, and that need not give what was sampled: it puts an end of
    turn behind a completion that was cut off, and Qwen3's an empty thought before one that had none.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset
