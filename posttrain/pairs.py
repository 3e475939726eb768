"""Preference pairs, mined from rollouts: a corner case or a near miss against a good answer to the same prompt."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from judges.corner_cases import KINDS, corner_cases
from rollouts.types import Prompt, Rollout

NEAR_MISS = "near_miss"
"""The kind of an unsolved answer without a corner case, beside a solved one of similar length."""
PREFERRED = "preferred"
"""The kind of an answer that is as right as the other one, of which a judge prefers one."""
PAIR_KINDS = (*KINDS, NEAR_MISS)
SIMILAR = 1.25
"""Most that the longer one of a near miss may be longer: DPO would learn length from others."""
FRESH = -1
"""The draw id of samples that were made for mining, outside any draw."""


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt and why one is preferred.

    Example: `PreferencePair(prompt, "<ans>85</ans>", "85", [27, 8, 5, 28, 3], [8, 5, 3], "format", (17, 17))`
    """

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_ids: list[int]  # as sampled: without an end of turn where it ran into the token limit
    rejected_ids: list[int]
    reason: str
    draw_ids: tuple[int, int]  # of the draws that chosen and rejected came from

    @classmethod
    def of(cls, chosen: Sampled, rejected: Sampled, reason: str) -> PreferencePair:
        """Of two completions of one prompt."""
        one, other = chosen.rollout, rejected.rollout
        draws = (chosen.draw_id, rejected.draw_id)
        return cls(rejected.prompt, one.text, other.text, one.token_ids, other.token_ids, reason, draws)


@dataclass(frozen=True)
class Sampled:
    """A judged completion of a prompt with the draw it came from."""

    prompt: Prompt
    rollout: Rollout
    draw_id: int = FRESH


def mine(
    samples: Iterable[Sampled], per_kind: int, most: int, seed: int, kinds: Sequence[str] = KINDS
) -> list[PreferencePair]:
    """At most one pair for each distinct corner case, at most `per_kind` of a kind and `most` in all.

    Rejected is a completion with a corner case; chosen a solved one without any, to the same prompt: to prefer a wrong
    answer for its form would cost competence. Of several the likeliest is chosen, by its log-probability at sampling:
    it asks the least change of a policy that is good already; for a near miss, one for each prompt, that of the nearest
    length. Both sides of a pair are fresh or both recorded, which may be asked in other words; fresh pairs come first.

    Args:
        samples: judged completions, several for each prompt.
        per_kind: most pairs of one kind, fresh and recorded ones together.
        most: most pairs in all; the kinds take turns.
        seed: of the order in which prompts are looked at.
        kinds: of `PAIR_KINDS`, those to look for.
    """
    by_prompt: dict[tuple[bool, str, str], list[Sampled]] = defaultdict(list)  # under one instruction
    for sample in samples:
        recorded = sample.draw_id != FRESH
        by_prompt[recorded, sample.prompt.prompt_id, sample.prompt.instruction or ""].append(sample)
    seen: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # what was rejected and why, fresh or recorded
    found: dict[str, list[PreferencePair]] = {kind: [] for kind in PAIR_KINDS if kind in kinds}
    order = sorted(by_prompt)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda key: key[0])
    for key in order:
        _mine_prompt(by_prompt[key], found, seen[key[1:]], per_kind)
    pairs: list[PreferencePair] = []
    for index in range(per_kind):
        pairs += [part[index] for part in found.values() if index < len(part)]
    return sorted(pairs, key=lambda pair: pair.draw_ids[1] != FRESH)[:most]


def _mine_prompt(
    samples: Sequence[Sampled], found: dict[str, list[PreferencePair]], seen: dict[str, str], per_kind: int
) -> None:
    kinds = [corner_cases(sample.prompt, sample.rollout) for sample in samples]
    good = [sample for sample, kind in zip(samples, kinds, strict=True) if not kind and sample.rollout.outcome]
    if not good:
        return
    likeliest = max(good, key=lambda sample: sum(sample.rollout.logprobs))

    def add(chosen: Sampled, rejected: Sampled, reason: str) -> None:
        text = rejected.rollout.text
        if text not in seen and len(found.get(reason, ())) < per_kind and reason in found:
            found[reason].append(PreferencePair.of(chosen, rejected, reason))
        seen.setdefault(text, reason)

    for sample, kind in zip(samples, kinds, strict=True):
        if kind:
            add(likeliest, sample, next(name for name in KINDS if name in kind))
    missed = [sample for sample, kind in zip(samples, kinds, strict=True) if not kind and not sample.rollout.outcome]
    nearest = min(
        ((_ratio(one, other), index, place) for index, one in enumerate(good) for place, other in enumerate(missed)),
        default=None,
    )
    if nearest is not None and nearest[0] <= SIMILAR and NEAR_MISS not in seen.values():
        add(good[nearest[1]], missed[nearest[2]], NEAR_MISS)


def _ratio(one: Sampled, other: Sampled) -> float:
    """How many times longer the longer one is, in tokens."""
    lengths = sorted(max(1, len(sample.rollout.token_ids)) for sample in (one, other))
    return lengths[1] / lengths[0]


Compare = Callable[[Prompt, str, str], Awaitable[str]]
"""Which of two answers to a prompt is better: `first`, `second` or `tie`."""


async def preferred(samples: Iterable[Sampled], compare: Compare, most: int, seed: int) -> list[PreferencePair]:
    """Pairs of two answers that are both solved and without a corner case, of which a judge prefers one.

    Args:
        samples: judged completions, several for each prompt.
        compare: the judge.
        most: most questions to it, one for each prompt.
        seed: of which prompts and answers.
    """
    by_prompt: dict[tuple[str, str], dict[str, Sampled]] = defaultdict(dict)
    for sample in samples:
        if sample.rollout.outcome and not corner_cases(sample.prompt, sample.rollout):
            by_prompt[sample.prompt.prompt_id, sample.prompt.instruction or ""].setdefault(sample.rollout.text, sample)
    rng = random.Random(seed)
    order = sorted(key for key, texts in by_prompt.items() if len(texts) > 1)
    rng.shuffle(order)
    asked = [rng.sample(list(by_prompt[key].values()), 2) for key in order[:most]]
    said = await asyncio.gather(*(compare(one.prompt, one.rollout.text, other.rollout.text) for one, other in asked))
    pairs = []
    for (one, other), better in zip(asked, said, strict=True):
        if better in ("first", "second"):
            chosen, rejected = (one, other) if better == "first" else (other, one)
            pairs.append(PreferencePair.of(chosen, rejected, PREFERRED))
    return pairs
