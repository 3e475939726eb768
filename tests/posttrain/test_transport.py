"""Which transport fits the devices, and what vLLM is told; the transports at work are tested in tests/integration."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import GetTimeoutError, RayActorError
from transformers import AutoModelForCausalLM
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from posttrain import sender
from posttrain.config import resolve_model
from posttrain.sender import Engines, Group, init_info
from posttrain.transport import choose
from posttrain.weights import Weights
from rollouts import weight_transfer
from rollouts.errors import ConfigError, EngineError
from rollouts.weight_transfer import BACKEND, ConnectInfo, PolicyWeightTransferEngine, _files

BASE = resolve_model("tiny:base")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), torch.bfloat16)


# ------------------------------------------------------------------------------------------------------------ files


def test_the_files_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[str]:
        return [path.name for path in _files(tmp_path)]

    for name in ("b.safetensors", "a.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert found() == ["a.safetensors", "b.safetensors"]
    (tmp_path / "model.safetensors").touch()
    assert found() == ["model.safetensors"]
    index = {"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert found() == ["b.safetensors"]
    asked = []
    monkeypatch.setattr(weight_transfer, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert _files(Path("some/body")) == [tmp_path / "b.safetensors"]
    assert asked == ["some/body"]


# -------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize(
    ("trainer", "engines", "expected"),
    [
        ([""], [[""], [""]], "shm"),
        (["a"], [["b"]], "nccl"),
        (["a"], [["b", "c"], ["d", "e"]], "nccl"),
        (["a", "b"], [["c"]], "nccl"),
        (["a", "b"], [["b"]], "ipc"),
        (["a"], [["a"]], "ipc"),
        (["a"], [["a"], ["a"]], "ipc"),
        (["a", "b"], [["a", "b"]], "ipc"),
        (["a"], [["a"], ["b"]], "shm"),  # neither reaches both
        (["a"], [["b"], ["b"]], "shm"),  # NCCL takes no GPU twice
        (["a"], [[""]], "shm"),
        ([""], [["a"]], "shm"),
    ],
)
def test_auto_takes_what_fits_the_devices(trainer: list[str], engines: list[list[str]], expected: str) -> None:
    assert choose("auto", trainer, engines) == expected
    assert choose("auto", trainer, engines, lora=True) == "shm"
    assert choose("shm", trainer, engines) == "shm"
    for wanted in ("nccl", "ipc"):
        assert choose(wanted, trainer, engines, lora=True) == "shm"


@pytest.mark.parametrize(
    ("wanted", "trainer", "engines", "message"),
    [
        ("nccl", [""], [[""]], "needs every engine on GPUs of its own, .*; the trainer is on a CPU; set it to auto"),
        ("nccl", ["a"], [["a"]], "the trainer is on 1, the engines on 1 GPUs"),
        ("ipc", ["a"], [["b"], ["c"]], "needs every engine on a GPU that a trainer rank is on; .* the engines on 2"),
    ],
)
def test_what_does_not_fit_is_an_error(wanted: str, trainer: list[str], engines: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=f"generators.weight_transfer={wanted} {'.*' + message}"):
        choose(wanted, trainer, engines)


def test_either_can_be_wanted_where_both_fit() -> None:
    assert choose("ipc", ["a", "b"], [["b"]]) == "ipc"
    assert choose("nccl", ["a", "b"], [["b"]]) == "nccl"  # the first rank's GPU is another


# -------------------------------------------------------------------------------------------- what vLLM is told


def test_nccl_is_told_the_group_and_the_buffer(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(each.bytes for each in weights.metadata())
    info = init_info("nccl", weights, [2, 1], 0, "10.0.0.7:1234")
    assert info == NCCLTrainerInitInfo(
        rank=0, master_address="10.0.0.7", master_port=1234, world_size=4, packed=True, packed_buffer_size_bytes=total
    )
    monkeypatch.setattr(sender, "BUFFER", 1)
    largest = max(each.bytes for each in weights.metadata())
    assert init_info("nccl", weights, [1], 0, "h:1").packed_buffer_size_bytes == largest
    assert init_info("ipc", weights, [1], 1, "") == IPCTrainerInitInfo(
        rank=1, packed=True, packed_buffer_size_bytes=largest
    )


class Call:
    """Writes down what it is asked in the place of an actor's method."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def remote(self, *arguments: Any) -> Any:
        self.calls.append((self.name, *arguments))
        return None


