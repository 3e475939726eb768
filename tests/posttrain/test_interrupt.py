"""Ctrl-C: once to stop, twice to end."""

import os
import signal
from collections.abc import Iterator

import pytest

from posttrain.interrupt import on_interrupt


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests are run in the background of a shell, which ignores SIGINT there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_and_the_second_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    asked: list[bool] = []

    def twice() -> None:
        with on_interrupt(lambda: asked.append(True)):
            os.kill(os.getpid(), signal.SIGINT)
            assert asked == [True]
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert asked == [True]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "stopping at the next step, with a checkpoint" in capsys.readouterr().err


def test_sigterm_asks_too_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked: list[bool] = []
    with on_interrupt(lambda: asked.append(True)):
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [True]
    assert signal.getsignal(signal.SIGTERM) is before
