"""A command as a Ray job: submitted to the cluster of an http address, its log streamed, its exit code returned."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.progress import say
from rollouts.errors import UserError, first_line

TOKEN_HINT = (
    "(if it runs, this client and the cluster do not share a token: set RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled on "
    "both)"
)
WRITTEN = ("--out", "judge.cache")
"""Whose values are files that a command makes: they would be in the copy, and gone with it."""
EXCLUDED = [".env", ".venv", "runs", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"]


def submit(arguments: Sequence[str], run: Path | None = None) -> int:
    """Runs `posttrain ARGUMENTS` as a job of `RAY_ADDRESS`, from a copy of the current directory.

    Within the job Ray sets `RAY_ADDRESS` to the cluster's own address, which is not an http one, so the job attaches.
    The run directory is passed as an absolute path: a relative one would be in the copy. So is whatever the copy lacks.

    Raises:
        UserError: the cluster does not answer or refuses.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    address = os.environ["RAY_ADDRESS"]
    run = run.resolve() if run else None
    command_name, *words = _without_run(arguments)
    arguments = [command_name, *_out_of_the_copy([_absolute(word, run) for word in words])]
    if run is not None:
        arguments += ["--run", str(run)]
    command = " ".join(_quoted(word) for word in (sys.executable, "-m", "posttrain", *arguments))
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=command, runtime_env={"working_dir": str(Path.cwd()), "excludes": EXCLUDED})
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UserError(f"RAY_ADDRESS={address}: cannot submit a job: {first_line(error)} {TOKEN_HINT}") from None
    say(f"job {job} on {address}")
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        say(f"job {job} stopped")
        return 130
    info = client.get_job_info(job)
    say(f"job {job}: {info.status}")
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if str(info.status) == "SUCCEEDED" else 1


def _without_run(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in arguments:
        if skip or word.startswith("--run="):
            skip = False
        elif word == "--run":
            skip = True
        else:
            kept.append(word)
    return kept


def _absolute(word: str, run: Path | None = None) -> str:
    """A word, or the value of `key=VALUE`, in full that names what is here but not in the job's copy, or in the run
    directory, of which the job uses no copy.
    """
    head, equals, value = word.rpartition("=")
    place, here = Path(value).expanduser(), Path.cwd()
    try:
        if not value or not place.exists():
            return word
    except OSError:  # too long for a path
        return word
    full = place.resolve()
    copied = full.is_relative_to(here) and not set(full.relative_to(here).parts[:1]) & set(EXCLUDED)
    copied = copied and not (run and full.is_relative_to(run) and len(place.parts) > 1)  # `tiny` is a preset
    return word if copied else f"{head}{equals}{full}"


def _out_of_the_copy(arguments: Sequence[str]) -> list[str]:
    """The words, with the names of files that the command writes in full."""
    found: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, value = word.partition("=")
        if before in WRITTEN and before.startswith("-"):
            found.append(str(Path(word).expanduser().absolute()))
        elif equals and name in WRITTEN and value not in ("", "null"):
            found.append(f"{name}={Path(value).expanduser().absolute()}")
        else:
            found.append(word)
    return found


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


async def _follow(client: object, job: str) -> None:
    async for lines in client.tail_job_logs(job):  # type: ignore[attr-defined]
        print(lines, end="", flush=True)
