"""A group while it is made: what there is of it, for a checkpoint that is taken meanwhile.

A resume goes on where the rollouts stood. Made again from their beginnings they would be shorter than they were to be:
what is under way at any moment is longer than most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.cluster import result_of
from posttrain.slots import Draw
from rollouts.generator import NOTHING
from rollouts.types import Rollout, RolloutGroup

ON_ITS_WAY = 10.0
"""Seconds that the rollouts of a request may take from the engine that has finished it."""


@dataclass
class UnderWay:
    """One draw's group. `begun` is what an earlier life of the run made of it."""

    draw: Draw
    prompt_token_ids: tuple[int, ...]
    begun: Sequence[Rollout]
    sent: set[int] = field(default_factory=set)
    """The first rollouts of the requests that engines were given."""
    _requests: dict[int, asyncio.Task[Any]] = field(default_factory=dict)  # by their first rollouts

    async def request(self, generating: Coroutine[Any, Any, Any], first: int) -> Any:
        """Awaits a reference to the rollouts of a request, of which `first` is the first one's index."""
        self._requests[first] = asyncio.ensure_future(generating)
        return await self._requests[first]

    async def group(
        self, engines: Sequence[Mapping[int, Mapping[int, Rollout]]], sent: Collection[int]
    ) -> RolloutGroup:
        """What there is of the group; some rollouts are whole, some have not begun.

        Args:
            engines: what each engine has under way, by draw and rollout.
            sent: as it was when they were asked.
        """
        held: dict[int, Rollout] = {}
        for engine in engines:
            held |= engine.get(self.draw.draw_id, {})
        found = dict(enumerate(self.begun)) | held
        for first, task in self._requests.items():
            if first in sent and not any(index >= first for index in held):  # its engine has finished it, or died
                await asyncio.wait({task}, timeout=ON_ITS_WAY)
            if task.done() and not task.cancelled() and task.exception() is None:
                found |= dict(enumerate(await result_of(task.result()), first))
        rollouts = [found.get(index, NOTHING) for index in range(max(found, default=-1) + 1)]
        return RolloutGroup(
            self.draw.draw_id, self.draw.prompt, list(self.prompt_token_ids), rollouts, self.draw.version
        )
