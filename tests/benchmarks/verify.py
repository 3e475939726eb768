"""Verdicts per second of the built-in verifiers, on two cores. Targets: 1,000 on answers as GSM8K has them, 50 on
LaTeX, 100 simple checks of programs.

As `posttrain verify` judges, in as many threads as there are cores; half of the answers are wrong. Programs are checked
in the sandbox by inputs, by asserts and as scripts, a third each. Workers are started before the clock is. `value` is
the least of the three rates over its target.

Budget: a minute.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from judges.verifiers import VERIFIERS
from rollouts.types import Prompt
from tests.benchmarks.harness import Bench, Measurement, Options, column, spread

TARGETS = {"numbers": 1000, "latex": 50, "programs": 100}
LATEX = (
    (r"\frac{{1}}{{{n}}}", r"\frac{{2}}{{{m}}}"), (r"\sqrt{{{n}}}", r"\frac{{{n}}}{{\sqrt{{{n}}}}}"),
    (r"(x+{n})^2", r"x^2+{m}x+{n}^2"), (r"\frac{{\pi}}{{{n}}}", r"\pi/{n}"), (r"({n}, {m})", r"({n},{m})"),
    (r"\{{{n}, {m}\}}", r"\{{{m}, {n}\}}"), (r"2^{{{n}}}", r"4^{{{n}/2}}"), (r"[{n}, \infty)", r"[{n},\infty)"),
)  # fmt: skip
"""Pairs that are equal for any n with m = 2n."""


def numbers(rng: random.Random) -> tuple[str, Prompt, str]:
    """An answer as GSM8K has them."""
    each, count = rng.randint(2, 90), rng.randint(2, 400)
    total = each * count
    said = total + rng.randint(0, 1)
    working = f"They sell {count} boxes of {each}, which is {count}*{each} = <<{count}*{each}={said}>>{said:,}."
    return "math", Prompt("p", (), answer=str(total)), f"{working}\n#### {said:,}"


def latex(rng: random.Random) -> tuple[str, Prompt, str]:
    """An answer in LaTeX."""
    (answer, reference), n = rng.choice(LATEX), rng.randint(2, 50)
    m = 2 * n + rng.randint(0, 1)
    return (
        "math",
        Prompt("p", (), answer=reference.format(n=n, m=m)),
        rf"So it is $\boxed{{{answer.format(n=n, m=2 * n)}}}$.",
    )


def programs(rng: random.Random) -> tuple[str, Prompt, str]:
    """A program with tests of one of the three kinds."""
    factor, n = rng.randint(2, 9), rng.randint(1, 99)
    expected = n * factor + rng.randint(0, 1)
    kind = rng.randrange(3)
    if kind == 0:
        return "code", Prompt("p", (), tests=({"input": n, "output": expected},)), f"def f(x): return x * {factor}"
    if kind == 1:
        return "code", Prompt("p", (), tests=(f"assert f({n}) == {expected}",)), f"def f(x): return x * {factor}"
    tests = ({"input": f"{n}\n", "output": f"{expected}\n"},)
    return "code", Prompt("p", (), tests=tests), f"print(int(input()) * {factor})"


def rate(cases: Sequence[tuple[str, Prompt, str]]) -> Measurement:
    """Judges them all."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        started = time.perf_counter()
        scores = list(pool.map(lambda case: VERIFIERS[case[0]](*case[1:]), cases))
        seconds = time.perf_counter() - started
    return {"per_second": len(cases) / seconds, "solved": sum(score.outcome for score in scores) / len(cases)}


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    counts = {"numbers": 200, "latex": 10, "programs": 12} if options.quick else {
        "numbers": 20_000, "latex": 400, "programs": 900,
    }  # fmt: skip
    settings = {"counts": counts, "repetitions": 1 if options.quick else 5}
    bench = Bench("verify", options, settings, (Path(__file__),))
    kinds: dict[str, Callable[[random.Random], tuple[str, Prompt, str]]] = {
        "numbers": numbers, "latex": latex, "programs": programs,
    }  # fmt: skip

    def measure(kind: str, seed: int) -> Measurement:
        rng = random.Random(seed)
        rate([kinds[kind](rng) for _ in range(8)])
        return rate([kinds[kind](rng) for _ in range(counts[kind])])

    measured = bench.interleave({kind: partial(measure, kind) for kind in kinds}, settings["repetitions"])
    rates = {kind: spread(column(found, "per_second")) for kind, found in measured.items()}
    solved = {f"{kind}_solved": spread(column(found, "solved"))["median"] for kind, found in measured.items()}
    value = min(rates[kind]["median"] / target for kind, target in TARGETS.items())
    return bench.line(value, 1.0, "at least", unit="least rate over its target", **rates, **solved)
