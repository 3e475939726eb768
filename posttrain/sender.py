"""The trainer's side of weight updates that go from GPU to GPU, by vLLM's own back ends `nccl` and `ipc`.

vLLM's trainer engine does the work: it takes the weights one after the other, packs them into buffers, broadcasts those
(`nccl`) or lets the engines read them where they are (`ipc`). The first rank talks to the engines; every rank goes
through the weights with it, since each parameter may be in parts on all.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.weights import Weights
from rollouts.errors import EngineError

BUFFER = 2**28
"""Bytes that are packed together; `nccl` has two such buffers on each side, `ipc` one at the trainer's."""


@dataclass(frozen=True)
class Sent:
    """A weight update: the longest pause of an engine, in seconds, and the size of the weights."""

    pause: float
    bytes: int


def init_info(backend: str, weights: Weights, workers: Sequence[int], rank: int, address: str) -> Any:
    """What vLLM's trainer engine is started with.

    Args:
        backend: `nccl` or `ipc`.
        weights: to be sent.
        workers: of each engine.
        rank: of this process among those that train.
        address: `host:port` where the first rank listens; only needed for `nccl`.
    """
    sizes = [each.bytes for each in weights.metadata()]
    packed = {"packed": True, "packed_buffer_size_bytes": max(*sizes, min(BUFFER, sum(sizes)))}
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank, **packed)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    host, _, port = address.rpartition(":")
    return NCCLTrainerInitInfo(
        rank=rank, master_address=host, master_port=int(port), world_size=1 + sum(workers), **packed
    )


def free_address() -> str:
    """`host:port` of this machine, which vLLM listens at a moment later."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.create_server((host, 0)) as listener:
        return f"{host}:{listener.getsockname()[1]}"


class Engines:
    """What vLLM's trainer engine asks of the engines (its `VLLMWeightSyncClient`), of all at once.

    A call that fails raises nothing here, where it would leave the other ranks waiting in the middle of the weights: it
    is kept, `broken` is called, and nothing more is asked until the next update.
    """

    def __init__(self, backend: str, engines: Sequence[Any], workers: Sequence[int], limit: float) -> None:
        """Takes actors (see `Generator`), the number of workers of each, and the seconds that a call may take."""
        self._backend, self._engines, self._workers, self._limit = backend, engines, workers, limit
        self.version, self.pause = 0, 0.0
        self.failure: EngineError | None = None
        self.broken: Callable[[], None] = lambda: None

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        """Has each engine connect; in a group their workers are numbered one engine after the other."""
        infos = [info for _ in self._engines]
        if "rank_offset" in info:
            before = itertools.accumulate(self._workers, initial=0)
            infos = [
                {**info, "rank_offset": info["rank_offset"] + count}
                for count, _ in zip(before, self._engines, strict=False)
            ]
        self._ask("to connect", "connect", [(self._backend, each) for each in infos])

    def start_weight_update(self) -> None:
        """Stops generation in all engines."""
        self._ask("to start a weight update", "start_weight_update", [(self._limit,)] * len(self._engines))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Has all engines receive a part."""
        self._ask("to receive weights", "receive_weights", [(update_info,)] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002 - vLLM's signature
        """Goes on with generation under the new version."""
        pauses = self._ask("to finish a weight update", "finish_weight_update", [(self.version,)] * len(self._engines))
        self.pause = max(pauses, default=0.0)

    def _ask(self, what: str, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        if self.failure is not None:
            return []
        try:
            calls = [
                getattr(engine, method).remote(*each) for engine, each in zip(self._engines, arguments, strict=True)
            ]
            found: list[Any] = ray.get(calls, timeout=self._limit)
        except GetTimeoutError:
            self.failure = EngineError(f"waited {self._limit:.0f} s for the engines {what}")
        except (RayError, EngineError) as error:
            self.failure = EngineError(f"while the trainer asked the engines {what}: {error}")
        else:
            return found
        self.broken()
        return []


class Group:
    """vLLM's NCCL group, which can be left while another thread broadcasts."""

    def __init__(self, group: Any) -> None:
        """Takes a `PyNcclCommunicator`."""
        self._group, self._left = group, False

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """As vLLM's; nothing once the group was left, when its communicator is freed memory."""
        if not self._left:
            self._group.broadcast(tensor, src=src, stream=stream)

    def destroy(self) -> None:
        """Ends a broadcast under way, once."""
        if not self._left:
            self._left = True
            self._group.destroy()


class Sender:
    """Sends the weights of one rank's policy to the engines that it met."""

    def __init__(
        self, backend: str, weights: Weights, engines: Sequence[Any], workers: Sequence[int], limit: float, rank: int
    ) -> None:
        """Meets the engines; returns once all have.

        Args:
            backend: of vLLM: `nccl` or `ipc`.
            weights: to be sent.
            engines: actors; see `Generator`.
            workers: of each engine.
            limit: seconds that an engine may take for anything it is asked.
            rank: of this process among those that train; only the first sends.

        Raises:
            EngineError: an engine could not connect, or NCCL cannot be loaded here.
        """
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        from rollouts.weight_transfer import same_stream

        self._client = Engines(backend, engines, workers, limit)
        self._bytes = sum(each.bytes for each in weights.metadata())
        info = init_info(backend, weights, workers, rank, free_address() if backend != "ipc" else "")
        try:
            with same_stream():
                self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=weights)
        except RuntimeError as error:  # of torch's store, or of NCCL
            raise self._client.failure or EngineError(f"the trainer cannot meet the engines: {error}") from error
        if self._client.failure is not None:
            raise self._client.failure
        self._group: Group | None = None
        if (group := getattr(self._engine, "model_update_group", None)) is not None:
            if group.disabled:
                raise EngineError("vLLM cannot load NCCL in the trainer; set generators.weight_transfer=shm")
            self._group = self._engine.model_update_group = Group(group)
        self._client.broken = self.close

    def send(self, version: int) -> Sent:
        """Sends the weights as they are now.

        Raises:
            EngineError: an engine died or did not answer. Then no engine's weights can be trusted.
        """
        self._client.version = version
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # weights are packed on other streams, which do not wait for the optimizer
        try:
            self._engine.send_weights()
        except RuntimeError as error:
            raise self._client.failure or EngineError(f"the trainer cannot send its weights: {error}") from error
        if self._client.failure is not None:
            raise self._client.failure
        return Sent(self._client.pause, self._bytes)

    def close(self) -> None:
        """Leaves the group. A broadcast under way ends, and those to come do nothing; the weights go by unsent."""
        if self._group is not None:
            self._group.destroy()
