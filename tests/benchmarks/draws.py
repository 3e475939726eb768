"""Draws per second of the prompt sampler on a million prompts, each draw with what becomes of it. Target: 20,000.

`signal` on three capabilities, 192 draws at each policy version and 400 in flight, while the band of pass rates moves
from medium to hard. Beside it: the process's memory (target: at most 1 GiB) and the seconds to save and to restore the
state (target: less than 5 each), all of which must hold.

The million prompts are a sequence that makes each one as it is asked for, as rows of an Arrow table would be: kept as
Python objects, they alone would take more than the memory. Each repetition has a process of its own. Simulated
outcomes are part of the time.

Budget: two minutes on one core.
"""

from __future__ import annotations

import bisect
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from curricula.curriculum import Curriculum
from curricula.sampler import PromptSampler
from rollouts.types import Prompt
from tests.benchmarks.harness import Bench, Measurement, Options, column, spread

CAPABILITIES = ("math", "code", "chat")
GROUP = 8
IN_FLIGHT = 400
PER_VERSION = 192


class Generated(Sequence[Prompt]):
    """Prompts that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> Prompt: ...
    @overload
    def __getitem__(self, row: slice) -> list[Prompt]: ...
    def __getitem__(self, row: int | slice) -> Prompt | list[Prompt]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(self._count))]
        if row >= self._count:
            raise IndexError(row)
        name = f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}"
        return Prompt(name, (), CAPABILITIES[row % 3], difficulty=row % 5, source="abc"[row % 7 % 3])


def simulate(prompts: int, draws: int, seed: int) -> Measurement:
    """Draws and observes, then saves and restores."""
    rng = np.random.default_rng(seed)
    rates = (1 / (1 + np.exp(-rng.normal(0, 3, prompts)))).astype(np.float32)
    luck = np.sort(rng.random((10_000, GROUP), dtype=np.float32), axis=1).tolist()
    outcomes = [tuple(index < solved for index in range(GROUP)) for solved in range(GROUP + 1)]
    rows = Generated(prompts)
    versions = max(1, draws // PER_VERSION)
    started = time.perf_counter()
    sampler = PromptSampler(rows, "signal", GROUP, seed, Curriculum(steps=versions))
    begin = time.perf_counter() - started
    under_way: deque[tuple[int, int, int]] = deque()
    mixed = 0
    started, cpu = time.perf_counter(), time.process_time()
    for index in range(draws):
        version = index // PER_VERSION
        row = sampler.draw(CAPABILITIES[index % 3], version)
        solved = bisect.bisect(luck[index % 10_000], rates[row])
        mixed += 0 < solved < GROUP
        under_way.append((row, solved, version))
        if len(under_way) > IN_FLIGHT:
            row, solved, version = under_way.popleft()
            sampler.observe(row, outcomes[solved], version)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sampler.save(Path(folder))
        saved = time.perf_counter() - started
        started = time.perf_counter()
        sampler.load(Path(folder))
        restored = time.perf_counter() - started
    return {
        "draws_per_second": draws / seconds, "draws_per_cpu_second": draws / cpu, "mixed": mixed / draws,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "begin_seconds": begin,
        "save_seconds": saved, "restore_seconds": restored,
    }  # fmt: skip


def _alone(*arguments: int) -> Measurement:
    """`simulate` in a process of its own, so that the memory is that of the sampler."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: Measurement = pool.apply(simulate, arguments)
    return found


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    settings = {
        "prompts": 20_000 if options.quick else 1_000_000, "draws": 2_000 if options.quick else 200_000,
        "group_size": GROUP, "in_flight": IN_FLIGHT, "per_version": PER_VERSION,
        "repetitions": 1 if options.quick else 3,
    }  # fmt: skip
    bench = Bench("draws", options, settings, (Path(__file__),))
    arms = {"signal": lambda seed: _alone(settings["prompts"], settings["draws"], seed)}
    measured = bench.interleave(arms, settings["repetitions"])["signal"]
    found = {name: spread(column(measured, name)) for name in measured[0]}
    line = bench.line(
        statistics.median(column(measured, "draws_per_second")), 20_000, "at least", unit="draws/s", **found
    )
    line["holds"] = (
        line["holds"]
        and found["memory_gib"]["max"] <= 1
        and max(found["save_seconds"]["max"], found["restore_seconds"]["max"]) < 5
    )
    return line
