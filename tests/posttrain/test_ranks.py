"""Several ranks (gloo, on the CPU) train as one does, and any number of them goes on from a checkpoint."""

import dataclasses
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch.distributed import TCPStore

from posttrain.ranks import address_of, open_store
from posttrain.trainer import PolicyTrainer
from tests.posttrain.test_trainer import BASE, config_of, groups

STEPS = 3


@dataclass(frozen=True)
class Job:
    """Some steps, from a checkpoint or the base; `folder` gets what there is to show of them."""

    folder: Path
    trainer: dict[str, Any]
    resume: Path | None = None
    address: str = ""

    def run(self, rank: int = 0) -> None:
        """One rank's part."""
        settings: dict[str, Any] = {
            "trainer": self.trainer, "kl_coef": 0.1, "learning_rate": 1e-3, "tokens_per_microbatch": 200,
            "adam_epsilon": 1e-6,  # at 1e-8 Adam makes whole updates of the rounding of gradients near zero
        }  # fmt: skip
        start = BASE if self.resume is None else str(self.resume / "checkpoint")
        trainer = PolicyTrainer(start, BASE, config_of(**settings), rank, self.address)
        if self.resume is not None:
            trainer.load_optimizer(start, STEPS)
        metrics = [trainer.train_step(*groups()) for _ in range(STEPS)]
        self.folder.mkdir(exist_ok=True)
        trainer.publish(f"{self.folder}/published.safetensors")
        if rank == 0:
            (self.folder / "checkpoint").mkdir()
        if self.trainer:
            torch.distributed.barrier()
        trainer.save(f"{self.folder}/checkpoint")
        if rank == 0:
            torch.save([dataclasses.asdict(step) for step in metrics], f"{self.folder}/metrics.pt")
        if self.trainer:
            torch.distributed.destroy_process_group()

    def shown(self) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        """Parameters and metrics after the steps."""
        return load_file(self.folder / "published.safetensors"), torch.load(self.folder / "metrics.pt")


def run_all(rank: int, jobs: list[Job]) -> None:
    """One rank's part of several jobs: a process takes longer to start than a job to run."""
    torch.set_num_threads(1)
    for job in jobs:
        job.run(rank)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("alone"), {})
    job.run()
    return job


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, alone: Job) -> dict[str, Job]:
    """What two ranks make of it."""
    folder = tmp_path_factory.mktemp("pairs")
    ddp, fsdp = ({"ranks": 2, "parallelism": name} for name in ("ddp", "fsdp"))
    stores = [open_store() for _ in range(3)]
    first, second, third = (address_of(store) for store in stores)
    jobs = {
        "ddp": Job(folder / "ddp", ddp, address=first),
        "fsdp": Job(folder / "fsdp", fsdp, address=second),
        "goes on": Job(folder / "on", fsdp, alone.folder, third),
    }
    torch.multiprocessing.spawn(run_all, (list(jobs.values()),), nprocs=2)
    return jobs


def test_a_store_keeps_its_port_before_any_rank_is_there() -> None:
    store = open_store()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("0.0.0.0", store.port))
    TCPStore("127.0.0.1", store.port).set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_ranks_give_the_parameters_of_one(alone: Job, pairs: dict[str, Job], parallelism: str) -> None:
    expected, steps = alone.shown()
    parameters, metrics = pairs[parallelism].shown()
    assert parameters.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, atol=1e-5, rtol=0)
    before = load_file(f"{BASE}/model.safetensors")
    assert all((value - before[name]).abs().max() > 1e-4 for name, value in expected.items())
    for ours, theirs in zip(metrics, steps, strict=True):
        for key in ("loss", "grad_norm", "entropy", "kl", "clip_share", "max_ratio", "tokens"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key


def test_a_checkpoint_goes_on_with_more_ranks_or_fewer(tmp_path: Path, alone: Job, pairs: dict[str, Job]) -> None:
    saved, same = pairs["fsdp"].folder / "checkpoint", alone.folder / "checkpoint"
    assert sorted(path.name for path in saved.iterdir()) == sorted(path.name for path in same.iterdir())
    one, fewer = Job(tmp_path / "one", {}, alone.folder), Job(tmp_path / "fewer", {}, pairs["fsdp"].folder)
    one.run()
    fewer.run()
    expected, _ = one.shown()
    for job in (fewer, pairs["goes on"]):
        parameters, _ = job.shown()
        for name, value in expected.items():
            torch.testing.assert_close(parameters[name], value, atol=2e-5, rtol=0)
