"""Bundles and seats for several configurations, without Ray."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.config import load_config
from posttrain.placement import ROLES, Placement, Seat
from rollouts.errors import ConfigError

HALVES = ["trainer.gpus=0.6", "generators.gpus=0.4", "generators.gpu_memory_utilization=0.3"]


def of(command: str, *overrides: str) -> Placement:
    return Placement.of(load_config("tiny", ["generators.count=1", *overrides]), ROLES[command])


def bundles(seats: tuple[Seat, ...]) -> list[int]:
    return [seat.bundle for seat in seats]


# ---------------------------------------------------------------------------------------------------------- bundles


def test_one_gpu_is_shared() -> None:
    found = of("run", *HALVES)
    assert found == Placement((1,), (Seat(0, 0.6),), (Seat(0, 0.4),), (Seat(0, 0.4),))
    assert found.gpus == 1


def test_two_gpus() -> None:
    assert of("rl") == Placement((1, 1), (Seat(0, 1),), (Seat(1, 1),), ())


def test_eight_gpus_and_a_judge_on_all_of_them() -> None:
    found = of("run", "generators.count=4", "trainer.ranks=4", "judge.count=8")
    assert found.bundles == (1,) * 8
    assert (bundles(found.trainer), bundles(found.engines)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert bundles(found.judge) == list(range(8))


def test_the_judge_needs_no_gpu_of_its_own() -> None:
    found = of("run", "generators.count=3")
    assert (found.gpus, bundles(found.judge)) == (4, [0, 1, 2])
    assert of("run", "generators.count=1", "judge.count=4").gpus == 4  # more than RL uses: then it has some


def test_a_model_that_grades_has_gpus_of_its_own_in_every_stage_that_scores() -> None:
    grading = ["rubric.criteria.polite={judge: polite}", "rubric.model=tiny:chat-judge", "rubric.count=2"]
    found = of("rl", *HALVES, *grading, "rubric.tensor_parallel=2")
    assert (found.bundles, found.graders) == ((1, 2, 2), (Seat(1, 2), Seat(2, 2)))
    assert "grader 1 -> bundle 2: 2 of 2 GPUs" in found.lines()
    assert found.asked().endswith("rubric.count=2 with 2 GPUs each: 5 GPUs")
    assert [of(command, *grading).gpus for command in ("prune", "eval", "dpo", "passk")] == [1, 3, 3, 3]


def test_pairs_share_gpus_and_ranks_never_do() -> None:
    found = of("rl", *HALVES, "trainer.ranks=3", "generators.count=3")
    assert found.bundles == (1, 1, 1)
    assert bundles(found.trainer) == bundles(found.engines) == [0, 1, 2]
    small = of("rl", "trainer.ranks=2", "trainer.gpus=0.3", *HALVES[1:])
    assert bundles(small.trainer) == [0, 1]  # though both would fit on one


def test_several_engines_beside_each_rank() -> None:
    quarters = ["generators.gpus=0.25", "generators.gpu_memory_utilization=0.25"]
    found = of("rl", "trainer.ranks=2", "trainer.gpus=0.5", "generators.count=4", *quarters)
    assert (found.gpus, bundles(found.engines)) == (2, [0, 1, 0, 1])
    apart = of("rl", "generators.count=4", *quarters)
    assert (apart.bundles, bundles(apart.trainer), bundles(apart.engines)) == ((1, 1), [0], [1, 1, 1, 1])


def test_engines_with_tensor_parallelism_have_wide_bundles() -> None:
    found = of("run", "generators.count=2", "generators.tensor_parallel=2", "judge.tensor_parallel=1", "judge.count=6")
    assert found.bundles == (1, 2, 2, 1)  # the last for the sixth engine of the judge
    assert found.engines == (Seat(1, 2), Seat(2, 2))
    assert found.judge[:5] == (Seat(0, 1), Seat(1, 1), Seat(1, 1), Seat(2, 1), Seat(2, 1))
    assert bundles(found.judge) == [0, 1, 1, 2, 2, 3]


def test_ranks_and_engines_sit_in_the_bundles_of_a_wide_judge() -> None:
    found = of(
        "run", "generators.count=4", "trainer.ranks=4", "judge.count=2", "judge.tensor_parallel=4",
    )  # fmt: skip
    assert found.bundles == (4, 4)
    assert (bundles(found.trainer), bundles(found.engines)) == ([0] * 4, [1] * 4)
    assert found.judge == (Seat(0, 4), Seat(1, 4))


def test_parts_of_gpus_stay_out_of_wide_bundles() -> None:
    found = of("run", *HALVES, "trainer.ranks=2", "generators.count=2", "judge.count=1", "judge.tensor_parallel=2")
    assert found.bundles == (2, 1, 1)
    assert bundles(found.trainer) == bundles(found.engines) == [1, 2]


@pytest.mark.parametrize(
    ("command", "gpus"), [("run", 5), ("prune", 2), ("rl", 5), ("dpo", 4), ("eval", 4)]
)  # fmt: skip
def test_each_command_takes_what_it_starts(command: str, gpus: int) -> None:
    both = ["generators.count=2", "generators.tensor_parallel=2", "judge.count=1"]
    assert of(command, *both).gpus == gpus


def test_a_bundle_is_never_overfull() -> None:
    third = ["generators.gpus=0.3333", "generators.gpu_memory_utilization=0.3333"]
    for overrides in (
        [*third, "trainer.gpus=0.3333", "generators.count=7", "trainer.ranks=2"],
        [*third, "trainer.gpus=0.6667", "generators.count=3", "trainer.ranks=3"],
        ["generators.count=3", "generators.tensor_parallel=2", "trainer.ranks=3", "judge.tensor_parallel=3"],
    ):
        found = of("run", *overrides)
        for seats in ((*found.trainer, *found.engines), found.judge):
            taken = [0.0] * len(found.bundles)
            for seat in seats:
                taken[seat.bundle] += seat.gpus
            assert all(much <= size + 1e-6 for much, size in zip(taken, found.bundles, strict=True))


# -------------------------------------------------------------------------------------------------------- what it says


def test_who_is_on_each_gpu() -> None:
    assert of("rl", *HALVES).shares() == [(1, 1)]
    assert of("rl", "generators.count=2", "generators.tensor_parallel=2").shares() == [(1, 0), *[(0, 1)] * 4]
    wide = of("run", "generators.count=2", "trainer.ranks=2", "judge.count=1", "judge.tensor_parallel=4")
    assert (wide.bundles, wide.shares()) == ((4,), [(1, 0), (1, 0), (0, 1), (0, 1)])


def test_what_is_lacking() -> None:
    found = of("rl", "generators.count=2", "generators.tensor_parallel=4")
    assert found.lack([9]) == found.lack([4, 5]) == ""
    assert found.lack([8]).startswith("the Ray cluster has 8; lower these")
    assert found.lack([3, 3, 3]).startswith("4 of them on one node, and no node of the Ray cluster has more than 3")
    assert Placement((), (), (), ()).lack([]) == ""


def test_a_run_that_does_not_prune_has_no_judge() -> None:
    printed = CliRunner().invoke(app, ["run", "tiny", "--dry-run", "prune.enabled=false"]).output
    assert "engine 1 -> bundle 2" in printed
    assert "judge 0" not in printed


def test_the_dry_run_prints_the_allocation() -> None:
    printed = CliRunner().invoke(app, ["rl", "llama-3.1-8b", "--dry-run"])
    assert printed.exit_code == 0, printed.output
    seats = [re.sub("  +", "", line) for line in printed.output.splitlines() if "->" in line]
    ranks = [f"#trainer rank {rank} -> bundle {rank}: 1 of 1 GPU" for rank in range(4)]
    assert seats == ranks + [f"#engine {engine} -> bundle {4 + engine}: 1 of 1 GPU" for engine in range(4)]
    assert "# GPUs: 8 in 8 bundles of one placement group; none where the cluster has none" in printed.output
    assert f"# run directory: {Path.cwd()}/runs/llama-3.1-8b" in printed.output
    one = CliRunner().invoke(app, ["run", "llama-3.2-1b", "--dry-run"]).output
    assert "# GPUs: 1 in 1 bundle of one placement group; none where the cluster has none" in one
    assert "judge 0 -> bundle 0: 0.4 of 1 GPU, before the others start" in one


# ----------------------------------------------------------------------------------------------------------- mistakes


SHARED = (
    "a rank with a part of a GPU shares it with an engine, whose generators.gpus={}; expected at most 1 for the two "
)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer.gpus=0.5"], f"trainer.gpus: 0.5: {SHARED.format(1)}together"),
        ([*HALVES[1:], "trainer.gpus=0.7"], f"trainer.gpus: 0.7: {SHARED.format(0.4)}together"),
        (["trainer.gpus=2"], "trainer.gpus: 2: expected at most 1"),
        (
            ["generators.gpus=0.4", "generators.gpu_memory_utilization=0.5"],
            (
                "generators.gpu_memory_utilization: 0.5: an engine has generators.gpus=0.4 of a GPU that it shares; "
                "expected at most so much"
            ),
        ),
        (
            ["generators.tensor_parallel=2", "generators.gpus=0.5"],
            "generators.gpus: 0.5: an engine with generators.tensor_parallel=2 takes so many GPUs; expected 2",
        ),
        (
            ["generators.gpus=2"],
            "generators.gpus: 2.0: an engine with generators.tensor_parallel=1 takes so many GPUs; expected 1 or less",
        ),
    ],
)
def test_shares_that_do_not_fit_are_errors(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", overrides)
    assert str(caught.value) == f"override '{overrides[-1]}': {line}"
