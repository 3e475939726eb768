"""Several ranks (gloo, on the CPU) train as one does, and any number of them goes on from a checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from posttrain.ranks import free_address
from posttrain.trainer import PolicyTrainer
from tests.posttrain.test_trainer import BASE, config_of, groups

STEPS = 3


def train(rank: int, address: str, settings: dict[str, Any], folder: str, resume: str | None) -> None:
    """One rank: some steps, then what it has to show, written by rank 0."""
    torch.set_num_threads(1)
    trainer = PolicyTrainer(resume or BASE, BASE, config_of(**settings), rank, address)
    if resume is not None:
        trainer.load_optimizer(resume, STEPS)
    metrics = [trainer.train_step(*groups()) for _ in range(STEPS)]
    Path(folder).mkdir(exist_ok=True)
    trainer.publish(f"{folder}/published.safetensors")
    if rank == 0:
        Path(f"{folder}/checkpoint").mkdir()
    if settings["trainer"].get("ranks", 1) > 1:
        torch.distributed.barrier()
    trainer.save(f"{folder}/checkpoint")
    if rank == 0:
        torch.save([dataclasses.asdict(step) for step in metrics], f"{folder}/metrics.pt")


def run(folder: Path, resume: Path | None = None, **trainer: Any) -> None:
    """So many ranks make the steps."""
    settings: dict[str, Any] = {
        "trainer": trainer, "kl_coef": 0.1, "learning_rate": 1e-3, "tokens_per_microbatch": 200,
        "adam_epsilon": 1e-6,  # at 1e-8 Adam makes whole updates of the rounding of gradients near zero
    }  # fmt: skip
    ranks, checkpoint = trainer.get("ranks", 1), str(resume / "checkpoint") if resume else None
    arguments = (free_address(), settings, str(folder), checkpoint)
    if ranks == 1:
        train(0, *arguments)
    else:
        torch.multiprocessing.spawn(train, arguments, nprocs=ranks)


def shown(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Parameters and metrics after the steps."""
    return load_file(folder / "published.safetensors"), torch.load(folder / "metrics.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run(folder, ranks=2, parallelism="fsdp")
    return folder


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicated")
    run(folder, ranks=2, parallelism="ddp")
    return folder


@pytest.mark.parametrize("two", ["replicated", "sharded"])
def test_two_ranks_give_the_parameters_of_one(alone: Path, two: str, request: pytest.FixtureRequest) -> None:
    (expected, steps), (parameters, metrics) = map(shown, (alone, request.getfixturevalue(two)))
    assert parameters.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, atol=1e-5, rtol=0)
    before = load_file(f"{BASE}/model.safetensors")
    assert all((value - before[name]).abs().max() > 1e-4 for name, value in expected.items())
    for ours, theirs in zip(metrics, steps, strict=True):
        for key in ("loss", "grad_norm", "entropy", "kl", "clip_share", "max_ratio", "tokens"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key


def test_a_checkpoint_of_two_ranks_goes_on_with_one(tmp_path: Path, alone: Path, sharded: Path) -> None:
    saved, same = sharded / "checkpoint", alone / "checkpoint"
    assert sorted(path.name for path in saved.iterdir()) == sorted(path.name for path in same.iterdir())
    run(tmp_path / "one-one", alone)
    run(tmp_path / "two-one", sharded)
    run(tmp_path / "one-two", alone, ranks=2, parallelism="fsdp")
    (expected, _), (parameters, _), (others, _) = (shown(tmp_path / name) for name in ("one-one", "two-one", "one-two"))
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, atol=2e-5, rtol=0)
        torch.testing.assert_close(others[name], value, atol=2e-5, rtol=0)
