"""Texts that are nearly the same, by the overlap of their three-word sequences (MinHash, by `rensa`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese. Each letter counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
SHINGLE_WORDS = 3
PERMUTATIONS = 128
MARGIN = 0.15
"""The index is asked for what may be so much less similar, since it misses half of what lies at its own threshold."""


def near_duplicates(texts: Sequence[str], similarity: float) -> dict[int, int]:
    """Index → index of an earlier text that it nearly repeats; texts that repeat none are left out.

    MinHash finds the candidates, whose similarity is then computed. Numbers are words, so that two tasks with other
    numbers differ; texts of at most three words are compared as a whole.

    Args:
        texts: the texts, the one to be kept first.
        similarity: Jaccard similarity from which on they count as the same, above 0 and at most 1.
    """
    from rensa import RMinHash, RMinHashLSH

    shingles = [_shingles(text) for text in texts]
    hashes = RMinHash.from_token_sets([list(part) for part in shingles], num_perm=PERMUTATIONS, seed=0)
    index = RMinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, num_bands=_bands(similarity - MARGIN))
    found: dict[int, int] = {}
    for number, minhash in enumerate(hashes):
        earlier = [each for each in index.query(minhash) if _jaccard(shingles[each], shingles[number]) >= similarity]
        if earlier:
            found[number] = min(earlier)
        else:
            index.insert(number, minhash)
    return found


def _bands(similarity: float) -> int:
    """Bands with which half of what is so similar is found, or more: (1/b)^(b/n) is at most that."""
    fitting = (2**power for power in range(8) if (1 / 2**power) ** (2**power / PERMUTATIONS) <= similarity)
    return next(fitting, PERMUTATIONS)


def _shingles(text: str) -> frozenset[str]:
    words = _WORD.findall(text)
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
