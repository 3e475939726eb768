"""Errors, named after the boundary that was crossed.

`UserError` and its kinds are caught in one place, the command line, which prints their single line and exits with 2.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend; the message is one line that says where, what and what to do."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data file, row or field is wrong."""


class CheckpointError(UserError):
    """A checkpoint directory is missing, incomplete or does not fit."""


class NoSignalError(UserError):
    """No prompt gave a learning signal; the message holds the histogram of pass rates."""


class DriftError(UserError):
    """Engines and trainer give the same tokens other log-probabilities; the message names probable causes."""


class JudgeError(RuntimeError):
    """Judging failed (not: judged as wrong); never to be counted as a score."""


class EngineError(RuntimeError):
    """A generator or trainer died or did not answer within its limit."""


class LateError(EngineError):
    """It did not answer within its limit, and may live."""


class HangingError(EngineError):
    """It lives, but an environment does not answer."""


class NonFiniteError(EngineError):
    """A train step's loss or gradient is not finite; the message is one line that names the file of its batch."""


def first_line(error: BaseException) -> str:
    """What an error says in one line: libraries say more in the next ones, and Ray puts a traceback there."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
