"""The whole loop, through Ray and vLLM, against a plain one: the same parameters, and every token's log-probability.

And the loop that finds out by itself where these are not the same.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.cluster import Cluster
from posttrain.config import RLConfig, load_config, resolve_model
from posttrain.rl_stage import train_rl
from posttrain.rundir import Manifest, RunDir
from posttrain.sender import Sent
from posttrain.transport import SharedMemory
from rollouts.errors import DriftError
from rollouts.recorder import read_shards
from tests.integration.commands import SMALL
from tests.integration.reference import Rows, train

STEPS = 12
BASE = resolve_model("tiny:base")


@dataclass(frozen=True)
class Recorded:
    """What a finished RL run left: its batches, everything that it sampled, and its parameters."""

    config: RLConfig
    batches: list[list[Rows]]
    everything: Rows
    parameters: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(load_config("tiny", SMALL)) as running:
        yield running


def recorded(cluster: Cluster, path: Path, *overrides: str) -> Recorded:
    words = [*SMALL, f"rl.steps={STEPS}", f"rl.checkpoint_every={STEPS}", *overrides]
    config = cluster.config = load_config("tiny", words)
    train_rl(config, RunDir(path, config))
    rows = read_shards(sorted((path / "rl/rollouts").glob("*.parquet")))
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["draw_id"], []).append(row)
    with sqlite3.connect(path / "ledger.db") as ledger:
        trained = ledger.execute(
            "SELECT step, draw_id FROM draws WHERE state = 'trained' ORDER BY step, draw_id"
        ).fetchall()
    batches: list[list[Rows]] = [[groups[draw] for at, draw in trained if at == step] for step in range(1, STEPS + 1)]
    assert {len(batch) for batch in batches} == {6}
    parameters = load_file(path / f"rl/checkpoints/step-{STEPS:06d}/model.safetensors")
    return Recorded(config.rl, batches, rows, parameters)


# In float32 two ways to add up a gradient differ by some 1e-7 of its terms. Adam divides by the gradient's own size, so
# where it is nearly zero the difference becomes a share of the learning rate, whatever else agrees: with the tiny
# preset's 4e-4 and epsilon 1e-8 they end up 1e-5 apart. A learning rate of 1e-5, still ten times what large models are
# trained at, and an epsilon above the noise of the sums take that away.
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_the_loop_is_a_plain_loop(cluster: Cluster, tmp_path: Path, max_staleness: int) -> None:
    settings = ["rl.learning_rate=1e-5", "rl.adam_epsilon=1e-6"]
    run = recorded(cluster, tmp_path / "r", f"rl.max_staleness={max_staleness}", *settings)
    model, own, next_ones = train(BASE, run.batches, run.everything, run.config, range(2, 8))
    expected, before = dict(model.named_parameters()), load_file(f"{BASE}/model.safetensors")
    assert run.parameters.keys() == expected.keys()
    for name, value in run.parameters.items():
        torch.testing.assert_close(value, expected[name].detach(), atol=1e-6, rtol=0)
        assert (value - before[name]).abs().max() > 1e-5, name
    assert max(own) < 1e-4  # under the version that each token claims
    assert min(next_ones) > 1e-3  # and not under the one before, or the claim would say nothing
    in_flight = sum(len(row["policy_versions"]) > 1 for row in run.everything)
    assert in_flight == 0 if max_staleness == 0 else in_flight > 10


def drifts(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["drift"] for line in lines if "drift" in line}


def test_rl_stops_when_engines_and_trainer_drift_apart(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From version 2 on the engines keep their old weights and claim the new version."""
    send = SharedMemory.send

    async def stale(self: SharedMemory, version: int) -> Sent:
        return Sent(0.0, 0) if version >= 2 else await send(self, version)

    monkeypatch.setattr(SharedMemory, "send", stale)
    words = ["rl.steps=9", "rl.drift_every=1", "rl.learning_rate=3e-3", "rl.lr_scheduler_type=constant"]
    cluster.config = load_config("tiny", [*SMALL, *words])
    run = RunDir(tmp_path / "r", cluster.config)
    with pytest.raises(DriftError) as caught:
        train_rl(run.config, run)
    line, found = str(caught.value), drifts(run.path)
    assert list(found) == [0, 1, 2]
    assert max(found[0], found[1]) < 1e-5
    assert found[2] > 0.001
    (checkpoint,) = run.checkpoints("rl")
    assert Manifest.read(checkpoint).step == 2
    assert "nats apart on average after step 2, more than 0.001 (rl.max_drift); probably weights that an upd" in line
    assert f"they agreed after step 1; {checkpoint} holds the policy" in line
    assert "\n" not in line
