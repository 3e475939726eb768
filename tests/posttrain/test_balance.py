"""Requests over engines by their expected tokens, and what that is worth in a simulation of the loop."""

import heapq
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean

import pytest

from posttrain.balance import DECAY, Balancer, Seat, spread


def test_a_request_goes_where_the_fewest_tokens_are() -> None:
    balancer = Balancer(2, first_guess=10)
    seats = [balancer.take("math", 100, 4), balancer.take("math", 5, 4), balancer.take("math", 5, 4)]
    assert [seat.engine for seat in seats] == [0, 1, 1]  # by groups it would be 0, 1, 0
    assert balancer.outstanding == [140, 90]
    balancer.give_back(seats[0])
    assert balancer.take("math", 0, 1).engine == 0


def test_a_seat_gives_back_what_it_took() -> None:
    balancer = Balancer(3, first_guess=7.5)
    rng = random.Random(0)
    seats: list[Seat] = []
    for _ in range(300):
        if seats and rng.random() < 0.5:
            balancer.give_back(seats.pop(rng.randrange(len(seats))), rng.choice([None, rng.randrange(5000)]))
        else:
            seats.append(balancer.take(rng.choice("ab"), rng.randrange(500), rng.randrange(1, 17)))
    for seat in seats:
        balancer.give_back(seat, 3)
    assert balancer.outstanding == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_expected_length_follows_each_kind_on_its_own() -> None:
    balancer = Balancer(1, first_guess=24)
    balancer.give_back(balancer.take("math", 3, 4), 40)
    assert balancer.lengths == {"math": pytest.approx(DECAY * 24 + (1 - DECAY) * 10)}
    for _ in range(200):
        balancer.give_back(balancer.take("math", 3, 4), 40)
        balancer.give_back(balancer.take("code", 3, 2), 1000)
    assert balancer.lengths == {"math": pytest.approx(10), "code": pytest.approx(500)}
    assert balancer.take("math", 3, 4).tokens == pytest.approx(43)
    assert balancer.take("never seen", 3, 4).tokens == 99


def test_what_failed_teaches_nothing() -> None:
    balancer = Balancer(1, first_guess=24)
    balancer.give_back(balancer.take("math", 3, 4))
    assert balancer.lengths == {}


def test_spread_puts_the_costliest_first() -> None:
    assert spread([9, 1, 1, 8, 1, 7, 1], 2) == [[0, 1, 2, 4, 6], [3, 5]]
    assert spread([1, 1, 1, 1, 1], 2) == [[0, 2, 4], [1, 3]]  # where all are alike: in turns
    assert spread([], 2) == [[], []]
    assert spread([3], 3) == [[0], [], []]
    rng = random.Random(0)
    costs = [rng.lognormvariate(0, 1) for _ in range(200)]
    parts = spread(costs, 4)
    assert sorted(itertools.chain(*parts)) == list(range(200))
    loads = [sum(costs[index] for index in part) for part in parts]
    in_turns = [sum(costs[index::4]) for index in range(4)]
    assert max(loads) - min(loads) < 0.05 * (max(in_turns) - min(in_turns))


# ------------------------------------------------------------------------------------------------- the simulation

Kinds = Mapping[str, tuple[int, int]]
"""Kind → tokens of its prompts, and the median of its completions' lengths."""
MIXED: Kinds = {"short": (40, 20), "long": (150, 250)}
LONG_PROMPTS: Kinds = {"short": (40, 60), "long": (3000, 60)}
ALIKE: Kinds = {"short": (40, 60), "long": (40, 60)}
N, MAX_TOKENS = 8, 2000
STEP, TOKEN = 2e-3, 0.5e-3
"""Seconds of a step of an engine: as such, and for each sequence in it; about what the tiny model has on a core."""


@dataclass(frozen=True, eq=False)
class Group:
    """A request with the lengths that its completions will have, which no rule may look at."""

    kind: str
    prompt: int
    lengths: tuple[int, ...]


