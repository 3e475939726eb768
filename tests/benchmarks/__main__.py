"""`python -m tests.benchmarks [NAME...] [--quick]`: each benchmark prints one line of JSON on stdout."""

from __future__ import annotations

import os

# Before torch is imported: an idle process that keeps two threads spinning halves the speed of the others.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import contextlib
import importlib
import json
import sys

from posttrain.engines import prepare
from tests.benchmarks.harness import Options

LONG = ("quality", "curriculum", "vs_trl_target", "pruning", "judged", "repair")  # run only when they are named
NAMES = ("generate", "sync", "overlap", "vs_trl", "draws", "calibration", "selection", "verify", *LONG)


def main() -> None:
    """Runs the named benchmarks, or all but the long ones, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all but the long ones by default"
    )
    parser.add_argument("--quick", action="store_true", help="one tiny repetition, to see that it runs; no figures")
    parser.add_argument(
        "--fresh", action="store_true", help="forget the measurements in runs/bench, use none that are kept"
    )
    parser.add_argument(
        "--arms", type=int, metavar="N", help="of the long ones: measure at most N unfinished arms, then stop"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of overlap: an override of the preset"
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in NAMES:
            parser.error(f"no benchmark '{name}'; known are {', '.join(NAMES)}")
    if given.set and given.names != ["overlap"]:
        parser.error("--set is an option of the benchmark overlap")
    prepare()
    for name in given.names or [name for name in NAMES if name not in LONG]:
        arms = given.arms if name in LONG else None
        options = Options(given.quick, given.fresh, arms, overrides=tuple(given.set))
        benchmark = importlib.import_module(f"tests.benchmarks.{name}")
        with contextlib.redirect_stdout(sys.stderr):
            line = benchmark.main(options)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
