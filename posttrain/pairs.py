"""Preference pairs, mined from rollouts: a corner case against a good answer to the same prompt."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from judges.corner_cases import KINDS, corner_cases
from rollouts.types import Prompt, Rollout

FRESH = -1
"""The draw id of samples that were made for mining, outside any draw."""


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt and why one is preferred.

    Example: `PreferencePair(prompt, "<ans>85</ans>", "85", "format", (17, 17))`
    """

    prompt: Prompt
    chosen: str
    rejected: str
    reason: str
    draw_ids: tuple[int, int]  # of the draws that chosen and rejected came from


@dataclass(frozen=True)
class Sampled:
    """A judged completion of a prompt with the draw it came from."""

    prompt: Prompt
    rollout: Rollout
    draw_id: int = FRESH


def mine(samples: Iterable[Sampled], per_kind: int, most: int, seed: int) -> list[PreferencePair]:
    """At most one pair for each distinct corner case, at most `per_kind` of a kind and `most` in all.

    Rejected is a completion with a corner case; chosen a solved one without any, to the same prompt: to prefer a wrong
    answer for its form would cost competence. Of several the likeliest is chosen, by its log-probability at sampling:
    it asks the least change of a policy that is good already.

    Args:
        samples: judged completions, several for each prompt.
        per_kind: most pairs of one kind.
        most: most pairs in all; the kinds take turns.
        seed: of the order in which prompts are looked at.
    """
    by_prompt: dict[tuple[str, str], list[Sampled]] = defaultdict(list)  # under one instruction
    for sample in samples:
        by_prompt[sample.prompt.prompt_id, sample.prompt.instruction or ""].append(sample)
    found: dict[str, list[PreferencePair]] = {kind: [] for kind in KINDS}
    order = sorted(by_prompt)
    random.Random(seed).shuffle(order)
    for key in order:
        _mine_prompt(by_prompt[key], found, per_kind)
    pairs: list[PreferencePair] = []
    for index in range(per_kind):
        pairs += [found[kind][index] for kind in KINDS if index < len(found[kind])]
    return pairs[:most]


def _mine_prompt(samples: Sequence[Sampled], found: dict[str, list[PreferencePair]], per_kind: int) -> None:
    kinds = [corner_cases(sample.prompt, sample.rollout) for sample in samples]
    good = [sample for sample, kind in zip(samples, kinds, strict=True) if not kind and sample.rollout.outcome]
    chosen = max(good, key=lambda sample: sum(sample.rollout.logprobs), default=None)
    seen: set[str] = set()
    for sample, kind in zip(samples, kinds, strict=True):
        text = sample.rollout.text
        if not kind or chosen is None or text in seen:
            continue
        seen.add(text)
        reason = next(name for name in KINDS if name in kind)
        if len(found[reason]) >= per_kind:
            continue
        found[reason].append(
            PreferencePair(sample.prompt, chosen.rollout.text, text, reason, (chosen.draw_id, sample.draw_id))
        )