def groups(kinds: Kinds, seed: int) -> Iterator[Group]:
    """The kinds in any order; lengths have a long tail (log-normal) around a median of each prompt's own."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(list(kinds))
        prompt, median = kinds[kind]
        median *= rng.lognormvariate(0, 0.5)
        lengths = (min(MAX_TOKENS, 1 + int(median * rng.lognormvariate(0, 0.8))) for _ in range(N))
        yield Group(kind, prompt, tuple(lengths))


class InTurns:
    """Round-robin."""

    def __init__(self, engines: int) -> None:
        self._turns = itertools.cycle(range(engines))

    def take(self, group: Group) -> int:
        return next(self._turns)

    def give_back(self, group: Group) -> None:
        """Nothing is counted."""


class ByGroups:
    """The engine with the fewest groups under way."""

    def __init__(self, engines: int) -> None:
        self._under_way = [0] * engines
        self._engine: dict[Group, int] = {}

    def take(self, group: Group) -> int:
        engine = self._engine[group] = self._under_way.index(min(self._under_way))
        self._under_way[engine] += 1
        return engine

    def give_back(self, group: Group) -> None:
        self._under_way[self._engine.pop(group)] -= 1


class ByTokens:
    """`Balancer`, as the workers use it."""

    def __init__(self, engines: int) -> None:
        self._balancer = Balancer(engines, MAX_TOKENS / 4)
        self._seats: dict[Group, Seat] = {}

    def take(self, group: Group) -> int:
        seat = self._seats[group] = self._balancer.take(group.kind, group.prompt, N)
        return seat.engine

    def give_back(self, group: Group) -> None:
        self._balancer.give_back(self._seats.pop(group), sum(group.lengths))


Rule = type[InTurns] | type[ByGroups] | type[ByTokens]


@dataclass
class Engine:
    """Reads waiting prompts first; then each step gives every sequence under way one token."""

    unread: float = 0.0  # tokens of prompts
    steps: float = 0.0  # since the start
    ends: list[tuple[float, int, Group]] = field(default_factory=list)  # a heap: the step at which a sequence ends
    left: float = 0.0  # tokens to be read or made

    def add(self, group: Group, order: Iterator[int]) -> None:
        self.unread += group.prompt
        self.left += group.prompt + sum(group.lengths)
        for length in group.lengths:
            heapq.heappush(self.ends, (self.steps + length, next(order), group))

    def until_next(self) -> float:
        """Seconds until a sequence ends."""
        if not self.ends:
            return float("inf")
        return self.unread * TOKEN + (self.ends[0][0] - self.steps) * (STEP + TOKEN * len(self.ends))

    def work(self, seconds: float) -> None:
        read = min(seconds / TOKEN, self.unread)
        steps = (seconds - read * TOKEN) / (STEP + TOKEN * len(self.ends)) if self.ends else 0.0
        self.unread -= read
        self.steps += steps
        self.left -= read + steps * len(self.ends)


@dataclass(frozen=True)
class Found:
    """`imbalance`: tokens left on the fullest engine less those on the emptiest, over the mean, averaged over time."""

    imbalance: float
    idle: float  # share of the engines' time
    tokens_per_second: float


def simulate(
    rule: Rule, kinds: Kinds, max_staleness: int, seed: int, engines: int = 4, prompts_per_step: int = 16
) -> Found:
    """The loop with a trainer that takes no time: the oldest groups make a batch, and as many are drawn at once."""
    chosen, source, order = rule(engines), groups(kinds, seed), itertools.count()
    pool = [Engine() for _ in range(engines)]
    live: list[Group] = []
    missing: dict[Group, int] = {}  # sequences that have not ended

    def draw() -> None:
        group = next(source)
        live.append(group)
        missing[group] = N
        pool[chosen.take(group)].add(group, order)

    for _ in range(prompts_per_step * (max_staleness + 1)):
        draw()
    seconds = imbalance = idle = tokens = 0.0
    batches = 0
    while batches < 50:
        engine = min(pool, key=Engine.until_next)
        wait = engine.until_next()
        left = [each.left for each in pool]
        if batches >= 5:  # lengths have been seen
            seconds += wait
            imbalance += wait * (max(left) - min(left)) / mean(left)
            idle += wait * sum(not each.ends for each in pool) / engines
        for each in pool:
            each.work(wait)
        _, _, group = heapq.heappop(engine.ends)
        missing[group] -= 1
        if missing[group]:
            continue
        chosen.give_back(group)
        while len(live) >= prompts_per_step and not any(missing[each] for each in live[:prompts_per_step]):
            batch, live[:prompts_per_step] = live[:prompts_per_step], []
            tokens += sum(sum(each.lengths) for each in batch) if batches >= 5 else 0
            batches += 1
            for _ in range(prompts_per_step):
                draw()
    return Found(imbalance / seconds, idle / seconds, tokens / seconds)


def averaged(rule: Rule, kinds: Kinds, max_staleness: int) -> Found:
    found = [simulate(rule, kinds, max_staleness, seed) for seed in range(4)]
    return Found(*(mean(getattr(each, name) for each in found) for name in ("imbalance", "idle", "tokens_per_second")))


@pytest.mark.parametrize("max_staleness", [0, 1])
@pytest.mark.parametrize("kinds", [MIXED, LONG_PROMPTS], ids=["long completions", "long prompts"])
def test_by_tokens_is_better_balanced_where_groups_differ(kinds: Kinds, max_staleness: int) -> None:
    by_tokens = averaged(ByTokens, kinds, max_staleness)
    for other in (InTurns, ByGroups):
        found = averaged(other, kinds, max_staleness)
        assert by_tokens.imbalance < 0.95 * found.imbalance, other
        assert by_tokens.idle < 0.85 * found.idle, other
        assert by_tokens.tokens_per_second > 1.04 * found.tokens_per_second, other


def test_by_tokens_costs_little_where_all_are_alike() -> None:
    """It knows nothing that the count of groups does not say, and not how far a group has come: about 2 % slower."""
    for max_staleness in (0, 1):
        by_tokens, by_groups = (averaged(rule, ALIKE, max_staleness) for rule in (ByTokens, ByGroups))
        assert by_tokens.tokens_per_second == pytest.approx(by_groups.tokens_per_second, rel=0.04)
        assert by_tokens.idle == pytest.approx(by_groups.idle, abs=0.03)


def test_the_simulated_engine_makes_all_tokens() -> None:
    engine, group = Engine(), Group("short", 100, (10, 30))
    engine.add(group, itertools.count())
    first = engine.until_next()
    assert first == pytest.approx(100 * TOKEN + 10 * (STEP + 2 * TOKEN))
    engine.work(first)
    heapq.heappop(engine.ends)
    assert engine.left == pytest.approx(20)
    engine.work(engine.until_next())
    assert engine.left == pytest.approx(0)
