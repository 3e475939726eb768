"""A run with real engines that is killed three times and continued: `make chaos` in small."""

import json
from pathlib import Path

from posttrain.ledger import Ledger
from tests.chaos import command, parameters_apart, suffer, trained
from tests.integration.commands import posttrain


def test_a_killed_synchronous_run_trains_on_the_same_draws_and_tokens_to_the_same_parameters(tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    whole.mkdir()
    found = suffer(broken, ["rl.max_staleness=0"], kills=3, seed=0, longest=2.0, once_training=True, more=4)
    assert (len(found.kills), found.problems) == (3, ())
    assert any(step > 0 for _, step, _ in Ledger(broken / "r/ledger.db", read_only=True).attempts())
    posttrain(*command(["rl.max_staleness=0"], found.steps), cwd=whole)
    assert trained(broken / "r") == trained(whole / "r")
    assert parameters_apart(broken / "r", whole / "r") == 0
    steps = [line["step"] for line in map(json.loads, (broken / "r/metrics.jsonl").read_text().splitlines())]
    assert sorted(steps) == sorted(set(steps))
    said = posttrain("ledger", "r", "--verify", cwd=broken).out
    assert "each exactly once, in ledger, shards and trainer alike" in said