class Engine:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Call:
        return Call(name, self.calls)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda calls, timeout: [0.5 + index for index, _ in enumerate(calls)])


def test_every_worker_of_every_engine_has_a_number_of_its_own(answers: None) -> None:
    payload = worker_init_payload(
        NCCLWeightTransferInitInfo(master_address="h", master_port=1, rank_offset=1, world_size=6, packed=True)
    )
    engines = [Engine(), Engine(), Engine()]
    Engines("nccl", engines, [2, 1, 2], 5).init_weight_transfer_engine(payload)
    offsets = []
    for engine in engines:
        ((name, backend, settings),) = engine.calls
        assert (name, backend) == ("connect", "nccl")
        offsets.append(NCCLWeightTransferInitInfo(**settings).rank_offset)
        assert ConnectInfo(backend=backend, settings=settings).settings["world_size"] == 6
    assert offsets == [1, 3, 4]


def test_ipc_needs_no_numbers(answers: None) -> None:
    engine = Engine()
    Engines("ipc", [engine], [2], 5).init_weight_transfer_engine({"packed": True})
    ((*_, settings),) = engine.calls
    assert IPCWeightTransferInitInfo(**settings).packed


def test_the_longest_pause_counts_and_the_version_is_told(answers: None) -> None:
    engines = [Engine(), Engine()]
    client = Engines("nccl", engines, [1, 1], 5)
    client.version = 7
    client.start_weight_update()
    client.update_weights({"names": []})
    client.finish_weight_update()
    assert engines[0].calls == [
        ("start_weight_update", 5),
        ("receive_weights", {"names": []}),
        ("finish_weight_update", 7),
    ]
    assert client.pause == 1.5


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RayActorError(), "while the trainer asked the engines to start a weight update: The actor experienced"),
        (EngineError("dead"), "while the trainer asked the engines to start a weight update: dead"),
        (GetTimeoutError(), "waited 5 s for the engines to start a weight update"),
    ],
    ids=["dead", "failed", "late"],
)
def test_after_a_failure_nothing_more_is_asked_and_the_group_is_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fails(calls: Sequence[Any], timeout: float) -> None:
        raise error

    monkeypatch.setattr("ray.get", fails)
    living = Engine()
    client = Engines("nccl", [living, Engine()], [1, 1], 5)
    left: list[bool] = []
    client.broken = lambda: left.append(True)
    client.start_weight_update()
    client.update_weights({})
    client.finish_weight_update()
    assert str(client.failure).startswith(line)
    assert left == [True]
    assert [name for name, *_ in living.calls] == ["start_weight_update"]


def test_a_group_that_was_left_broadcasts_nothing() -> None:
    class Communicator:
        calls: list[str] = []

        def broadcast(self, tensor: torch.Tensor, src: int, stream: Any) -> None:
            self.calls.append("broadcast")

        def destroy(self) -> None:
            self.calls.append("destroy")

    group = Group(Communicator())
    group.broadcast(torch.zeros(1), src=0)
    group.destroy()
    group.broadcast(torch.zeros(1), src=0)
    group.destroy()
    assert Communicator.calls == ["broadcast", "destroy"]


# ------------------------------------------------------------------------------------------------------- the weights


def test_what_is_announced_is_what_is_sent(weights: Weights) -> None:
    announced = weights.metadata()
    sent = list(NCCLTrainerWeightTransferEngine._checked_iter(weights, announced))  # raises where they differ
    again = list(weights)
    assert [name for name, _ in sent] == [name for name, _ in again] == [each.name for each in announced]
    assert {tensor.dtype for _, tensor in sent} == {torch.bfloat16}
    assert sum(tensor.nbytes for _, tensor in sent) == sum(each.bytes for each in announced)
    info = NCCLWeightTransferUpdateInfo(
        names=[each.name for each in announced],
        dtype_names=[str(each.dtype).removeprefix("torch.") for each in announced],
        shapes=[list(each.shape) for each in announced],
    )
    assert asdict(info)["names"][0] == "model.embed_tokens.weight"
    assert "lm_head.weight" not in info.names  # tied


def test_vllm_finds_the_back_end_by_its_name() -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    assert WeightTransferEngineFactory._registry[BACKEND]() is PolicyWeightTransferEngine
