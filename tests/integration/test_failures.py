"""A step whose gradient is not finite, and an update that an engine cannot load, with the real actors."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from pyarrow.parquet import read_table
from ray.exceptions import RayActorError
from safetensors.torch import load_file

from posttrain.cluster import Cluster, run
from posttrain.config import load_config, resolve_model
from posttrain.rl_stage import train_rl
from posttrain.rundir import Manifest, RunDir
from posttrain.slots import Draw, Judged
from posttrain.workers import RayWorkers
from rollouts.errors import EngineError, NonFiniteError
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, RolloutGroup

BASE = resolve_model("tiny:base")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    """The real ones, with one engine."""
    config = load_config(
        "tiny", ["generators.count=1", "generators.kv_cache_gib=0.125", "rl.advantage=dr_grpo", "rl.group_size=2"]
    )
    with Cluster(config) as cluster:
        folder = tmp_path_factory.mktemp("rl")
        yield RayWorkers(cluster, cluster.pool(BASE), Renderer(BASE), BASE, BASE, folder)


def judged(draw_id: int, rewards: tuple[float, float], logprob: float = -1.0) -> Judged:
    """A group whose payload is a reference, as the verifier gives it."""
    prompt = Prompt(f"p{draw_id}", ({"role": "user", "content": "1+1"},), "math", answer="2")
    rollouts = [
        Rollout([40, 41], [True, True], [-1.0, logprob], [(0, 2, 0)], "stop", "2", reward, reward > 0)
        for reward in rewards
    ]
    draw = Draw(draw_id, 0, prompt, 0)
    known = Judged(draw, (True, False), sum(rewards) / 2, 0, 4, 0, None)
    return replace(known, payload=ray.put(RolloutGroup(draw_id, prompt, [1, 2, 3], rollouts)))


@pytest.mark.parametrize("bad", [{"rewards": (math.nan, 0.0)}, {"rewards": (math.inf, 0.0)}, {"logprob": -math.inf}])
def test_a_step_that_is_not_finite_leaves_its_batch_and_changes_nothing(
    workers: RayWorkers, bad: dict[str, object], tmp_path: Path
) -> None:
    files = [str(tmp_path / name) for name in ("before", "after")]
    run(workers.trainer.publish(files[0]))
    batch = [judged(7, (1.0, 0.0)), judged(8, **{"rewards": (1.0, 0.0), **bad})]  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError) as caught:
        run(workers.train(batch))
    path = workers._folder / "nonfinite-step-000001.parquet"
    assert re.match(
        r"step 1: the gradient is not finite \(norm (nan|inf), loss .*\); its batch is in ", str(caught.value)
    )
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    rows = read_table(path).to_pylist()
    assert [(row["draw_id"], row["rollout"]) for row in rows] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    numbers = [row["reward"] for row in rows] + [value for row in rows for value in row["logprobs"]]
    assert sum(not math.isfinite(number) for number in numbers) == (2 if "logprob" in bad else 1)
    path.unlink()
    run(workers.trainer.publish(files[1]))
    before, after = (load_file(name) for name in files)
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert run(workers.train([judged(9, (1.0, 0.0))])).grad_norm > 0  # the actor is as good as before


def test_an_engine_that_holds_half_of_an_update_is_replaced(workers: RayWorkers, capsys: pytest.CaptureFixture) -> None:
    run(workers.begin(0, None))
    before = workers._pool.actors[0]
    with pytest.raises(EngineError, match="weight update 1 failed"):
        ray.get(before.update_weights.remote("/nowhere.safetensors", 1))
    with suppress(RayActorError):
        while True:  # its process ends in a moment
            with suppress(EngineError):
                ray.get(before.ready.remote())
    (group,) = run(workers.fresh([Prompt("p", ({"role": "user", "content": "1+1"},), "math")]))
    assert group.versions == {0}
    assert workers._pool.actors[0] is not before
    assert "engine 0 died; starting another in its place" in capsys.readouterr().err


HUGE = """
calls = 0

def reward(prompt, completion):
    global calls
    calls += 1
    right = prompt.answer in completion
    return right * (1e300 if calls > 70 else 1.0)
"""


def test_a_run_that_is_not_finite_ends_with_one_line_and_keeps_its_checkpoint(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huge.py").write_text(HUGE)
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "reward=huge:reward", "rl.advantage=dr_grpo", "generators.count=1", "rl.generators=1", "rl.prompts_per_step=4",
        "rl.quotas={math: 1}", "rl.max_staleness=0", "rl.group_size=4", "rl.sampling.max_tokens=48", "rl.eval_every=0",
        "rl.checkpoint_every=1",
    ]  # fmt: skip
    config = load_config("tiny", words)
    monkeypatch.setattr(workers._cluster, "config", config)
    with pytest.raises(NonFiniteError) as caught:
        train_rl(config, RunDir(tmp_path / "r", config))
    found = re.fullmatch(
        r"step (\d+): the gradient is not finite \(norm nan, loss \S+\); its batch is in (\S+), "
        r"as rollouts are written; look at its rewards and logprobs, or lower rl\.learning_rate, "
        r"and continue with --resume auto",
        str(caught.value),
    )
    assert found, caught.value
    step = int(found[1])
    assert step > 1
    checkpoint = max((tmp_path / "r/rl/checkpoints").iterdir())
    assert Manifest.read(checkpoint).step == step - 1
    assert found[2] == str(tmp_path / f"r/rl/nonfinite-step-{step:06d}.parquet")
    rows = read_table(found[2]).to_pylist()
    assert len(rows) == 4 * 4
    assert max(row["reward"] for row in rows) == 1e300
    assert json.loads(rows[0]["messages"])[-1]["role"] == "user"
