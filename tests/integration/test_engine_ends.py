"""Engines that fail or hang in the middle of a request or an update, by made-up ones in real actors."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain import cluster as cluster_module
from posttrain.cluster import Cluster, GeneratorPool, run
from posttrain.config import load_config, resolve_model
from posttrain.workers import RayWorkers
from rollouts import generator
from rollouts.errors import EngineError
from rollouts.generator import Generator, Request
from rollouts.renderer import Renderer
from rollouts.types import Sampling
from tests.rollouts.test_generator import Engine

BASE = resolve_model("tiny:base")


def troubled(folder: Path) -> type[Generator]:
    """Engines that do what a file in the folder names, in a step or in an update: the first that finds it, once."""

    class Troubled(Engine):
        def trouble(self, when: str) -> None:
            for file in sorted(folder.glob(f"{when} *")):
                file.unlink()
                if file.name.split()[1] == "hangs":
                    time.sleep(600)
                raise MemoryError("out of memory")

        def step(self) -> list[Any]:
            self.trouble("step")
            if (folder / "slow").exists():
                self.others_may_end.clear()
                time.sleep(0.2)
            else:
                self.others_may_end.set()
            return super().step()

        def collective_rpc(self, method: str, **_: Any) -> list[str]:
            if method == "start_weight_update":
                self.trouble("update")
            return [""]

    class Actor(Generator):
        def __init__(self, *arguments: Any) -> None:
            engine = Troubled()
            engine.others_may_end.set()
            generator._start_engine = lambda *_: engine  # type: ignore[assignment]
            generator._sampling_params = lambda _: None
            generator.LAST_WORDS = 60  # a busy machine may take long to carry them; it is ended before
            super().__init__(*arguments)

    return Actor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trouble")


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[RayWorkers]:
    """Two engines, of which one makes rollouts and one evaluates; the trainer is a real one."""
    settings = ["generators.count=2", "rl.generators=1", "generators.request_timeout=5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "Generator", troubled(folder))
        patch.setattr(cluster_module, "ALIVE_SECONDS", 3)
        with Cluster(load_config("tiny", settings)) as cluster:
            found = RayWorkers(cluster, cluster.pool(BASE), Renderer(BASE), BASE, BASE, folder)
            run(found.ready())
            run(found.begin(0, None))
            yield found


REQUEST = Request((1, 2), Sampling(max_tokens=8))
OOM = "the engine stopped: MemoryError('out of memory')"


def versions(rollouts: Any) -> set[int]:
    return {version for rollout in rollouts for _, _, version in rollout.policy_versions}


def rolled(workers: RayWorkers) -> set[int]:
    async def work() -> Any:
        return await (await workers._generate(REQUEST, "math"))

    return versions(run(work()))


def evaluated(workers: RayWorkers) -> set[int]:
    found = run(workers._pool.generate([REQUEST] * 3, workers.evaluators))
    return {version for rollouts in found for version in versions(rollouts)}


@pytest.mark.parametrize(
    ("how", "why"), [("fails", OOM), ("hangs", "waited 5 s for an engine to generate")], ids=["fails", "hangs"]
)
@pytest.mark.parametrize(("ask", "engine"), [(rolled, 0), (evaluated, 1)])
def test_a_request_whose_engine_fails_or_hangs_is_given_to_another(
    workers: RayWorkers, folder: Path, capsys: Any, ask: Callable[..., set[int]], engine: int, how: str, why: str
) -> None:
    before = list(workers._pool.actors)
    (folder / f"step {how}").touch()
    assert ask(workers) == {workers._version if engine == 0 else 0}
    assert [new is old for new, old in zip(workers._pool.actors, before, strict=True)] == [engine != 0, engine != 1]
    assert f"engine {engine} died; starting another in its place: {why}" in capsys.readouterr().err


def test_an_engine_that_is_late_but_lives_is_waited_for(
    workers: RayWorkers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, settings = list(workers._pool.actors), workers.config.generators
    assert rolled(workers) == {0}  # so that the next one is not the engine's first, which ends by itself
    changed = {"generators": settings.model_copy(update={"request_timeout": 0.5})}
    monkeypatch.setattr(workers, "config", workers.config.model_copy(update=changed))
    (folder / "slow").touch()

    async def work() -> Any:
        making = asyncio.ensure_future(workers._generate(REQUEST, "math"))
        await asyncio.sleep(2)  # four time-outs
        assert not making.done()
        (folder / "slow").unlink()
        return await (await making)

    assert versions(run(work())) == {0}
    assert workers._pool.actors == before


def test_a_request_that_every_engine_dies_of_ends_the_run(workers: RayWorkers, folder: Path) -> None:
    for index in range(3):
        (folder / f"step fails {index}").touch()
    with pytest.raises(EngineError, match=r"^generator 0 died 3 times: the engine stopped: MemoryError"):
        rolled(workers)
    assert rolled(workers) == {0}


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_an_update_in_which_an_engine_fails_or_hangs_goes_on_with_another(
    workers: RayWorkers, folder: Path, how: str
) -> None:
    version, before = workers._version + 1, workers._pool.actors[0]
    (folder / f"update {how}").touch()
    run(workers.update_weights(version))
    assert workers._pool.actors[0] is not before
    assert rolled(workers) == {version}


def test_an_evaluation_keeps_its_version_over_the_death_of_its_engine(workers: RayWorkers, folder: Path) -> None:
    version = workers._version
    run(workers.update_evaluators())
    run(workers.update_weights(version + 1))
    (folder / "step fails").touch()
    assert evaluated(workers) == {version}
    assert Path(workers._evaluated).exists()
    before = workers._pool.actors[1]
    (folder / "update fails").touch()
    run(workers.update_evaluators())
    assert workers._pool.actors[1] is not before
    assert evaluated(workers) == {version + 1}
    cluster = workers._cluster
    assert [str(path) for path in cluster._weights.glob(f"{cluster._weights_prefix}*")] == [workers._published[0]]


def test_engines_between_stages_are_replaced_with_the_weights_that_they_had(workers: RayWorkers, folder: Path) -> None:
    pool: GeneratorPool = workers._pool
    pool.load(BASE)
    (folder / "step fails").touch()
    assert {version for rollouts in run(pool.generate([REQUEST] * 4)) for version in versions(rollouts)} == {-1}
