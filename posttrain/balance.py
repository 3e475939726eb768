"""Which engine takes a request: the one with the fewest tokens outstanding.

Groups are a poor measure of an engine's load: one of code may have ten times the tokens of one of arithmetic. How long
a completion will be is not known before it is there, so it counts for what its capability's completions had lately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

DECAY = 0.9
"""What a group leaves of the mean length that was expected before it."""


@dataclass(frozen=True)
class Seat:
    """A request's place: its engine, and the tokens that it counts for there until it is given back."""

    engine: int
    kind: str
    n: int
    tokens: float


@dataclass
class Balancer:
    """Tokens outstanding on each engine, and the length expected of a completion of each kind."""

    engines: int
    first_guess: float  # tokens of a completion of a kind that has not been seen
    outstanding: list[float] = field(init=False)  # by engine
    lengths: dict[str, float] = field(default_factory=dict)  # by kind: exponential moving average

    def __post_init__(self) -> None:
        self.outstanding = [0.0] * self.engines

    def take(self, kind: str, prompt_tokens: int, n: int, engine: int | None = None) -> Seat:
        """A seat for n completions of a prompt, on the engine with the fewest tokens outstanding or the one named.

        Args:
            kind: of requests whose completions are about as long, such as the prompt's capability.
            prompt_tokens: of the prompt; counted once, since engines keep what completions of a prompt share.
            n: completions.
            engine: if it must be this one.
        """
        if engine is None:
            engine = min(range(self.engines), key=self.outstanding.__getitem__)
        seat = Seat(engine, kind, n, prompt_tokens + n * self.lengths.get(kind, self.first_guess))
        self.outstanding[engine] += seat.tokens
        return seat

    def give_back(self, seat: Seat, completion_tokens: int | None = None) -> None:
        """Frees a seat, once.

        Args:
            seat: from `take`.
            completion_tokens: that the n completions had together; None if they failed, from which nothing is learnt.
        """
        self.outstanding[seat.engine] -= seat.tokens
        if completion_tokens is not None:
            before = self.lengths.get(seat.kind, self.first_guess)
            self.lengths[seat.kind] = DECAY * before + (1 - DECAY) * completion_tokens / seat.n


def spread(costs: Sequence[float], engines: int) -> list[list[int]]:
    """The indices of the requests that each engine takes, in order, where the costs of all are known beforehand.

    The costliest first, each to the engine with the least so far: Graham's LPT rule, at most a third above the best.
    """
    loads, parts = [0.0] * engines, [list[int]() for _ in range(engines)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        engine = min(range(engines), key=loads.__getitem__)
        loads[engine] += costs[index]
        parts[engine].append(index)
    return [sorted(part) for part in parts]
