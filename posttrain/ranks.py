"""The processes that train one policy together, one on each device."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not say that it exports it
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from posttrain.policy import Policy

Parallelism = Literal["ddp", "fsdp"]


def open_store(host: str = "127.0.0.1") -> TCPStore:
    """Where ranks meet, served by this process at its address `host` for as long as it is kept; see `address_of`.

    Its port is this process's from the moment that it is known: one that was found free and let go again may be
    another's by the time that the first rank is there.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def address_of(store: TCPStore) -> str:
    """`host:port` of a store."""
    return f"{store.host}:{store.port}"


class Ranks:
    """This process's place among those that train; alone by default."""

    def __init__(
        self,
        device: torch.device,
        rank: int = 0,
        count: int = 1,
        address: str = "",
        limit: float = 1800.0,
    ) -> None:
        """Meets the others.

        Args:
            device: of this rank.
            rank: from 0.
            count: of ranks.
            address: `host:port` of the store where they meet; see `open_store`.
            limit: seconds that one rank waits for another, here and in every exchange, until it ends with an error.
        """
        self.device, self.rank, self.count = device, rank, count
        if count > 1:
            host, _, port = address.rpartition(":")
            backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=limit)
            store = TCPStore(host, int(port), timeout=timeout)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)

    def wrap(self, policy: Policy, parallelism: Parallelism, dtype: torch.dtype) -> torch.nn.Module:
        """The policy so that a backward pass averages gradients over the ranks.

        Args:
            policy: in float32, the same on every rank.
            parallelism: `ddp` (each rank holds all) or `fsdp` (each holds a part; torch's `fully_shard`, FSDP2).
            dtype: of forward and backward pass; parameters and gradients stay in float32.
        """
        if self.count == 1:
            return policy
        if parallelism == "ddp":
            trained = any(parameter.requires_grad for parameter in policy.parameters())
            return DistributedDataParallel(policy) if trained else policy
        mesh = init_device_mesh(self.device.type, (self.count,))
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in list(policy.blocks()):
            fully_shard(block, mesh=mesh, mp_policy=precision)
        fully_shard(policy, mesh=mesh, mp_policy=precision)
        return policy

    def averages(self, wrapped: torch.nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within it a backward pass adds gradients up; those of replicas are averaged over the ranks in the last one.

        (Gradients of a sharded policy are averaged each time: to keep them whole would cost the memory it saves.)
        """
        if isinstance(wrapped, DistributedDataParallel) and not last:
            context: AbstractContextManager[None] = wrapped.no_sync()
            return context
        return nullcontext()

    def add_up(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks."""
        return self._reduce(sums, dist.ReduceOp.SUM)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of each value over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.count == 1:
            return values
        values = values.to(self.device)
        dist.all_reduce(values, operation)
        return values.cpu()


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether each rank holds only a part of the parameters."""
    return isinstance(module, FSDPModule)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is in parts on the ranks, as one; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: torch.nn.Module, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a model (or those that are trained) under their names, on the CPU, tied ones once.

    Every rank must ask.
    """
    return {
        name: whole(tensor.detach()).cpu().contiguous()
        for name, tensor in named_tensors(model)
        if tensor.requires_grad or not trained_only
    }


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers that a checkpoint holds, as they lie on this rank, tied ones once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
