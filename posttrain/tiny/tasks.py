"""The procedural tasks of the tiny world: three capabilities, five difficulty levels each.

A `Problem` knows its question, its true answer, the worked solution that a careful writer would give, the plausible
wrong answer that a sloppy writer would give, and (for code) the hidden tests. Everything is drawn from the
`random.Random` that is passed in, so a seed fixes the world.

| capability | question | worked steps |
|---|---|---|
| math | `47+38-12` | tens, then units: `47+30=77+8=85, 85-10=75-2=73` |
| reasoning | `k-th smallest`, swaps of cups, following arrows | the sorted list, the state after each swap, the path |
| code | `x is a list: double each; reverse; sum` | one statement for each operation |
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

CAPABILITIES = ("math", "reasoning", "code")
LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Problem:
    """One question with everything that a writer or a verifier of its solution needs.

    Example: `Problem("math", 2, "47+38", answer="85", worked="47+30=77+8=85", sloppy="75")`
    """

    capability: str
    difficulty: int
    question: str
    answer: str
    worked: str
    sloppy: str
    tests: list[dict[str, object]] = field(default_factory=list)

    @property
    def worked_is_answer(self) -> bool:
        """Code has no working beside the answer: its worked form is another way to write the answer itself."""
        return self.capability == "code"


# ---------------------------------------------------------------------------------------------------------- math


def _slip(rng: random.Random, value: int) -> str:
    """A wrong number of the kind that people write: a digit off, a carry forgotten, two digits exchanged."""
    text = str(abs(value))
    options = [value + rng.choice([-10, -2, -1, 1, 2, 10])]
    if len(text) > 1:
        swapped = text[:-2] + text[-1] + text[-2]
        options += [int(swapped) if value >= 0 else -int(swapped), value + rng.choice([-100, -20, 20, 100])]
    wrong = [option for option in options if option != value]
    return str(rng.choice(wrong or [value + 1]))


def _worked_step(total: int, sign: str, value: int) -> tuple[str, int]:
    """One operation as people work it out: the tens first, then the units (`47+38` is `47+30=77+8=85`)."""
    step = 1 if sign == "+" else -1
    result = total + step * value
    tens, units = value // 10 * 10, value % 10
    if not tens or not units:
        return f"{total}{sign}{value}={result}", result
    return f"{total}{sign}{tens}={total + step * tens}{sign}{units}={result}", result


def math_problem(rng: random.Random, level: int) -> Problem:
    """A chain of additions and subtractions that stays positive; the worked form goes tens first, then units."""
    bounds = {1: (9, 9), 2: (99, 9), 3: (99, 99), 4: (99, 99, 9), 5: (99, 99, 99)}[level]
    total = rng.randint(10 if bounds[0] == 99 else 1, bounds[0])
    expression, steps = str(total), []
    for bound in bounds[1:]:
        value, sign = rng.randint(10 if bound == 99 else 1, bound), rng.choice("+-")
        if sign == "-" and value > total:
            sign = "+"
        expression += f"{sign}{value}"
        step, total = _worked_step(total, sign, value)
        steps.append(step)
    return Problem("math", level, expression, str(total), ", ".join(steps), _slip(rng, total))


# ----------------------------------------------------------------------------------------------------- reasoning


def _ordinal(k: int) -> str:
    return {1: "smallest", 2: "2nd smallest", 3: "3rd smallest"}.get(k, f"{k}th smallest")


def kth_smallest(rng: random.Random, level: int) -> Problem:
    """Which number is the k-th smallest of a list: the worked form sorts first."""
    count = level + 2
    numbers = rng.sample(range(1, 20), count)
    k = rng.randint(1, count)
    ordered = sorted(numbers)
    answer = ordered[k - 1]
    sloppy = rng.choice([number for number in numbers if number != answer])
    return Problem(
        "reasoning",
        level,
        f"{_ordinal(k)} of {' '.join(map(str, numbers))}",
        str(answer),
        " ".join(map(str, ordered[:k])),
        str(sloppy),
    )


def swapped_cups(rng: random.Random, level: int) -> Problem:
    """Three letters stand in a row and places are exchanged: the worked form writes the row after each exchange."""
    row = rng.sample("ABCDEFGH", 3)
    swaps = [rng.sample(range(1, 4), 2) for _ in range(level)]
    question = f"{' '.join(row)} swap " + ", ".join(f"{a}-{b}" for a, b in swaps)
    states = []
    for a, b in swaps:
        row[a - 1], row[b - 1] = row[b - 1], row[a - 1]
        states.append(" ".join(row))
    a, b = rng.sample(range(3), 2)
    wrong = row.copy()
    wrong[a], wrong[b] = wrong[b], wrong[a]
    return Problem("reasoning", level, question, " ".join(row), ", ".join(states), " ".join(wrong))


def followed_arrows(rng: random.Random, level: int) -> Problem:
    """Follow arrows between letters for some steps: the worked form is the path."""
    letters = rng.sample("ABCDEFGH", level + 2)
    targets = letters.copy()
    rng.shuffle(targets)
    arrows = dict(zip(letters, targets, strict=True))
    shown = list(arrows.items())
    rng.shuffle(shown)
    start, steps = rng.choice(letters), level
    path = [start]
    for _ in range(steps):
        path.append(arrows[path[-1]])
    question = " ".join(f"{a}>{b}" for a, b in shown) + f" from {start} go {steps}"
    sloppy = rng.choice([letter for letter in letters if letter != path[-1]])
    return Problem("reasoning", level, question, path[-1], ">".join(path), sloppy)


def reasoning_problem(rng: random.Random, level: int) -> Problem:
    """One of the three kinds of reasoning problems."""
    return rng.choice([kth_smallest, swapped_cups, followed_arrows])(rng, level)


# ---------------------------------------------------------------------------------------------------------- code

Op = tuple[str, str, Callable[[list[int]], object]]


def _list_operation(rng: random.Random) -> Op:
    """(phrase, expression with `{}` for the argument, reference implementation) of a list -> list operation."""
    n = rng.randint(2, 30)
    operations: list[Op] = [
        (f"add {n} to each", f"[v+{n} for v in {{}}]", lambda x: [v + n for v in x]),
        (f"multiply each by {n}", f"[v*{n} for v in {{}}]", lambda x: [v * n for v in x]),
        ("square each", "[v*v for v in {}]", lambda x: [v * v for v in x]),
        ("keep even", "[v for v in {} if v%2==0]", lambda x: [v for v in x if v % 2 == 0]),
        ("keep odd", "[v for v in {} if v%2==1]", lambda x: [v for v in x if v % 2 == 1]),
        (f"keep above {n}", f"[v for v in {{}} if v>{n}]", lambda x: [v for v in x if v > n]),
        ("reverse", "{}[::-1]", lambda x: x[::-1]),
        ("sort", "sorted({})", sorted),
        ("drop the first", "{}[1:]", lambda x: x[1:]),
        ("drop the last", "{}[:-1]", lambda x: x[:-1]),
    ]
    return rng.choice(operations)


def _last_operation(rng: random.Random) -> Op:
    """Like `_list_operation`, for the list -> number operation that may come last."""
    operations: list[Op] = [
        ("sum", "sum({})", sum),
        ("count", "len({})", len),
        ("largest", "max({})", lambda x: max(x) if x else None),
        ("smallest", "min({})", lambda x: min(x) if x else None),
    ]
    return rng.choice(operations)


def code_problem(rng: random.Random, level: int) -> Problem:
    """A pipeline of `level` operations on a list `x`.

    The terse answer is one nested expression, the worked one a statement for each operation. The hidden tests are
    inputs with the outputs of the reference; inputs on which the reference fails (the largest of nothing) are not used.
    """
    operations = [_list_operation(rng) for _ in range(level - 1)]
    operations.append(_last_operation(rng) if rng.random() < 0.6 else _list_operation(rng))

    tests: list[dict[str, object]] = []
    while len(tests) < 4:
        argument = [rng.randint(0, 50) for _ in range(rng.randint(4, 8))]
        output: object = argument
        for _, _, function in operations:
            output = function(output)  # type: ignore[arg-type]
        if output is None:
            operations[-1] = ("sum", "sum({})", sum)
            tests.clear()
            continue
        tests.append({"input": argument, "output": output})

    nested, statements = "x", []
    for index, (_, template, _) in enumerate(operations):
        nested = template.format(nested)
        last = index == len(operations) - 1
        statements.append(("return " if last else "x=") + template.format("x"))

    wrong = operations.copy()
    place = rng.randrange(len(wrong))
    kind = _last_operation if place == len(wrong) - 1 and rng.random() < 0.5 else _list_operation
    wrong[place] = kind(rng)
    if len(wrong) > 1 and rng.random() < 0.5:
        del wrong[rng.randrange(len(wrong))]
    sloppy = "x"
    for _, template, _ in wrong:
        sloppy = template.format(sloppy)
    phrases = ", ".join(phrase for phrase, _, _ in operations)
    return Problem("code", level, phrases, nested, "; ".join(statements), sloppy, tests)


def draw_problem(rng: random.Random, capability: str, level: int) -> Problem:
    """A problem of the capability and level named.

    Raises:
        KeyError: the capability is not one of `CAPABILITIES`.
    """
    return {"math": math_problem, "reasoning": reasoning_problem, "code": code_problem}[capability](rng, level)
