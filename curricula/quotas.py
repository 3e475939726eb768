"""How many groups of a batch each capability gets."""

from __future__ import annotations

from collections.abc import Mapping


def allocate(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total`, in proportion to the weights (largest remainder), at least 1 each if possible.

    Example: `allocate(8, {"math": 1, "code": 1, "chat": 1}) == {"math": 3, "code": 3, "chat": 2}`
    """
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    shares = {name: max(int(value), 1 if total >= len(weights) else 0) for name, value in exact.items()}
    order = sorted(weights, key=lambda name: shares[name] - exact[name])  # stable: ties go by the order of weights
    index = 0
    while sum(shares.values()) < total:
        shares[order[index % len(order)]] += 1
        index += 1
    while sum(shares.values()) > total:
        largest = max(shares, key=lambda name: shares[name])
        shares[largest] -= 1
    return shares
