"""Seats on a real Ray that claims to have GPUs: every actor in its bundle with its share, and nothing left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from posttrain import cluster as cluster_module
from posttrain.cluster import Cluster, run
from posttrain.config import Config, load_config, resolve_model
from posttrain.pipeline import evaluate_checkpoint, run_all
from posttrain.placement import ROLES, Seat
from posttrain.rl_stage import train_rl
from posttrain.rundir import RunDir
from posttrain.trainer_ranks import TrainerRanks
from rollouts.errors import UserError
from tests.integration.commands import SMALL
from tests.integration.dummies import Dummy, node_id

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
MEMORY = 100 * 2**20
BASE = resolve_model("tiny:base")


@pytest.fixture(scope="module")
def eight_gpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=8, object_store_memory=MEMORY, **QUIET)
    yield
    ray.shutdown()


def config(*overrides: str) -> Config:
    return load_config("tiny", ["generators.start_timeout=5.0", *overrides])


def seated(cluster: Cluster, seats: tuple[Seat, ...]) -> list[list[str]]:
    """Starts an actor in each seat; asserts its bundle and share, and returns its GPUs' ids."""
    found = []
    for seat, actor in zip(seats, [cluster.actor(Dummy, seat=seat) for seat in seats], strict=True):
        gpus, share, bundles = ray.get(actor.given.remote(), timeout=60)
        assert (share, bundles) == (seat.gpus, [str(seat.bundle)])
        assert len(gpus) == max(1, seat.gpus)
        found.append(gpus)
    return found


def groups() -> list[list[dict[str, float]]]:
    """The bundles of every placement group that there is."""
    return [
        list(group["bundles"].values()) for group in placement_group_table().values() if group["state"] != "REMOVED"
    ]


def wait_for(what: Any, limit: float = 10) -> None:
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------- a run's actors


def test_shared_gpus(eight_gpus: None) -> None:
    halves = ["trainer.gpus=0.6", "generators.gpus=0.4", "generators.gpu_memory_utilization=0.3"]
    with Cluster(config(*halves, "trainer.ranks=3", "generators.count=3"), ROLES["rl"]) as cluster:
        ranks = seated(cluster, cluster.placement.trainer)
        engines = seated(cluster, cluster.placement.engines)
        assert ranks == engines
        assert len({gpu for (gpu,) in ranks}) == 3
        assert groups() == [[{"GPU": 1.0}] * 3]
        assert ray.available_resources()["GPU"] == 5
    assert groups() == []
    wait_for(lambda: ray.available_resources()["GPU"] == 8)


def test_engines_of_two_gpus_and_the_judge_before_them(eight_gpus: None) -> None:
    wide = ["generators.count=3", "generators.tensor_parallel=2", "trainer.ranks=2", "judge.tensor_parallel=4"]
    with Cluster(config(*wide, "judge.count=2"), ROLES["run"]) as cluster:
        assert cluster.placement.bundles == (4, 4)
        judges = [cluster.actor(Dummy, seat=seat) for seat in cluster.placement.judge]
        assert [len(ray.get(judge.given.remote())[0]) for judge in judges] == [4, 4]
        for judge in judges:
            cluster.end(judge)
        ranks = seated(cluster, cluster.placement.trainer)
        engines = seated(cluster, cluster.placement.engines)
        assert len({gpu for gpus in (*ranks, *engines) for gpu in gpus}) == 8
    assert groups() == []


def test_nothing_is_reserved_by_who_starts_nothing(eight_gpus: None) -> None:
    with Cluster(config(), ROLES["rl"]) as cluster:
        assert cluster.gpus() == 8
        cluster.check_gpus()
        ray.get(cluster.actor(Dummy).given.remote())  # as the verifier, without a seat
        assert groups() == []


def test_ranks_meet_and_end_in_their_bundles(eight_gpus: None, tmp_path: Path) -> None:
    with Cluster(config("trainer.ranks=2", "generators.count=1"), ROLES["rl"]) as cluster:
        trainer = TrainerRanks(cluster, BASE, BASE)
        run(trainer.ready(120))
        run(trainer.publish(str(tmp_path / "w.safetensors")))
        trainer.end()
        assert (tmp_path / "w.safetensors").stat().st_size > 10**6


