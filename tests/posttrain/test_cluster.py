"""Ray that does not start."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray

from posttrain.cluster import Cluster
from posttrain.config import load_config
from rollouts.errors import UserError


def test_weights_go_to_shared_memory_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have 64 MB of it unless somebody asks for more, which small models would fill."""
    for free, folder in ((2**26, Path(tempfile.gettempdir())), (2**32, Path("/dev/shm"))):
        usage = shutil._ntuple_diskusage(2**33, 2**33 - free, free)
        monkeypatch.setattr("posttrain.cluster.shutil.disk_usage", lambda _, usage=usage: usage)
        assert Path(Cluster(load_config("tiny")).weights_path(3)).parent == folder


def test_weights_of_a_run_that_was_killed_are_deleted_by_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    def cluster() -> Cluster:
        found = Cluster(load_config("tiny"))
        found._weights = tmp_path
        return found

    script = f"""
import time
from pathlib import Path
from posttrain.cluster import Cluster
from posttrain.config import load_config
cluster = Cluster(load_config("tiny"))
cluster._weights = Path({str(tmp_path)!r})
path = Path(cluster.weights_path(3))
path.touch()
print(path.name, flush=True)
time.sleep(600)
"""
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        theirs = tmp_path / running.stdout.readline().strip()
        own = cluster()
        mine = Path(own.weights_path(1))
        mine.touch()
        assert theirs.exists()  # their process lives
    finally:
        running.kill()
        running.wait()
    other = cluster()
    other.weights_path(1)
    assert not theirs.exists()
    assert mine.exists()
    for each in (own, other):
        each.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What starts of Ray fail with, one after the other; they succeed when none is left."""
    left: list[str] = []

    def init(**options: object) -> None:
        if left:
            raise Exception(left.pop())

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    return left


def test_ray_that_does_not_start_is_tried_again(fails: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails.append("The node timed out.\nThis could happen …")
    Cluster(load_config("tiny"))._connect()
    assert capsys.readouterr().err == "Ray did not start: The node timed out; trying once more\n"


def test_ray_that_does_not_start_is_one_line(fails: list[str]) -> None:
    fails += ["The current node timed out during startup.\nThis could happen …"] * 2
    with Cluster(load_config("tiny")) as cluster, pytest.raises(UserError) as caught:
        cluster.pool("tiny:base")
    assert str(caught.value).startswith("Ray does not start on this machine: The current node")
    assert "\n" not in str(caught.value)
