"""Weights one by one, and the file that they are written to."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from posttrain.config import resolve_model
from posttrain.trainer import PolicyTrainer
from posttrain.weights import Parameter, Weights, write_safetensors
from tests.posttrain.test_trainer import BASE, config_of


class Mixed(torch.nn.Module):
    """Parameters and buffers of several formats and shapes, one of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(3, 5))
        self.tied = self.first
        self.scalar = torch.nn.Parameter(torch.randn(()))
        self.turned = torch.nn.Parameter(torch.randn(4, 7).t())
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_one_that_the_library_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    weights, path = Weights(Mixed(), dtype), tmp_path / "weights.safetensors"
    write_safetensors(str(path), weights.metadata(), weights)
    found, expected = load_file(path), dict(weights)
    assert found.keys() == expected.keys() == {"first", "scalar", "turned", "steps", "flags", "empty"}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert {found[name].dtype for name in ("first", "scalar", "turned")} == {dtype}
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("steps").data_ptr() % 8 == 0
    assert sum(each.bytes for each in weights.metadata()) == sum(tensor.nbytes for tensor in found.values())


def test_a_parameter_knows_its_size() -> None:
    assert Parameter("a", torch.bfloat16, (3, 5)).bytes == 30
    assert Parameter("a", torch.float32, ()).bytes == 4


def test_each_pass_gives_the_weights_as_they_are_now() -> None:
    model = Mixed()
    weights = Weights(model, torch.float32)
    before = dict(weights)["first"].clone()
    with torch.no_grad():
        model.first.add_(1)
    assert torch.equal(dict(weights)["first"], before + 1)


def test_a_trainer_publishes_in_the_format_of_the_engines(tmp_path: Path) -> None:
    """In float32 bit by bit; in bfloat16 rounded once, at half the size."""
    exact = load_file(Path(resolve_model("tiny:base"), "model.safetensors"))
    whole, half = (str(tmp_path / name) for name in ("whole.safetensors", "half.safetensors"))
    trainer = PolicyTrainer(BASE, BASE, config_of())
    assert trainer.publish(whole) == 0
    found = load_file(whole)
    assert found.keys() == exact.keys()
    assert all(torch.equal(found[name], value.float()) for name, value in exact.items())
    PolicyTrainer(BASE, BASE, config_of().model_copy(update={"dtype": "bfloat16"})).publish(half)
    for name, value in load_file(half).items():
        assert torch.equal(value, found[name].bfloat16())
    assert Path(half).stat().st_size < 0.51 * Path(whole).stat().st_size
