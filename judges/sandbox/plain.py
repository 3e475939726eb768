"""Plain data as JSON: what passes between a program and the tests that judge it, in both directions.

An object of a class that is derived from a plain one passes as what it holds, taken by the plain class's own methods: a
list whose `==` says yes to everything arrives as a list like any other.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

MAX_DIGITS = 4000
SCALARS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__, float: float.__float__, int: lambda value: int.__add__(value, 0),
}  # fmt: skip
ITEMS: dict[type, Callable[[Any], Any]] = {
    list: list.__iter__, tuple: tuple.__iter__, set: set.__iter__, frozenset: frozenset.__iter__,
    collections.deque: collections.deque.__iter__,
}  # fmt: skip
SEQUENCES = {kind.__name__: kind for kind in ITEMS}
OF_TEXT = {kind.__name__: kind for kind in (complex, decimal.Decimal, fractions.Fraction, uuid.UUID)}
OF_TIME = {kind.__name__: kind for kind in (dt.date, dt.time, dt.datetime)}
Export = Callable[[Any], Any]
"""Gives what stands for an object that is not plain, or raises TypeError."""


def encode(value: Any, export: Export) -> Any:
    """What JSON knows stands for itself, but lists: they are `[kind, ...]` for all the others.

    Raises:
        TypeError: as `export` does.
        ValueError: an integer is too large.
    """
    if value is None or value is True or value is False:
        return value
    for kind in SCALARS:
        if isinstance(value, kind):
            return _scalar(kind, value)

    def all_of(items: Any) -> list[Any]:
        return [encode(item, export) for item in items]

    if isinstance(value, dict):
        return [
            "Counter" if type(value) is collections.Counter else "dict",
            [[encode(key, export), encode(item, export)] for key, item in dict.items(value)],
        ]
    if type(value).__bases__ == (tuple,) and isinstance(getattr(value, "_fields", None), tuple):
        return ["namedtuple", [type(value).__name__, list(map(str, value._fields)), all_of(tuple.__iter__(value))]]
    for kind, items in ITEMS.items():
        if isinstance(value, kind):
            return [kind.__name__, all_of(items(value))]
    if isinstance(value, bytes | bytearray):
        return [bytes.__name__ if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
    if type(value) in OF_TEXT.values():
        return [type(value).__name__, str(value)]
    if type(value) in OF_TIME.values():
        return [type(value).__name__, value.isoformat()]
    if type(value) is dt.timedelta:
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    if type(value) is range:
        return ["range", [value.start, value.stop, value.step]]
    return ["object", export(value)]


def _scalar(kind: type, value: Any) -> Any:
    value = SCALARS[kind](value)
    if kind is int and value.bit_length() > 3 * MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return value


def decode(data: Any, find: Callable[[Any], Any]) -> Any:
    """What was encoded; `find` gives the object for what stands for it.

    Raises:
        ValueError: it is nothing that `encode` makes.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    try:
        kind, content = data
        if kind == "object":
            return find(content)
        if kind in ("dict", "Counter"):
            found = {decode(key, find): decode(value, find) for key, value in content}
            return found if kind == "dict" else collections.Counter(found)
        if kind == "namedtuple":
            name, fields, items = content
            return _named_tuple(str(name), tuple(fields))(*(decode(item, find) for item in items))
        if kind in ("bytes", "bytearray"):
            data = bytes.fromhex(content)
            return data if kind == "bytes" else bytearray(data)
        if kind == "range":
            return range(*content)
        if kind == "timedelta":
            return dt.timedelta(*content)
        if kind in OF_TIME:
            return OF_TIME[kind].fromisoformat(content)
        if kind in OF_TEXT:
            return OF_TEXT[kind](content)
        return SEQUENCES[kind](decode(item, find) for item in content)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not plain data: {error!r:.100}") from None


@functools.cache
def _named_tuple(name: str, fields: Sequence[str]) -> type[tuple[Any, ...]]:
    return collections.namedtuple(name, fields)  # which takes nothing but names
