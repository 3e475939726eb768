"""The trainer's actors, one for each rank, as one: each call goes to all of them, since they work in step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from posttrain.cluster import Cluster, answer
from posttrain.ranks import address_of, open_store
from posttrain.sender import Sent
from posttrain.step_metrics import StepMetrics
from posttrain.trainer import PolicyTrainer


class TrainerRanks:
    """The processes that train the policy."""

    def __init__(self, cluster: Cluster, model: str, reference: str) -> None:
        """Starts `trainer.ranks` actors on a checkpoint; see `PolicyTrainer`."""
        self._cluster, self._limit = cluster, cluster.config.rl.step_timeout
        seats = cluster.placement.trainer
        self._store = open_store(cluster.host()) if len(seats) > 1 else None
        address = address_of(self._store) if self._store else ""
        self.actors = [
            cluster.actor(PolicyTrainer, model, reference, cluster.config, rank, address, seat=seat)
            for rank, seat in enumerate(seats)
        ]

    def end(self) -> None:
        """Ends all ranks: their memory is needed by what comes next."""
        for actor in self.actors:
            self._cluster.end(actor)

    async def ready(self, limit: float) -> None:
        """Waits until every rank has loaded the policy."""
        await self._all("ready", (), "the trainer to start", limit)

    async def train_step(self, groups: Sequence[Any]) -> StepMetrics:
        """One train step on a batch of (references to) groups."""
        metrics: StepMetrics = await self._all("train_step", groups, "the trainer to finish a step")
        return metrics

    async def logprobs(self, groups: Sequence[Any]) -> Any:
        """Stored and own log-probabilities of sampled tokens, [2, N]; see `PolicyTrainer.logprobs`."""
        return await self._all("logprobs", groups, "the trainer's log-probabilities")

    async def publish(self, path: str) -> int:
        """Writes the weights to a file; returns their version."""
        version: int = await self._all("publish", (path,), "the trainer to publish its weights")
        return version

    async def gpus(self) -> list[str]:
        """The GPU of each rank, as a UUID; "" for a CPU."""
        what = "the trainer's devices"
        return await asyncio.gather(*(answer(actor.gpu.remote(), self._limit, what) for actor in self.actors))

    async def connect(self, backend: str, engines: Sequence[Any], workers: Sequence[int], limit: float) -> None:
        """Meets engines, each with so many workers, within `limit` seconds; see `Sender`."""
        what = f"the trainer and {len(engines)} engines to meet by {backend} (generators.weight_transfer)"
        await self._all("connect", (backend, list(engines), list(workers), limit), what, limit)

    async def send(self, version: int, limit: float) -> Sent:
        """Sends the weights to the engines that were met, which may take `limit` seconds."""
        what = f"the trainer to send version {version} to the engines"
        sent: Sent = await self._all("send", (version,), what, 2 * limit)  # the trainer's own limit says more
        return sent

    async def save(self, directory: str) -> None:
        """Writes model and optimizer into an existing directory."""
        await self._all("save", (directory,), "the trainer to save the policy")

    async def load_optimizer(self, directory: str, step: int) -> None:
        """Restores the optimizer's state of a checkpoint."""
        await self._all("load_optimizer", (directory, step), "the optimizer's state")

    async def metrics(self) -> dict[str, float]:
        """Of the first rank."""
        found: dict[str, float] = await answer(self.actors[0].metrics.remote(), 60, "the trainer's metrics")
        return found

    async def _all(self, method: str, arguments: Sequence[Any], what: str, limit: float | None = None) -> Any:
        """The first rank's answer, once all have answered; a rank that fails fails all."""
        calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        return (await asyncio.gather(*(answer(call, limit or self._limit, what) for call in calls)))[0]
