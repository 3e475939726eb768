"""An engine that keeps the cache of requests in flight over a weight update, and never gives it to later requests."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.cluster import Cluster, engine_settings, run
from posttrain.config import load_config, resolve_model
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Rollout, Sampling
from tests.integration.engines import begun
from tests.integration.reference import logprobs_of

BASE = resolve_model("tiny:base")
# 83 tokens: two full blocks of the cache, which later requests would find if they might.
PROMPT = Renderer(BASE).prompt_tokens(
    (
        {"role": "system", "content": "Work it out step by step. Put the answer between <ans> and </ans>."},
        {"role": "user", "content": "Compute 81 + 17 - 25 + 46 - 9 + 33 - 12 + 54."},
    )
)
SAMPLING = Sampling(max_tokens=300, temperature=1.0)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two models: the base, and the base changed by 20 % noise."""
    torch.manual_seed(0)
    changed = {
        name: value + 0.2 * value.std() * torch.randn_like(value)
        for name, value in load_file(f"{BASE}/model.safetensors").items()
    }
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    save_file(changed, path, metadata={"format": "pt"})
    models = [AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32) for _ in "01"]
    models[1].load_state_dict(changed, strict=False)
    return [*models, str(path)]


@dataclass(frozen=True)
class Sampled:
    """Rollouts that an update fell into, and others of the same prompt after it."""

    kept: bool
    across: list[Rollout]
    after: list[Rollout]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(load_config("tiny", ["generators.count=1"])) as running:
        yield running


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "computed anew"])
def sampled(request: pytest.FixtureRequest, cluster: Cluster, versions: list[Any]) -> Sampled:
    settings = engine_settings(cluster.config, keep_cache=request.param)
    engine = cluster.generator(BASE, settings, cluster.placement.engines[0])

    async def rollouts() -> tuple[list[Rollout], list[Rollout]]:
        await engine.ready.remote()
        await engine.generate.remote(Request(PROMPT, SAMPLING))  # the first one takes longer
        call = engine.generate.remote(Request(PROMPT, SAMPLING, 250, draw_id=0))
        await begun(engine, 16)
        await engine.update_weights.remote(versions[2], 1)
        return [each for each in await call if len(each.policy_versions) > 1], await engine.generate.remote(
            Request(PROMPT, SAMPLING, 4)
        )

    found = Sampled(request.param, *run(rollouts()))
    cluster.end(engine)
    return found


def apart(model: Any, rollout: Rollout) -> torch.Tensor:
    """How far each token's stored log-probability is from a model's own: [T]."""
    row = {"prompt_token_ids": list(PROMPT), "token_ids": rollout.token_ids}
    with torch.no_grad():
        return (logprobs_of(model, row, 1.0) - torch.tensor(rollout.logprobs)).abs()


def test_tokens_after_an_update_are_of_the_new_weights_on_the_cache_that_there_is(
    versions: list[Any], sampled: Sampled
) -> None:
    assert len(sampled.across) > 4
    for rollout in sampled.across:
        (start, end, first), (_, _, second) = rollout.policy_versions
        assert (start, first, second) == (0, 0, 1)
        assert apart(versions[0], rollout)[:end].max() < 1e-4
    later = torch.cat([apart(versions[1], each)[each.policy_versions[1][0] :] for each in sampled.across])
    before = torch.cat([apart(versions[0], each)[each.policy_versions[1][0] :] for each in sampled.across])
    assert later.mean() < before.mean() / 2
    assert (later.max() > 1e-2) if sampled.kept else (later.max() < 1e-4)


def test_requests_after_an_update_never_see_what_was_cached_before_it(versions: list[Any], sampled: Sampled) -> None:
    for rollout in sampled.after:
        assert rollout.policy_versions == [(0, len(rollout.token_ids), 1)]
        assert apart(versions[1], rollout).max() < 1e-4
