"""RL algorithms by their names: what each sets, unless the configuration says otherwise."""

from __future__ import annotations

from typing import Any

ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {
        "advantage": "grpo", "loss": "clip", "loss_aggregation": "sequence_mean", "clip_low": 0.2, "clip_high": 0.2,
    },
    "dr_grpo": {
        "advantage": "dr_grpo", "loss": "clip", "loss_aggregation": "constant", "clip_low": 0.2, "clip_high": 0.2,
    },
    "dapo": {
        "advantage": "grpo", "loss": "clip", "loss_aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.28,
        "overlong_share": 0.2,
    },
    "rloo": {
        "advantage": "rloo", "loss": "clip", "loss_aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.2,
    },
    "reinforce_pp": {
        "advantage": "reinforce_pp", "loss": "clip", "loss_aggregation": "token_mean", "clip_low": 0.2,
        "clip_high": 0.2,
    },
    "gspo": {
        "advantage": "grpo", "loss": "gspo", "loss_aggregation": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4,
    },
    "cispo": {
        "advantage": "grpo", "loss": "cispo", "loss_aggregation": "token_mean", "clip_low": 1.0, "clip_high": 4.0,
    },
    "aipo": {
        "advantage": "grpo", "loss": "aipo", "loss_aggregation": "token_mean", "clip_low": 1.0, "clip_high": 4.0,
    },
}  # fmt: skip
"""Of the papers that `posttrain.losses` names, with their own clips where they state any."""
