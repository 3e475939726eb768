"""vLLM's `nccl` and `ipc` back ends on a CPU: its code on both sides; a TCP store and files take the place of CUDA."""

import os
import tempfile
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.multiprocessing.reductions
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from posttrain import sender
from posttrain.trainer import PolicyTrainer
from rollouts.generator import Generator

MEMORY = "posttrain-test-memory-"
"""How the names of files that stand for a GPU's memory begin, in the temporary directory."""


class StoreGroup:
    """A group whose broadcasts go through the first rank's store."""

    disabled = False

    def __init__(self, host: str, port: int, rank: int, count: int, device: Any) -> None:
        self._group = StatelessProcessGroup.create(host, port, rank, count, store_timeout=60)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        found = self._group.broadcast(tensor, src)
        if found is not tensor:
            tensor.copy_(found)

    def destroy(self) -> None:
        del self._group


class Stream:
    """Work is done when it is asked for."""

    def synchronize(self) -> None:
        pass


empty = torch.empty


def device_memory(*shape: int, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.empty`; where a GPU's memory is asked for, that of a file, which another process can map."""
    if device != "cuda":
        return empty(*shape, device=device, **options)
    path = f"{tempfile.gettempdir()}/{MEMORY}{uuid.uuid4().hex}"
    tensor = torch.from_file(path, shared=True, size=shape[0], dtype=torch.uint8)
    tensor.path = path  # type: ignore[attr-defined]
    return tensor


def share(tensor: Any) -> tuple[None, tuple[Any, ...]]:
    """A handle in the form of CUDA's: the seventh value is the device's number, which the receiver replaces."""
    return None, (tensor.path, tensor.numel(), 0, 0, 0, 0, 0)


def open_shared(path: str, size: int, *_: Any) -> torch.Tensor:
    """The memory of a handle."""
    assert Path(path).stat().st_size == size
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def install() -> None:
    """Takes the place of CUDA in this process."""
    nccl_common.stateless_init_process_group = StoreGroup
    packed_tensor._get_streams = lambda device, count: (Stream(),) * count
    packed_tensor.reduce_tensor = share
    torch.multiprocessing.reductions.rebuild_cuda_tensor = open_shared
    torch.empty = device_memory
    torch.cuda.stream = lambda stream: nullcontext()
    torch.cuda.current_stream = Stream
    torch.cuda.synchronize = torch.cuda.ipc_collect = lambda: None
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid="GPU-0")
    torch.accelerator.current_device_index = lambda: 0
    sender.BUFFER = 2**20  # so that there are several


class StoreTrainer(PolicyTrainer):
    """A rank that can change its weights, as train steps would."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        install()

    def perturb(self, seed: int) -> None:
        """Adds noise to its part of every parameter."""
        generator = torch.Generator().manual_seed(100 * seed + self.ranks.rank)
        for parameter in self.policy.parameters():
            local: Any = parameter.detach()
            local = local.to_local() if hasattr(local, "to_local") else local
            local.add_(0.1 * local.square().mean().sqrt() * torch.randn(local.shape, generator=generator))


class StoreGenerator(Generator):
    """An engine that can be told to die when the next part of an update comes."""

    dies = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        install()

    async def die_in_the_middle(self) -> None:
        self.dies = True

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        if self.dies:
            os._exit(1)
        await super().receive_weights(update_info)
