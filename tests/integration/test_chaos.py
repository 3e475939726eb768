"""Runs with real engines that are killed three times and continued: `make chaos` in small."""

from pathlib import Path

from tests.chaos import command, suffer, trained
from tests.integration.commands import posttrain


def test_a_killed_synchronous_run_trains_on_the_same_draws_and_tokens(tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    whole.mkdir()
    found = suffer(broken, ["rl.max_staleness=0"], kills=3, seed=0, longest=5.0, once_training=True)
    assert (len(found.kills), found.problems) == (3, ())
    assert found.lives > 1
    posttrain(*command(["rl.max_staleness=0"], found.steps), cwd=whole)
    assert trained(broken / "r") == trained(whole / "r")
    said = posttrain("ledger", "r", "--verify", cwd=broken).out
    assert "each exactly once, in ledger, shards and trainer alike" in said


def test_a_killed_asynchronous_run_accounts_for_every_draw(tmp_path: Path) -> None:
    found = suffer(tmp_path, ["rl.max_staleness=2"], kills=3, seed=1, longest=5.0, once_training=True)
    assert (len(found.kills), found.problems) == (3, ())
    assert found.lives > 1
