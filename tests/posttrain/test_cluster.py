"""Ray that does not start."""

import pytest
import ray

from posttrain.cluster import Cluster
from posttrain.config import load_config
from rollouts.errors import UserError


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with Cluster(load_config("tiny")) as cluster, pytest.raises(UserError) as caught:
        cluster.pool("tiny:base")
    assert str(caught.value).startswith("Ray does not start on this machine: The current node")
    assert "\n" not in str(caught.value)
