"""A LoRA policy in the loop's own workers: engines are given the adapter alone, and serve exactly what is trained."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from posttrain.adapters import ADAPTER, whole_model
from posttrain.cluster import Cluster, run
from posttrain.config import load_config, resolve_model
from posttrain.workers import RayWorkers
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Prompt, RolloutGroup
from tests.integration.engines import begun
from tests.posttrain.test_trainer import groups

BASE = resolve_model("tiny:base")
PROMPTS = [Prompt(f"p{index}", ({"role": "user", "content": f"{index}+1"},), "math") for index in range(2)]
SETTINGS = ["lora.rank=12", "generators.count=1", "rl.learning_rate=1e-2", "rl.lr_scheduler_type=constant"]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    with Cluster(load_config("tiny", SETTINGS)) as cluster:
        folder = tmp_path_factory.mktemp("rl")
        found = RayWorkers(cluster, cluster.pool(BASE), Renderer(BASE), BASE, BASE, folder)
        run(found.ready())
        run(found.begin(0, None))
        yield found


def train(workers: RayWorkers) -> None:
    """A step that the engine does not know of yet."""
    run(workers.trainer.train_step([ray.put(group) for group in groups()]))
    assert run(workers.drift(PROMPTS)) > 0.01


def check_in_flight(workers: RayWorkers, version: int) -> None:
    """Rollouts that are in flight during an update: what claims the new version is as likely as it says under it."""
    tokens = workers._renderer.prompt_tokens(PROMPTS[0].messages)
    sampling = replace(workers._sampling, max_tokens=400)
    requests = [Request(tokens, sampling, 8, seed=seed, draw_id=seed) for seed in range(16)]
    (engine,) = workers._pool.actors

    async def made() -> Any:
        call = engine.generate_all.remote(requests)
        await begun(engine, 16)
        await workers.update_weights(version)
        return await call

    rollouts = [rollout for found in run(made()) for rollout in found]
    over = [each for each in rollouts if [span[2] for span in each.policy_versions] == [version - 1, version]]
    assert len(over) > 4
    for rollout in over[:10]:
        group = RolloutGroup(-1, PROMPTS[0], list(tokens), [rollout])
        stored_T, now_T = run(workers.trainer.logprobs([group]))
        start = rollout.policy_versions[1][0]
        assert (stored_T - now_T)[start:].abs().max() < 1e-3
        assert (stored_T - now_T)[:start].abs().max() > 1e-3  # or the claims would say nothing


def test_requests_before_the_first_update_take_up_the_adapter(workers: RayWorkers) -> None:
    assert run(workers.drift(PROMPTS)) < 1e-4
    train(workers)
    check_in_flight(workers, 1)


def test_each_update_sends_the_adapter_alone(workers: RayWorkers) -> None:
    for version in (2, 3):
        train(workers)
        run(workers.update_weights(version))
        assert run(workers.drift(PROMPTS)) < 1e-4
        assert workers.sent is not None
        assert workers.sent.bytes < Path(BASE, "model.safetensors").stat().st_size / 2
        assert (Path(workers._published[0]) / ADAPTER).is_file()


def test_requests_in_flight_go_on_under_the_new_adapter(workers: RayWorkers) -> None:
    train(workers)
    check_in_flight(workers, 4)


def test_a_merged_checkpoint_takes_the_place_of_model_and_adapter(workers: RayWorkers, tmp_path: Path) -> None:
    train(workers)
    checkpoint = tmp_path / "step-000005"
    checkpoint.mkdir()
    run(workers.trainer.save(str(checkpoint)))
    workers._pool.load(whole_model(checkpoint))
    assert run(workers.drift(PROMPTS)) < 1e-4
