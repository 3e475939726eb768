"""Slots: how many groups may be under way, and which of them make the next batch.

A group holds a slot from the moment its prompt is drawn until the generators hold the weights that were trained on it.
A capability c with a share of n_c groups in every batch has `(max_staleness + 1) * n_c` slots, and a batch takes its
groups in draw order; so a group drawn at version v is trained at version `v + max_staleness` or before. Slots are kept
per capability because with common slots a quota deadlocks: the surplus of one capability would hold them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from curricula.quotas import allocate
from rollouts.types import Prompt, RolloutGroup


@dataclass(frozen=True)
class Draw:
    """One draw of a prompt; `version` is the policy version that the generators held.

    `row` is the prompt's in the sampler while the draw is under way; behind the gate a window on a stream may have
    another one there.
    """

    draw_id: int
    row: int
    prompt: Prompt
    version: int

    @property
    def domain(self) -> str:
        """The prompt's, by which slots are kept."""
        return self.prompt.domain


@dataclass(frozen=True)
class Judged:
    """A draw whose group is generated and judged: what the controller knows of it.

    `payload` is the group itself or a reference to it; the controller does not look inside.
    """

    draw: Draw
    outcomes: tuple[bool, ...]  # [G]
    mean_reward: float
    oldest_version: int  # of its tokens
    tokens: int
    truncated: int  # rollouts that reached the largest number of tokens
    payload: Any = field(repr=False)

    @classmethod
    def of(cls, draw: Draw, group: RolloutGroup, payload: Any = None) -> Self:
        """What the controller knows of a judged group."""
        rollouts = group.rollouts
        return cls(
            draw=draw,
            outcomes=tuple(rollout.outcome for rollout in rollouts),
            mean_reward=sum(rollout.reward for rollout in rollouts) / len(rollouts),
            oldest_version=min(group.versions),
            tokens=sum(len(rollout.token_ids) for rollout in rollouts),
            truncated=sum(rollout.truncated for rollout in rollouts),
            payload=payload,
        )


