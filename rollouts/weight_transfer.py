"""Weight updates into a running vLLM engine through shared memory: for one host, with or without GPUs.

The trainer writes a safetensors file under `/dev/shm`; the engine maps it and reloads layer by layer through vLLM's own
weight-transfer interface. Imported by vLLM's worker (as `worker_extension_cls`), which registers the back end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "shm"


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """`path` is a safetensors file, or a directory of them, with every parameter under its Hugging Face name."""

    path: str


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads checkpoint-format weights from a file in shared memory."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """No rendezvous: the file's name comes with each update."""

    def start_weight_update(self) -> None:
        """Opens the layers for reloading; a plain `load_weights` would fail half-way on packed linears."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, str]) -> None:
        """As the base class, which would synchronize an accelerator that a CPU host does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Loads every tensor of the file or files."""
        self.model.load_weights(_tensors(Path(update_info.path)))

    def finish_weight_update(self) -> None:
        """Closes the layers and, on CPU, repacks what the reload leaves stale."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack()

    def _repack(self) -> None:
        """Packs anew the copies that CPU kernels keep: a tied output head and the experts of a mixture."""
        for module in self.model.modules():
            method = getattr(module, "quant_method", None)
            kernel = getattr(method, "moe_kernel", None)
            if kernel is not None and hasattr(module, "w13_weight"):
                kernel.fused_experts.process_weights_after_loading(module)
            elif method is not None and isinstance(module, ParallelLMHead):
                method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with safe_open(name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield key, file.get_tensor(key)


WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)


class WorkerExtension:
    """Named as `worker_extension_cls`, so that importing it registers the back end in each worker process."""
