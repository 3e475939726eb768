"""vLLM's `nccl` back end on a CPU: its own code on both sides; a TCP store takes the place of NCCL and its streams."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from posttrain import sender
from posttrain.doctor import ExaminedTrainer
from rollouts.generator import Generator


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


def install() -> None:
    """Takes the place of NCCL in this process."""
    nccl_common.stateless_init_process_group = StoreGroup
    packed_tensor._get_streams = lambda device, count: (Stream(),) * count
    torch.cuda.stream = lambda stream: nullcontext()
    torch.accelerator.current_device_index = lambda: 0
    sender.BUFFER = 2**20  # so that there are several


class StoreTrainer(ExaminedTrainer):
    def __init__(self, *arguments: Any) -> None:
        install()
        super().__init__(*arguments)


class StoreGenerator(Generator):
    """An engine that can be told to die when the next part of an update comes."""

    dies = False

    def __init__(self, *arguments: Any) -> None:
        install()
        super().__init__(*arguments)

    async def die_in_the_middle(self) -> None:
        self.dies = True

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        if self.dies:
            os._exit(1)
        await super().receive_weights(update_info)