class Slots:
    """The draws under way, by capability."""

    def __init__(
        self, prompts_per_step: int, weights: Mapping[str, float], max_staleness: int, order: str = "fifo"
    ) -> None:
        """Starts empty.

        Args:
            prompts_per_step: groups in a batch.
            weights: of each capability's share in a batch.
            max_staleness: most policy versions between drawing and training.
            order: `fifo` or `ready`.
        """
        self.prompts_per_step, self.weights, self.max_staleness, self.order = (
            prompts_per_step, dict(weights), max_staleness, order,
        )  # fmt: skip
        self.lent: set[str] = set()
        self.probing: set[str] = set()
        self._live: dict[str, dict[int, Draw]] = {name: {} for name in weights}  # in draw order
        self._ready: dict[int, Judged] = {}  # in order of completion
        self._share()

    def _share(self) -> None:
        active = {name: weight for name, weight in self.weights.items() if name not in self.lent}
        self.quotas = dict.fromkeys(self.weights, 0) | (allocate(self.prompts_per_step, active) if active else {})

    @property
    def asked(self) -> dict[str, int]:
        """The capabilities' shares of a batch as they were asked for: none lends its share."""
        return allocate(self.prompts_per_step, self.weights)

    def lend(self, capability: str) -> None:
        """Gives a capability's share to the others."""
        self.lent.add(capability)
        self.probing.discard(capability)
        self._share()

    def probe(self, capability: str) -> None:
        """Lets a capability that lends its share draw one group, to see whether it gives a signal again."""
        self.probing.add(capability)

    def restore(self, capability: str) -> None:
        """Gives a capability its share back."""
        self.lent.discard(capability)
        self.probing.discard(capability)
        self._share()

    def free(self, capability: str, oversample: float = 1.0) -> int:
        """How many groups of a capability may be drawn now."""
        missing = (self.max_staleness + 1) * self.quotas[capability] - len(self._live[capability])
        if capability in self.lent:
            return max(0, int(capability in self.probing) - len(self._live[capability]))
        return max(0, math.ceil(missing * oversample)) if missing > 0 else 0

    def take(self, draw: Draw) -> None:
        """A draw takes a slot."""
        self._live[draw.domain][draw.draw_id] = draw

    def admit(self, judged: Judged) -> None:
        """A draw's group is ready to be trained."""
        self._ready[judged.draw.draw_id] = judged

    def release(self, draw: Draw) -> None:
        """A draw's slot is free: its group was rejected, or the generators hold the weights trained on it."""
        self._live.get(draw.domain, {}).pop(draw.draw_id, None)
        self._ready.pop(draw.draw_id, None)

    def stale(self, version: int) -> list[Judged]:
        """Ready groups that are too old to be trained; only a change of quotas makes any."""
        return [judged for judged in self._ready.values() if version - judged.oldest_version > self.max_staleness]

    def fits(self, draw: Draw, oldest_version: int, version: int, oversample: float = 1.0) -> bool:
        """Whether a draw that was pending may be taken up at a version, after those before it, though settings have
        changed since: within the slots of its capability, and in time for the bound.
        """
        if draw.domain in self.lent:
            return True
        before, quota = len(self._live[draw.domain]), self.quotas[draw.domain]
        if oversample > 1:  # what a synchronous round has too many of is surplus at its end, not for later batches
            return before < math.ceil(quota * oversample) and version - oldest_version <= self.max_staleness
        return before < (self.max_staleness + 1) * quota and (
            version + before // quota - oldest_version <= self.max_staleness
        )

    def surplus(self) -> list[Judged]:
        """Ready groups beyond a full batch, last in draw order (there are some only with oversampling)."""
        found = []
        for capability, quota in self.quotas.items():
            ready = [self._ready[draw_id] for draw_id in self._live[capability] if draw_id in self._ready]
            found += ready[(self.max_staleness + 1) * quota :]
        return found

    def batch(self, version: int) -> list[Judged] | None:
        """The next batch in draw order if all of it is ready, else None; its groups keep their slots."""
        found: list[Judged] = []
        for capability, quota in self.quotas.items():
            chosen = (
                self._in_order(capability, quota)
                if self.order == "fifo"
                else self._as_ready(capability, quota, version)
            )
            if chosen is None:
                return None
            found += chosen
        return sorted(found, key=lambda judged: judged.draw.draw_id)

    def _in_order(self, capability: str, quota: int) -> list[Judged] | None:
        first = list(self._live[capability])[:quota]
        if len(first) < quota or any(draw_id not in self._ready for draw_id in first):
            return None
        return [self._ready[draw_id] for draw_id in first]

    def _as_ready(self, capability: str, quota: int, version: int) -> list[Judged] | None:
        """Groups as they finished, but so many of the older ones that none passes the bound in a later step."""
        waiting = [judged for judged in self._ready.values() if judged.draw.domain == capability]
        chosen: list[Judged] = []
        for later in range(self.max_staleness + 1):
            drawn_by = version + later - self.max_staleness  # to be trained in this batch or the next `later` ones
            due = sum(draw.version <= drawn_by for draw in self._live[capability].values()) - later * quota
            missing = max(0, min(due, quota) - len(chosen))
            old = [judged for judged in waiting if judged.draw.version <= drawn_by]
            if missing > len(old):
                return None
            chosen += old[:missing]
            taken = {judged.draw.draw_id for judged in chosen}
            waiting = [judged for judged in waiting if judged.draw.draw_id not in taken]
        chosen += waiting[: quota - len(chosen)]
        return chosen if len(chosen) == quota else None

    def waiting_for(self) -> str:
        """One line for an error: what is under way."""
        return ", ".join(
            f"{name}: {len(live)} drawn, {sum(draw_id in self._ready for draw_id in live)} ready of {self.quotas[name]}"
            for name, live in self._live.items()
        )
