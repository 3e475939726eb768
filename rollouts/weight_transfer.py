"""The engine's side of weight updates: from a file in shared memory, or straight from the trainer's GPU.

One back end for vLLM's own weight-transfer interface, which loads layer by layer whatever way the weights come. A file
can always be loaded: the checkpoint of a stage, or the newest weights into an engine that was started again. Once
connected it also receives by vLLM's back ends `nccl` and `ipc`. Imported by vLLM's worker (as `worker_extension_cls`),
which registers the back end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "posttrain"
WEIGHTS, INDEX = "*.safetensors", "model.safetensors.index.json"


def same_stream() -> AbstractContextManager[Any]:
    """Leaves the thread's CUDA stream as it was, where vLLM's communicator of NCCL makes another one the current one: a
    step that is computed on that would not be waited for by copies on the old one.
    """
    return torch.cuda.stream(torch.cuda.current_stream()) if torch.cuda.is_available() else nullcontext()


@dataclass
class ConnectInfo(WeightTransferInitInfo):
    """`backend` is one of vLLM's that receive from the trainer; `settings` are its own init info."""

    backend: str
    settings: dict[str, Any]


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """`path` is a safetensors file, a directory of them, or a hub name; parameters have their Hugging Face names."""

    path: str


class PolicyWeightTransferEngine(WeightTransferEngine[ConnectInfo, FileInfo]):
    """Loads checkpoint-format weights from a file or, once connected, as one of vLLM's own back ends receives them."""

    init_info_cls = ConnectInfo
    update_info_cls = FileInfo
    _receiver: Any = None  # the connected back end

    def init_transfer_engine(self, init_info: ConnectInfo) -> None:
        """Connects to the trainer, in the place of an earlier connection.

        Raises:
            RuntimeError: NCCL cannot be loaded, in which case vLLM's broadcasts would do nothing, silently.
        """
        self.shutdown()
        config = WeightTransferConfig(backend=init_info.backend)
        receiver = WeightTransferEngineFactory.create_engine(config, self.vllm_config, self.device, self.model)
        with same_stream():
            receiver.init_transfer_engine(receiver.parse_init_info(init_info.settings))
        if getattr(getattr(receiver, "model_update_group", None), "disabled", False):
            raise RuntimeError("vLLM cannot load the NCCL library; see VLLM_NCCL_SO_PATH and VLLM_DISABLE_PYNCCL")
        self._receiver = receiver

    def start_weight_update(self) -> None:
        """Opens the layers for reloading; a plain `load_weights` would fail half-way on packed linears."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads a file, or a part of what the trainer sends."""
        if "path" in update_info:
            self.receive_weights(self.parse_update_info(update_info))
        elif self._receiver is None:
            raise RuntimeError("this engine is not connected to the trainer")
        else:
            self._receiver.receive_weights(self._receiver.parse_update_info(update_info))
        if torch.accelerator.is_available():  # a CPU host has none to wait for
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileInfo) -> None:
        """Loads every tensor of the file or files."""
        self.model.load_weights(_tensors(Path(update_info.path)))

    def finish_weight_update(self) -> None:
        """Closes the layers and, on CPU, repacks what the reload leaves stale."""
        if self._receiver is None:
            finalize_layerwise_reload(self.model, self.model_config)
        else:
            self._receiver.finish_weight_update()  # does the same, and lets go of memory that the trainer shares
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
        """Ends the connection to the trainer."""
        if self._receiver is not None:
            self._receiver.shutdown()
            self._receiver = None


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name in [path] if path.is_file() else _files(path):
        with safe_open(name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield key, file.get_tensor(key)


def _files(model: Path) -> list[Path]:
    """The files of a checkpoint's weights; of a hub name those that vLLM found in the hub's cache when it started."""
    folder = model if model.is_dir() else Path(snapshot_download(str(model), allow_patterns=[WEIGHTS, INDEX]))
    if (folder / INDEX).is_file():  # some come a second time as a whole, under other names
        return sorted(folder / name for name in set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob(WEIGHTS))


WeightTransferEngineFactory.register_engine(BACKEND, PolicyWeightTransferEngine)


class WorkerExtension:
    """Named as `worker_extension_cls`, so that importing it registers the back end in each worker process."""

    device: torch.device

    def gpu(self) -> str:
        """The UUID of the worker's GPU, the same in every process, whatever number it has there; "" on a CPU."""
        return str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""
