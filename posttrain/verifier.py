"""The verifier: an actor that judges rollouts as they come and keeps them until they are written to a shard."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from curricula.gate import rejection
from posttrain.slots import Draw, Judged
from rollouts.errors import JudgeError
from rollouts.recorder import write_shard
from rollouts.types import Rollout, RolloutGroup, Scorer


class Verifier:
    """Runs the configured scorer in a process of its own; what the model wrote is run in a worker beneath it."""

    def __init__(self, load: Callable[[], Scorer], search_path: list[str]) -> None:
        """Loads the scorer; `search_path` is the driver's, so that the user's own module is found here too."""
        sys.path.extend(entry for entry in search_path if entry not in sys.path)
        self._score = load()
        self._judged: list[RolloutGroup] = []
        self._lock = threading.Lock()  # where a scorer waits for a model, several groups are judged at once

    def ready(self) -> bool:
        """Returns once the scorer is loaded."""
        return True

    def judge(
        self,
        draw: Draw,
        prompt_token_ids: list[int],
        rollouts: list[Rollout],
        earlier: RolloutGroup | None = None,
        others: int = 0,
        until: float | None = None,
    ) -> tuple[Judged, RolloutGroup]:
        """Scores rollouts of a group; gives what the controller may know of the group so far, and the group.

        Args:
            draw: whose group it is.
            prompt_token_ids: that the rollouts continue.
            rollouts: to be scored, in order of their indices.
            earlier: the group of the rollouts before these, which were scored before.
            others: rollouts that are made after these, unless the outcomes are all equal. The group is kept for a shard
                once there are no others, so never twice.
            until: when to begin at the latest, in seconds since the epoch.

        Raises:
            JudgeError: judging failed, or had not begun in time; nothing is kept.
        """
        if until is not None and time.time() > until:
            raise JudgeError("its turn to be judged did not come in time; the model that judges is slow, or hangs")
        for rollout, score in zip(rollouts, self._score(draw.prompt, rollouts), strict=True):
            rollout.reward, rollout.outcome, rollout.reason = score.reward, score.outcome, score.reason
            rollout.breakdown = dict(score.breakdown)
        whole = [*earlier.rollouts, *rollouts] if earlier else rollouts
        group = RolloutGroup(draw.draw_id, draw.prompt, prompt_token_ids, whole, draw.version)
        judged = Judged.of(draw, group)
        if not others or rejection(judged.outcomes):
            with self._lock:
                self._judged.append(group)
        return judged, group

    def write_shard(self, path: str, under_way: Collection[int] = ()) -> int:
        """Writes what was judged since the last shard, but the draws that the controller still counts as under way:
        a resume would make those again, and no draw is to be recorded twice.

        Returns:
            How many rows there were; none makes no file.
        """
        with self._lock:
            groups = [group for group in self._judged if group.draw_id not in under_way]
            self._judged = [group for group in self._judged if group.draw_id in under_way]
        return write_shard(Path(path), groups)
