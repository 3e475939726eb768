"""Weight updates between devices, with real engines and two real trainer ranks, as far as a CPU goes.

vLLM's code packs, sends, receives and loads; NCCL, CUDA's streams and its shared memory are replaced (`store_group`).
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from safetensors.torch import load_file

from posttrain import cluster as cluster_module
from posttrain import trainer_ranks
from posttrain import workers as workers_module
from posttrain.cluster import Cluster, run
from posttrain.config import load_config, resolve_model
from posttrain.slots import Draw, Judged
from posttrain.workers import RayWorkers
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Sampling
from tests.integration.engines import begun
from tests.integration.store_group import MEMORY, StoreGenerator, StoreTrainer

BASE = resolve_model("tiny:base")
PROMPTS = [Prompt(f"p{index}", ({"role": "user", "content": f"{index}+1"},), "math") for index in range(2)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    """Two engines and two trainer ranks that hold half of each parameter, sent by broadcast."""
    config = load_config(
        "tiny",
        [
            "generators.count=2",
            "rl.generators=2",
            "generators.kv_cache_gib=0.125",
            "generators.request_timeout=120",
            "trainer.ranks=2",
            "trainer.parallelism=fsdp",
            "rl.max_concurrent_rollouts=17",  # two groups of 8
        ],
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(cluster_module, "Generator", StoreGenerator)
    patch.setattr(workers_module, "ALIVE_SECONDS", 5)
    patch.setattr(trainer_ranks, "PolicyTrainer", StoreTrainer)
    with patch.context(), Cluster(config) as cluster:
        folder = tmp_path_factory.mktemp("rl")
        found = RayWorkers(cluster, cluster.pool(BASE), Renderer(BASE), BASE, BASE, folder)
        run(found.ready())
        assert found.transport.name == "shm"  # there is no GPU
        found._use("nccl")
        run(found.begin(0, None))
        yield found
    patch.undo()
    for memory in Path(tempfile.gettempdir()).glob(f"{MEMORY}*"):
        memory.unlink()


def perturb(workers: RayWorkers, seed: int) -> None:
    """Changes the trainer's weights, which the engines then have not got."""
    ray.get([actor.perturb.remote(seed) for actor in workers.trainer.actors])
    assert run(workers.drift(PROMPTS)) > 0.05


def files(workers: RayWorkers) -> list[Path]:
    cluster = workers._cluster
    return list(cluster._weights.glob(f"{cluster._weights_prefix}*"))


def actors(workers: RayWorkers) -> list[Any]:
    return list(workers._pool.actors)


def test_a_broadcast_reaches_every_engine_and_leaves_no_file(workers: RayWorkers) -> None:
    perturb(workers, 1)
    pause = run(workers.update_weights(1))
    assert run(workers.drift(PROMPTS)) < 1e-4
    assert 0 < pause < 60
    assert workers.sent is not None
    parameters = load_file(Path(BASE, "model.safetensors")).values()
    assert workers.sent.bytes == sum(4 * tensor.numel() for tensor in parameters)
    assert files(workers) == []


def test_requests_go_on_over_an_update(workers: RayWorkers) -> None:
    async def both() -> list[Any]:
        tokens = workers._renderer.prompt_tokens(PROMPTS[0].messages)
        sampling = Sampling(max_tokens=400, temperature=1.0)
        requests = [Request(tokens, sampling, 8, seed=seed, draw_id=seed) for seed in range(16)]
        calls = [actor.generate_all.remote(requests) for actor in actors(workers)]
        await asyncio.gather(*(begun(actor, 16) for actor in actors(workers)))
        await workers.update_weights(2)
        return [await call for call in calls]

    rollouts = [rollout for engine in run(both()) for request in engine for rollout in request]
    versions = [[version for _, _, version in rollout.policy_versions] for rollout in rollouts]
    assert [1, 2] in versions
    assert all(each in ([1], [2], [1, 2]) for each in versions)


def test_no_more_groups_are_under_way_than_an_update_may_interrupt(
    workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, under_way, seen = workers._generate, 0, []

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        try:
            return await generate(*arguments, **named)
        finally:
            under_way -= 1

    async def twelve() -> list[Judged]:
        await workers.begin(2, None)
        prompt = replace(PROMPTS[0], answer="1")
        return await asyncio.gather(*(workers.rollout(Draw(index, 0, prompt, 2)) for index in range(12)))

    monkeypatch.setattr(workers, "_generate", counted)
    assert len(run(twelve())) == len(seen) == 12
    assert max(seen) == 2 * 2  # engines


def test_an_engine_that_died_before_takes_part_in_a_group_made_anew(workers: RayWorkers) -> None:
    perturb(workers, 3)
    before = actors(workers)
    ray.kill(before[0])
    with contextlib.suppress(RayActorError):
        while True:  # it may answer for a moment yet
            ray.get(before[0].ready.remote(), timeout=60)
    run(workers.update_weights(3))
    assert actors(workers)[0] is not before[0]
    assert actors(workers)[1] is before[1]
    assert workers.transport.engines == actors(workers)
    assert run(workers.drift(PROMPTS)) < 1e-4


def test_an_engine_that_dies_in_the_middle_has_all_replaced(workers: RayWorkers) -> None:
    perturb(workers, 4)
    before = actors(workers)
    ray.get(before[1].die_in_the_middle.remote())
    run(workers.update_weights(4))
    assert not {*actors(workers)} & {*before}
    assert run(workers.drift(PROMPTS)) < 1e-4  # by a file
    perturb(workers, 5)
    run(workers.update_weights(5))
    assert run(workers.drift(PROMPTS)) < 1e-4  # by a group again
    assert workers.transport.engines == actors(workers)
    assert files(workers) == []


def test_engines_read_the_memory_of_a_device_that_they_share(workers: RayWorkers) -> None:
    workers._use("ipc")
    perturb(workers, 6)
    run(workers.update_weights(6))
    assert run(workers.drift(PROMPTS)) < 1e-4
    assert workers.transport.name == "ipc"
    assert files(workers) == []
