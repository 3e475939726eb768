"""Which GPUs each role of a run takes, before anything is started: bundles of one Ray placement group.

A bundle is a number of GPUs on one node. While the trainer and the engines work, every one of them has its seat in some
bundle. The judge's engines work while neither of them has started, and sit in the same bundles.

Loads no engine, so that `--dry-run` can print it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from posttrain.config import Config

Role = Literal["trainer rank", "engine", "judge", "grader"]
Roles = tuple[Role, ...]

ROLES: dict[str, Roles] = {
    "run": ("trainer rank", "engine", "judge", "grader"),
    "prune": ("judge",),
    "rl": ("trainer rank", "engine", "grader"),
    "dpo": ("engine", "grader"),
    "eval": ("engine", "grader"),
    "passk": ("engine", "grader"),
}
"""What each command starts on GPUs through Ray."""

ROUNDING = 1e-6
"""Fractions that add up to 1 do so only nearly."""


@dataclass(frozen=True)
class Seat:
    """Where one actor runs: so many GPUs of a bundle. Example: `Seat(bundle=0, gpus=0.5)`."""

    bundle: int
    gpus: float


@dataclass(frozen=True)
class Placement:
    """The bundles of a run and who sits where.

    Example, trainer and engine on one GPU: `Placement((1,), (Seat(0, 0.6),), (Seat(0, 0.4),), ())`.
    """

    bundles: tuple[int, ...]
    """GPUs of each."""
    trainer: tuple[Seat, ...]
    """Of each rank."""
    engines: tuple[Seat, ...]
    """Of each engine of the pool."""
    judge: tuple[Seat, ...]
    """Of each of the judge's engines, which sit there before all others start."""
    graders: tuple[Seat, ...] = ()
    """Of each engine of the rubric's model."""

    @classmethod
    def of(cls, config: Config, roles: Roles) -> Self:
        """Seats for these roles.

        Ranks come first, never two on one GPU. Who takes whole GPUs goes to the first bundle with room; who takes a
        part goes where most is free, so that engines spread over the ranks' GPUs. A judge wider than the engines gets
        bundles as wide as it is, in which ranks and engines sit side by side.
        """
        engines, judge = config.generators, config.judge
        width = judge.tensor_parallel or engines.tensor_parallel
        judges = (judge.count or engines.count) if "judge" in roles else 0
        bundles = _Bundles([width] * judges if width > engines.tensor_parallel else [])
        ranks = config.trainer.ranks if "trainer rank" in roles else 0
        trainer = tuple(bundles.seat(config.trainer.gpus, apart=True) for _ in range(ranks))
        pool = tuple(bundles.seat(engines.gpus_each) for _ in range(engines.count if "engine" in roles else 0))
        rubric = config.rubric if "grader" in roles else None
        count = rubric.count if rubric and rubric.model else 0
        graders = tuple(bundles.seat(rubric.tensor_parallel) for _ in range(count)) if rubric else ()
        bundles.vacate()
        each = min(engines.gpus_each, 1) if width == 1 else width
        seats = tuple(bundles.seat(each) for _ in range(judges))
        return cls(tuple(bundles.sizes), trainer, pool, seats, graders)

    @property
    def gpus(self) -> int:
        """In all bundles."""
        return sum(self.bundles)

    def seats(self) -> Iterator[tuple[Role, int, Seat]]:
        """Every actor: its role, its number in it, its seat."""
        roles: dict[Role, tuple[Seat, ...]] = {
            "trainer rank": self.trainer, "engine": self.engines, "grader": self.graders, "judge": self.judge,
        }  # fmt: skip
        for role, seats in roles.items():
            for index, seat in enumerate(seats):
                yield role, index, seat

    def asked(self) -> str:
        """What is asked for. Example: `trainer.ranks=1 with 1 GPU each, generators.count=2 with 1 GPU each: 3 GPUs`."""
        names = {
            "trainer.ranks": self.trainer, "generators.count": self.engines, "rubric.count": self.graders,
            "judge.count": self.judge,
        }  # fmt: skip
        parts = [f"{name}={len(seats)} with {_gpus(seats[0].gpus)} each" for name, seats in names.items() if seats]
        return f"{', '.join(parts)}: {_gpus(self.gpus)}"

    def lines(self) -> list[str]:
        """Who sits where, a line for each actor. Example: `engine 0 -> bundle 4: 1 of 1 GPU`."""
        return [
            f"{role} {index} -> bundle {seat.bundle}: {seat.gpus:g} of {_gpus(self.bundles[seat.bundle])}"
            + (", before the others start" if role == "judge" and self.engines else "")
            for role, index, seat in self.seats()
        ]

    def shares(self) -> list[tuple[int, int]]:
        """How many ranks and how many engines are on each GPU, bundle by bundle; judge and graders left out."""
        places = [[0, 0] for _ in range(self.gpus)]
        taken = [0.0] * len(self.bundles)
        for role, _, seat in self.seats():
            if role in ("judge", "grader"):
                continue
            first = sum(self.bundles[: seat.bundle]) + int(taken[seat.bundle] + ROUNDING)
            taken[seat.bundle] += seat.gpus
            for place in places[first : first + max(1, round(seat.gpus))]:
                place[role == "engine"] += 1
        return [(ranks, engines) for ranks, engines in places]

    def lack(self, nodes: Sequence[float]) -> str:
        """What nodes with so many GPUs each can never give, and what to do; empty if nothing."""
        if self.gpus > sum(nodes):
            return (
                f"the Ray cluster has {sum(nodes):g}; lower these, or let trainer and engines share GPUs (trainer.gpus "
                "and generators.gpus below 1)"
            )
        if max(self.bundles, default=0) > max(nodes, default=0):
            return (
                f"{max(self.bundles)} of them on one node, and no node of the Ray cluster has more than "
                f"{max(nodes, default=0):g}; lower generators.tensor_parallel or judge.tensor_parallel"
            )
        return ""


class _Bundles:
    """Bundles that are being filled."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.vacate()

    def vacate(self) -> None:
        """Everyone leaves."""
        self._free: list[float] = list(self.sizes)
        self._apart: set[int] = set()  # bundles of one GPU, a part of which a rank has

    def seat(self, gpus: float, apart: bool = False) -> Seat:
        """Takes so many GPUs of a bundle, or of a new one; `apart`: never a part of a GPU that another such is on."""
        fits = [
            index
            for index, free in enumerate(self._free)
            if free + ROUNDING >= gpus
            # Ray chooses the GPU within a wide bundle, and might put the parts of two ranks on the same.
            and (gpus >= 1 or self.sizes[index] == 1)
            and not (apart and index in self._apart)
        ]
        if not fits:
            size = max(1, round(gpus))
            self.sizes.append(size)
            self._free.append(size)
            fits = [len(self.sizes) - 1]
        chosen = fits[0] if gpus >= 1 else max(fits, key=lambda index: (round(self._free[index], 4), -index))
        self._free[chosen] -= gpus
        if apart and gpus < 1:
            self._apart.add(chosen)
        return Seat(chosen, gpus)


def _gpus(count: float) -> str:
    return f"{count:g} GPU" + "s" * (count > 1)
