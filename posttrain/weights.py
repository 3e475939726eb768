"""The policy's weights on their way to the engines: one parameter at a time, so that nobody holds them all twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from posttrain.ranks import named_tensors, whole

DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Their names in a safetensors file."""


class Parameter(NamedTuple):
    """What is known of a parameter (or buffer) before it is gathered: its shape is that of the whole."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Weights:
    """Parameters and buffers of a model under their names, tied ones once; what vLLM calls a `WeightSource`.

    Each pass gathers them anew, in the same order, and keeps none. Where they are in parts on several ranks, every rank
    must go through the whole pass: each parameter is an exchange.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """Takes a model and the number format to send: the engine's. Integers stay as they are."""
        self._model, self._dtype = model, dtype

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor, torch.dtype]]:
        for name, tensor in named_tensors(self._model):
            yield name, tensor.detach(), self._dtype if tensor.is_floating_point() else tensor.dtype

    def metadata(self) -> list[Parameter]:
        """What a pass will give, in its order; nothing is gathered."""
        return [Parameter(name, dtype, tuple(tensor.shape)) for name, tensor, dtype in self._tensors()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor, dtype in self._tensors():
            yield name, whole(tensor.to(dtype))  # rounded first: ranks then exchange as little as is sent


def write_safetensors(path: str, parameters: Sequence[Parameter], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Writes tensors to a safetensors file as they come (the library's own writer wants them all at once).

    The format: the header's length in 8 bytes, the header in JSON, the tensors' bytes without gaps.

    Args:
        path: of the file.
        parameters: what will come.
        tensors: the names and values of all of them, in any order.
    """
    header: dict[str, Any] = {}
    end = 0
    for each in sorted(parameters, key=lambda each: -each.dtype.itemsize):  # each then lies at a multiple of its size
        header[each.name] = {
            "dtype": DTYPES[each.dtype], "shape": list(each.shape), "data_offsets": (end, end + each.bytes),
        }  # fmt: skip
        end += each.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
