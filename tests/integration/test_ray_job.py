"""`RAY_ADDRESS`, against a real `ray start --head` that asks for a token."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from posttrain.rundir import Manifest
from tests.integration.commands import Running, posttrain

TOKEN = "0123456789abcdef" * 4


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to whoever asks for any, since Ray listens only seconds later."""
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            found.append(port)
    return found[:count]


@dataclass(frozen=True)
class Head:
    """A cluster of one node; the variables that a client of it sets."""

    process: subprocess.Popen[bytes]
    http: dict[str, str]
    gcs: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head --block`, in a directory and on ports of its own; ended by its process id."""
    directory = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: it holds sockets
    gcs, dashboard, agent, metrics = free_ports(4)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    words = [
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}", f"--temp-dir={directory}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", "--include-dashboard=true", "--num-cpus=2", "--object-store-memory=200000000",
        "--disable-usage-stats",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | auth
    with (directory / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *words],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, process, directory / "head.log")
        yield Head(process, {"RAY_ADDRESS": url, **auth}, {"RAY_ADDRESS": f"127.0.0.1:{gcs}", **auth})
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers, if only that it wants a token."""
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                return
        except OSError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"no job server at {url}:\n{log.read_text()}")


SFT = [
    "sft", "tiny", "--run", "runs/r", "prune.enabled=false", "data.demonstrations.limit=40", "sft.threads=1",
    "sft.per_device_train_batch_size=20", "sft.logging_steps=1",
]  # fmt: skip


def test_a_command_becomes_a_job_whose_log_is_streamed(head: Head, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    ended = posttrain(*SFT, cwd=tmp_path, env=head.http)
    assert "SUCCEEDED" in ended.err.splitlines()[-1]
    streamed = ended.out
    assert "step    1  loss " in streamed
    assert "step    2  loss " in streamed
    checkpoint = tmp_path / "runs/r/sft/checkpoints/step-000002"
    assert str(checkpoint) in streamed
    assert Manifest.read(checkpoint).step == 2  # where the command was given, not in the job's copy


def test_the_jobs_exit_code_is_returned(head: Head, tmp_path: Path) -> None:
    ended = posttrain(*SFT, "data.demonstrations.path=none.jsonl", cwd=tmp_path, env=head.http, code=2)
    assert "posttrain: none.jsonl: no such file; set data.demonstrations.path" in ended.out
    assert "FAILED" in ended.err.splitlines()[-1]


def test_any_other_address_is_attached_to(head: Head, tmp_path: Path) -> None:
    words = [
        "generators.count=1",
        "rl.generators=1",
        "data.heldout.limit=4",
        "eval.samples=1",
        "eval.pass_k=[1]",
        "eval.temperatures=[1]",
    ]
    ended = posttrain("eval", "tiny:base", "--out", "report.json", *words, cwd=tmp_path, env=head.gcs)
    assert "tiny:base: pass@1 " in ended.err
    assert (tmp_path / "report.json").is_file()
    assert head.process.poll() is None
    end = time.monotonic() + 20  # what was attached ends in a moment, the cluster does not
    while "ray::Generator" in (names := " ".join(session(head.process.pid))):
        assert time.monotonic() < end, names
        time.sleep(0.1)
    assert "ray" in names


def session(pid: int) -> list[str]:
    other = object.__new__(Running)
    other.process = type("Process", (), {"pid": pid})  # type: ignore[assignment]
    return list(other.processes().values())


@pytest.mark.parametrize("kind", ["http", "gcs"])
def test_a_refused_token_is_one_line(head: Head, tmp_path: Path, kind: str) -> None:
    env = getattr(head, kind) | {"RAY_AUTH_TOKEN": "f" * 64}
    words = SFT if kind == "http" else ["eval", "tiny:base"]
    said = posttrain(*words, cwd=tmp_path, env=env, code=2).err
    assert said.splitlines()[-1].startswith(f"posttrain: RAY_ADDRESS={env['RAY_ADDRESS']}: cannot ")
    assert "do not share a token: set RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled on both" in said
    assert "Traceback" not in said  # what else is there are lines that Ray's C++ logs


@pytest.mark.parametrize("kind", ["http", "gcs"])
def test_an_address_where_nobody_answers_is_one_line(tmp_path: Path, kind: str) -> None:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}" if kind == "http" else f"127.0.0.1:{port}"
    words = SFT if kind == "http" else ["eval", "tiny:base"]
    env = {"RAY_ADDRESS": address, "RAY_NUM_REDIS_GET_RETRIES": "1"}  # Ray's own, a second each
    line = posttrain(*words, cwd=tmp_path, env=env, code=2).line()
    assert line.startswith(f"RAY_ADDRESS={address}: cannot ")