# ------------------------------------------------------------------------------------------------------------ errors


def test_a_request_that_is_too_large_ends_at_once(eight_gpus: None) -> None:
    started = time.monotonic()
    with Cluster(config("generators.count=8"), ROLES["rl"]) as cluster, pytest.raises(UserError) as caught:
        cluster.actor(Dummy, seat=cluster.placement.engines[0])
    assert time.monotonic() - started < 5
    assert str(caught.value) == (
        "trainer.ranks=1 with 1 GPU each, generators.count=8 with 1 GPU each: 9 GPUs, but the Ray cluster has 8; lower "
        "these, or let trainer and engines share GPUs (trainer.gpus and generators.gpus below 1)"
    )
    assert groups() == []


def line(config: Config, path: Path, what: str) -> str:
    """The error of a stage that starts no engine."""
    rundir = RunDir(path, config)
    start = {
        "run": lambda: run_all(config, rundir),
        "rl": lambda: train_rl(config, rundir),
        "eval": lambda: evaluate_checkpoint(config, BASE),
    }[what]
    with pytest.raises(UserError) as caught:
        start()
    return str(caught.value)


def test_more_gpus_than_there_are_is_an_error_before_any_engine_starts(
    eight_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(*arguments: object, **options: object) -> None:
        raise AssertionError("a placement group was asked for, without which no actor can start")

    monkeypatch.setattr("posttrain.cluster.placement_group", group)
    mend = (
        "but the Ray cluster has 8; lower these, or let trainer and engines share GPUs (trainer.gpus and "
        "generators.gpus below 1)"
    )
    eight = load_config("tiny", ["generators.count=8", "data.demonstrations.limit=20"])
    both = "trainer.ranks=1 with 1 GPU each, generators.count=8 with 1 GPU each"
    assert line(eight, tmp_path / "a", "rl") == f"{both}: 9 GPUs, {mend}"
    assert line(eight, tmp_path / "b", "run") == f"{both}, judge.count=8 with 1 GPU each: 9 GPUs, {mend}"
    wide = load_config("tiny", ["generators.count=1", "generators.tensor_parallel=16"])
    assert line(wide, tmp_path / "c", "eval") == f"generators.count=1 with 16 GPUs each: 16 GPUs, {mend}"


def test_as_many_gpus_as_there_are_will_do(eight_gpus: None) -> None:
    with Cluster(config("generators.count=7"), ROLES["rl"]) as cluster:
        cluster.check_gpus()
    with Cluster(config("generators.count=8"), ROLES["eval"]) as cluster:
        cluster.check_gpus()


def test_gpus_that_others_use_are_waited_for_until_the_limit(eight_gpus: None) -> None:
    other = placement_group([{"GPU": 6}])
    assert other.wait(10)
    small = config("generators.count=2", "generators.start_timeout=1.0")
    try:
        with Cluster(small, ROLES["rl"]) as cluster, pytest.raises(UserError) as caught:
            cluster.actor(Dummy, seat=cluster.placement.trainer[0])
    finally:
        remove_placement_group(other)
    assert str(caught.value) == (
        "waited 1 s (generators.start_timeout) for trainer.ranks=1 with 1 GPU each, generators.count=2 with 1 GPU each:"
        " 3 GPUs; the Ray cluster has 8, of which 2 are free; end what uses them, or ask for fewer"
    )
    assert groups() == []


# ----------------------------------------------------------------------------------------------------- several nodes


def test_engines_and_trainer_on_two_nodes_are_an_error(eight_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"bundles_to_node_id": {0: "one", 1: "other"}}
    monkeypatch.setattr("posttrain.cluster.placement_group_table", lambda _: table)
    with Cluster(config("generators.count=1"), ROLES["rl"]) as cluster, pytest.raises(UserError) as caught:
        cluster.actor(Dummy, seat=cluster.placement.trainer[0])
    assert str(caught.value) == (
        "trainer.ranks=1 with 1 GPU each, generators.count=1 with 1 GPU each: 2 GPUs lie on 2 nodes, but engines read "
        "weights that the trainer writes to its node's memory; ask for as many as one node has free"
    )
    assert groups() == []
    with Cluster(config("generators.count=2"), ROLES["eval"]) as cluster:  # engines alone may lie anywhere
        cluster.actor(Dummy, seat=cluster.placement.engines[0])


# --------------------------------------------------------------------------------------------------------- real stages


@pytest.mark.slow
def test_every_stage_runs_on_one_gpu(tmp_path: Path) -> None:
    """Judge and engine do not fit on it together, so the judge must be gone when the engine starts."""
    halves = ["trainer.gpus=0.4", "generators.gpus=0.6", "generators.gpu_memory_utilization=0.6"]
    ray.shutdown()
    ray.init(address="local", num_cpus=2, num_gpus=1, object_store_memory=MEMORY, **QUIET)
    try:
        small = [word for word in SMALL if not word.startswith("prune.")]
        quick = ["rl.steps=1", "dpo.fresh_prompts=24", "eval.samples=1", "eval.pass_k=[1]", "eval.temperatures=[1.0]"]
        settings = config(*small, *quick, *halves, "data.demonstrations.limit=60", "generators.start_timeout=300.0")
        summary = run_all(settings, RunDir(tmp_path / "r", settings))
        assert groups() == []
    finally:
        ray.shutdown()
    found = json.loads(summary.read_text())
    assert list(found["stages"]) == ["base", "sft", "rl", "dpo"]
    assert found["sft"]["rows_in"] == 60
    assert found["rl"]["steps"] == 1


def test_a_cluster_without_gpus_has_no_placement_group() -> None:
    ray.shutdown()
    ray.init(address="local", num_cpus=2, num_gpus=0, object_store_memory=MEMORY, **QUIET)
    try:
        with Cluster(config(), ROLES["run"]) as cluster:
            for _, _, seat in cluster.placement.seats():
                assert ray.get(cluster.actor(Dummy, seat=seat).given.remote(), timeout=60) == ([], 0, [])
            assert groups() == []
    finally:
        ray.shutdown()


# ----------------------------------------------------------------------------------------------- at last: other nodes


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A driver on a node without GPUs, and a node with two; gives the id of the latter."""
    ray.shutdown()
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        node = nodes.add_node(num_cpus=1, num_gpus=2)
        ray.init(address=nodes.address, **QUIET)
        yield node.node_id
        ray.shutdown()
    finally:
        nodes.shutdown()


def test_an_actor_runs_on_the_node_of_its_seat(two_nodes: str) -> None:
    with Cluster(config("generators.count=1"), ROLES["rl"]) as cluster:
        assert node_id() != two_nodes
        dummy = cluster.actor(Dummy, seat=cluster.placement.trainer[0])
        assert ray.get(dummy.node.remote(), timeout=60) == two_nodes
    wide = config("generators.count=1", "generators.tensor_parallel=3")
    with Cluster(wide, ROLES["eval"]) as cluster, pytest.raises(UserError, match="3 GPUs, but the Ray cluster has 2"):
        cluster.actor(Dummy, seat=cluster.placement.engines[0])


def test_weights_are_deleted_on_every_node(two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of this test share a file system, so what is deleted tells where from."""

    def delete(folder: Path, names: str) -> None:
        for path in folder.glob(names):
            (tmp_path / f"{path.name} {node_id()}").touch()

    monkeypatch.setattr(cluster_module, "_delete", delete)
    with Cluster(config("generators.count=1"), ROLES["rl"]) as cluster:
        cluster._connect()
        cluster._weights = tmp_path / "weights"
        cluster._weights.mkdir()
        paths = [Path(cluster.weights_path(version)) for version in range(2)]
        for path in paths:
            path.touch()
        cluster.drop_weights(str(paths[0]))
        cluster.drop_weights(str(tmp_path / "checkpoint"))
        wait_for(lambda: len(list(tmp_path.glob("posttrain-*"))) == 2, 60)
    nodes = (node_id(), two_nodes)
    found = {path.name for path in tmp_path.glob("posttrain-*")}
    assert found == {f"{path.name} {node}" for path in paths for node in nodes}
