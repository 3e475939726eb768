"""The scripts for machines with a GPU run anywhere in a tiny form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.llama import ONE_BILLION
from tests.gpu.mfu import flops


@pytest.mark.parametrize("more", [[], ["--varied", "--checkpointing", "--dtype", "bfloat16"]])
def test_mfu(more: list[str]) -> None:
    words = [sys.executable, "-m", "tests.gpu.mfu", "--tiny", "--steps", "2", *more]
    ended = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    line = json.loads(ended.stdout)
    assert line["sequences"] * line["longest"] == 512
    assert line["tokens"] == 512 if "--varied" not in more else line["tokens"] < 512
    assert line["tokens_per_second"] > 0


def test_flops_of_a_billion_parameters() -> None:
    """A step of a 1.2B Llama on one sequence of 2048 tokens: 6 FLOPs for each parameter and token, and attention."""
    done = flops(ONE_BILLION, 0, [2048])
    assert pytest.approx(done, rel=0.06) == 6 * 1.236e9 * 2048
    assert 3 * done < flops(ONE_BILLION, 256, [1792] * 4) < 4 * done
