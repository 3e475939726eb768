"""Ctrl-C and SIGTERM: a stage ends at its next step boundary, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from posttrain.progress import say


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """A stage was stopped by the user; it can be continued."""


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Within the context the first SIGINT or SIGTERM calls `stop`; a second one ends the process as usual."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(_number: int, _frame: FrameType | None) -> None:
        for which, handler in previous.items():
            signal.signal(which, handler)
        say("stopping at the next step, with a checkpoint (again: at once, without)")
        stop()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
