"""A command as a Ray job: submitted to the cluster of an http address, its log streamed, its exit code returned."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.progress import say
from rollouts.errors import UserError

EXCLUDED = [".venv", "runs", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"]


def submit(arguments: Sequence[str], run: Path) -> int:
    """Runs `posttrain ARGUMENTS` as a job of `RAY_ADDRESS`, from a copy of the current directory.

    Within the job Ray sets `RAY_ADDRESS` to the cluster's own address, which is not an http one, so the job attaches.
    The run directory is passed as an absolute path: a relative one would be in the copy.

    Raises:
        UserError: the cluster does not answer or refuses.
    """
    from ray.job_submission import JobSubmissionClient

    address = os.environ["RAY_ADDRESS"]
    arguments = [*_without_run(arguments), "--run", str(run.resolve())]
    command = " ".join(_quoted(word) for word in (sys.executable, "-m", "posttrain", *arguments))
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=command, runtime_env={"working_dir": str(Path.cwd()), "excludes": EXCLUDED})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: cannot submit a job: {error} (a 401 means that this client and the cluster do not "
            "share a token: set RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled on both)"
        ) from None
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


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


async def _follow(client: object, job: str) -> None:
    async for lines in client.tail_job_logs(job):  # type: ignore[attr-defined]
        print(lines, end="", flush=True)
