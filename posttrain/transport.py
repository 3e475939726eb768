"""How the engines that make rollouts get the trainer's weights after each step.

    shm   trainer ── file in shared memory ──▶ each engine       any hardware of one host
    nccl  trainer's first GPU ══ broadcast ══▶ all engines       each on GPUs of its own
    ipc   trainer's GPU ── its memory, mapped ──▶ engines on it  trainer and engines share GPUs

All three load through vLLM's weight-transfer interface, between two steps of an engine. Here is the driver's side; the
trainer's is `posttrain.sender`, the engines' is `rollouts.weight_transfer`.

An engine that is not connected (one that was started again, one that evaluates) gets the newest weights from a file,
whatever the transport. A group of NCCL can be neither joined nor left by one: it is made anew before the next update.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from posttrain.cluster import Newest, answer
from posttrain.sender import Sent
from posttrain.trainer_ranks import TrainerRanks
from rollouts.errors import ConfigError, EngineError


def choose(wanted: str, trainer: Sequence[str], engines: Sequence[Sequence[str]], lora: bool = False) -> str:
    """The transport that fits the devices: `shm`, `nccl` or `ipc`.

    Args:
        wanted: `generators.weight_transfer`.
        trainer: the GPU of each trainer rank, as a UUID; "" for a CPU.
        engines: the GPU of each worker of each engine that makes rollouts, likewise.
        lora: adapters are sent, which vLLM loads from files only.

    Raises:
        ConfigError: the one that is wanted does not fit.
    """
    if lora or wanted == "shm":
        return "shm"
    theirs = [gpu for engine in engines for gpu in engine]
    on_gpus = all(trainer) and all(theirs)
    # vLLM's worker looks for its own GPU among those of the ranks; NCCL takes no GPU twice, and the first rank sends.
    fits = {
        "ipc": on_gpus and set(theirs) <= set(trainer),
        "nccl": on_gpus and len({trainer[0], *theirs}) == 1 + len(theirs),
    }
    if wanted == "auto":
        return next((name for name, fit in fits.items() if fit), "shm")
    if not fits[wanted]:
        needs = {
            "ipc": "every engine on a GPU that a trainer rank is on",
            "nccl": "every engine on GPUs of its own, apart from the trainer's first",
        }[wanted]
        where = "on a CPU" if not on_gpus else f"on {len(set(trainer))}, the engines on {len(set(theirs))} GPUs"
        raise ConfigError(f"generators.weight_transfer={wanted} needs {needs}; the trainer is {where}; set it to auto")
    return wanted


class Transport(ABC):
    """Sends the trainer's weights to engines."""

    name: ClassVar[str]
    one_fate: ClassVar[bool]
    """Whether an update that fails in one engine leaves all of them with weights of no version."""

    def __init__(self, trainer: TrainerRanks, newest: Newest, limit: float) -> None:
        """Sends nothing yet.

        Args:
            trainer: whose weights.
            newest: writes the trainer's weights to a file.
            limit: seconds that connecting may take, and an engine for anything that it is asked.
        """
        self._trainer, self._newest, self._limit = trainer, newest, limit
        self.engines: list[Any] = []  # those connected
        self.failed: list[Any] = []  # those of them that are known to have failed in the last `send`

    @abstractmethod
    async def connect(self, engines: Sequence[Any]) -> None:
        """Meets engines, in the place of those connected.

        Raises:
            EngineError: not all met within the limit.
        """

    @abstractmethod
    async def send(self, version: int) -> Sent:
        """Gives the weights as they are now to the engines connected, under this version.

        Raises:
            EngineError: an engine died, failed or did not answer within the limit.
        """


class SharedMemory(Transport):
    """A file that each engine loads for itself."""

    name, one_fate = "shm", False

    async def connect(self, engines: Sequence[Any]) -> None:
        """They are told the file's name with each update."""
        self.engines = list(engines)

    async def send(self, version: int) -> Sent:
        """Returns, or fails, once every engine has answered, so that none goes on under older weights unnoticed."""
        self.failed = []
        path, _ = await self._newest()
        what = f"an engine to load version {version}"
        calls = [answer(engine.update_weights.remote(path, version), self._limit, what) for engine in self.engines]
        found = await asyncio.gather(*calls, return_exceptions=True)
        self.failed = [
            engine for engine, each in zip(self.engines, found, strict=True) if isinstance(each, EngineError)
        ]
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return Sent(max(found), _size(Path(path)))  # type: ignore[type-var, arg-type]


def _size(path: Path) -> int:
    """Bytes of a file, or of those in a directory."""
    return sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())


class _Direct(Transport):
    """From GPU to GPU, by one of vLLM's back ends; the trainer itself asks the engines, as its sending goes on."""

    one_fate = True

    async def connect(self, engines: Sequence[Any]) -> None:
        self.engines = []
        workers = await asyncio.gather(
            *(answer(engine.gpus.remote(), self._limit, "an engine's devices") for engine in engines)
        )
        await self._trainer.connect(self.name, engines, [len(each) for each in workers], self._limit)
        self.engines = list(engines)

    async def send(self, version: int) -> Sent:
        return await self._trainer.send(version, self._limit)


class Nccl(_Direct):
    """A broadcast from the first rank's GPU to those of all engines at once."""

    name = "nccl"


class Ipc(_Direct):
    """Memory of the trainer's GPU that the engines on it read."""

    name = "ipc"


TRANSPORTS: dict[str, type[Transport]] = {kind.name: kind for kind in (SharedMemory, Nccl, Ipc)}
