"""The process that runs programs: it forks for each check, so that nothing lasts.

A request is a line of JSON, `{"program", "cpu_seconds", "wall_seconds", "memory_bytes"}` and one of

- `"inputs"`: a list; the program is called with each;
- `"stdins"`: a list of texts; the program is run as a script with each;
- `"tests"`: how many bytes of tests come by another pipe, which only the process reads that runs them. The program's
  process is forked from one that never had them in its memory.

The answer is `{"lines": [...], "ended": "..."}`: one line of JSON for each input that was reached, and why the check
ended early, if it did. For tests the only line is `{"passed", "reason", "broken"}`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import math
import os
import resource
import select
import signal
import site
import socket
import sys
import sysconfig
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from judges.sandbox import confinement, namespaces, seccomp
from judges.sandbox.bench import Bench
from judges.sandbox.program import acts, as_function, call, describe, is_script, parse, run_script, serve_tests

MAX_BYTES = 1_000_000
"""Of what one check writes."""
MAX_FILE_BYTES = 8 << 20
THREADS = 256
RESULT, PEER, TESTS = 3, 4, 5
"""Files of a forked process: by which it says what came out, talks to the other one, and reads the tests."""
USUAL = (
    "abc", "array", "base64", "bisect", "calendar", "collections.abc", "copy", "csv", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers",
    "operator", "queue", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "time",
    "typing", "unittest", "unittest.mock", "uuid",
)  # fmt: skip
"""Modules that programs import, which are there already."""


class Forked:
    """A process that was forked for a check, with a pipe by which its results come."""

    def __init__(self, work: Callable[[], None], request: Mapping[str, Any], files: Mapping[int, int]) -> None:
        """Forks.

        Args:
            work: what it does, writing to the file `RESULT`.
            request: whose limits it has.
            files: of ours, by the number that they shall have there; all others are closed but the standard streams,
                which are the null device, and the result's pipe.
        """
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _forked(work, request, {RESULT: writing, **files})
        os.close(writing)

    def kill(self) -> str:
        """Ends and reaps it; how it had ended, if it had not as it should."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe)
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return "CPU time limit"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else ""


def _forked(work: Callable[[], None], request: Mapping[str, Any], files: Mapping[int, int]) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        wanted = {0: null, 1: null, 2: null, **files}
        apart = {number: fcntl.fcntl(ours, fcntl.F_DUPFD, 64) for number, ours in wanted.items()}  # none is overwritten
        for number, ours in apart.items():
            os.dup2(ours, number)
        _close_all_but(set(wanted))
        _limit(request)
        if request["seccomp"]:
            seccomp.install()
        work()
    except BaseException:  # noqa: BLE001  # such as MemoryError, outside the program; SystemExit must not get out
        os._exit(1)
    finally:
        os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    start = 0
    for number in [*sorted(kept), 1024]:
        if start < number:  # closerange(0, 0) closes all there are
            os.closerange(start, number)
        start = number + 1


def _limit(request: Mapping[str, Any]) -> None:
    """CPU time, not wall time, decides: the verdict is the same on a busy machine."""
    cpu, memory = request["cpu_seconds"], request["memory_bytes"]
    signal.setitimer(signal.ITIMER_PROF, cpu)  # exact, but a program may catch its signal
    for what, most in {
        resource.RLIMIT_CPU: math.ceil(cpu) + 1,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: THREADS,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(what, (most, most))
    if sys.platform == "linux":  # macOS knows RLIMIT_AS and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _write(text: str) -> None:
    data = memoryview(text.encode())
    while data:
        data = data[os.write(RESULT, data) :]


def collect(pipes: list[int], deadline: float, until: int, limit: int = MAX_BYTES) -> tuple[list[bytes], str]:
    """What comes by each pipe until `until` is closed, and why that was not waited for, if so."""
    data: dict[int, bytearray] = {pipe: bytearray() for pipe in pipes}
    open_ones, ended = set(pipes), ""
    while until in open_ones and not ended:
        ready = select.select(list(open_ones), [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            ended = "no answer in time"
        for pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            data[pipe] += chunk
            if not chunk:
                open_ones.discard(pipe)
            if len(data[pipe]) > limit:
                data[pipe].clear()
                ended = "too much output"
    return [bytes(each) for each in data.values()], ended


# --------------------------------------------------------------------------------------------------------- the checks


def with_inputs(inputs: list[Any], request: dict[str, Any], code: types.CodeType, name: str) -> dict[str, Any]:
    """Calls the program with each input, in one process."""

    def work() -> None:
        for argument in inputs:
            _write(call(code, name, argument))

    process = Forked(work, request, {})
    (data,), late = collect([process.pipe], time.monotonic() + request["wall_seconds"], process.pipe)
    ended = process.kill()
    return {"lines": data.decode(errors="replace").splitlines(), "ended": late or ended}


def with_stdins(request: dict[str, Any], code: types.CodeType) -> dict[str, Any]:
    """Runs the program as a script, in a process for each standard input. The wall limit is of all together."""
    lines: list[str] = []
    deadline = time.monotonic() + request["wall_seconds"]
    for text in request["stdins"]:
        with tempfile_of(str(text)) as given:
            reading, writing = os.pipe()
            process = Forked(lambda: _write(run_script(code)), request, {0: given.fileno(), 1: writing})
        os.close(writing)
        (error, output), late = collect([process.pipe, reading], deadline, process.pipe)
        if not late:  # it has ended; what it wrote before is in the pipe still
            (rest,), late = collect([reading], deadline, reading, MAX_BYTES - len(output))
            output += rest
        ended = process.kill()
        os.close(reading)
        if late or ended:
            return {"lines": lines, "ended": late or ended}
        lines.append(error.decode(errors="replace").strip() or json.dumps({"output": output.decode(errors="replace")}))
    return {"lines": lines, "ended": ""}


def tempfile_of(text: str) -> io.FileIO:
    """A file in memory, to be read from its beginning."""
    file = os.fdopen(os.memfd_create("stdin"), "wb+", 0)
    view = memoryview(text.encode())
    while view:
        view = view[file.write(view) :]
    file.seek(0)
    return file


def with_tests(request: dict[str, Any], code: types.CodeType, pipe: int) -> dict[str, Any]:
    """Runs the program and the tests in a process each."""
    ours, theirs = socket.socketpair()
    size = request["tests"]

    def serve() -> None:
        serve_tests(code, PEER)

    def judge() -> None:
        data = bytearray()
        while len(data) < size:
            data += os.read(TESTS, size - len(data))
        _write("read\n")
        passed, reason, broken = Bench(PEER).run(json.loads(data))
        _write(json.dumps({"passed": passed, "reason": reason, "broken": broken}) + "\n")

    program = Forked(serve, request, {PEER: theirs.fileno()})
    tests = Forked(judge, request, {PEER: ours.fileno(), TESTS: pipe})
    ours.close()
    theirs.close()
    (data,), late = collect([tests.pipe], time.monotonic() + request["wall_seconds"], tests.pipe)
    causes = [late, *(cause for cause in (program.kill(), tests.kill()) if cause != "killed by SIGKILL")]  # by us
    lines = data.decode(errors="replace").splitlines()
    if lines[:1] != ["read"]:  # what is left of them would be taken for the next check's
        raise RuntimeError("the tests were not read")
    verdict = json.loads(lines[1]) if len(lines) > 1 else {"passed": False, "reason": "", "broken": False}
    if not verdict["passed"] and not verdict["broken"]:
        verdict["reason"] = next(filter(None, causes), verdict["reason"] or "the tests ended early")
    return {"lines": [json.dumps(verdict)], "ended": ""}


def answer(request: dict[str, Any], pipe: int) -> dict[str, Any]:
    """Parses here, where the parser is warm (half of a check's time otherwise), and runs in forked processes.

    A program that makes the parser crash or hang takes this process with it; whoever asked then starts another.
    """
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    try:
        tree = parse(request["program"])
        unread = not any(request.get("stdins", [""]))  # nothing to call a function with
        script = "stdins" in request and (is_script(tree) or (unread and acts(tree)))
        whole = script or "tests" in request
        code, name = (compile(tree, "<program>", "exec"), "") if whole else as_function(tree)
    except Exception as error:  # noqa: BLE001  # parsing what a model wrote may raise nearly anything
        if "tests" not in request:
            return {"lines": [], "ended": describe(error)}
        _skip(pipe, request["tests"])
        return {"lines": [json.dumps({"passed": False, "reason": describe(error), "broken": False})], "ended": ""}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    try:
        if "tests" in request:
            return with_tests(request, code, pipe)
        if script:
            return with_stdins(request, code)
        return with_inputs(request["stdins" if "stdins" in request else "inputs"], request, code, name)
    finally:
        _clean()


def _skip(pipe: int, size: int) -> None:
    """Past tests that nobody runs, without a look at them."""
    with open(os.devnull, "wb", 0) as null:
        while size:
            size -= os.splice(pipe, null.fileno(), size)


def _clean() -> None:
    """Empties the scratch directory, if there is one: without namespaces we are in a directory that is deleted.

    A program may have made directories that nobody can list, and nested them deeper than paths or calls can be.

    Raises:
        OSError: something is left. We must end then, and with us the scratch.
    """
    try:
        if os.getcwd() != namespaces.SCRATCH:
            return
    except FileNotFoundError:
        return
    above: list[str] = []
    while True:
        inner = ""
        for entry in list(os.scandir(".")):
            if entry.is_dir(follow_symlinks=False):
                inner = entry.name
            else:
                os.unlink(entry.name)
        if inner:
            os.chmod(inner, 0o700)
            os.chdir(inner)
            above.append(inner)
        elif above:
            os.chdir("..")
            os.rmdir(above.pop())
        else:
            return


def main(parent: int, pipe: int, *words: str) -> None:
    """Answers requests until stdin closes; the first line says that it is ready, or why it will not run programs.

    Args:
        parent: with whom it ends.
        pipe: by which tests come.
        words: `unconfined`, if programs may be run although what there is does not hold them; `without=landlock`.
    """
    sys.dont_write_bytecode = True
    for name in USUAL:
        importlib.import_module(name)
    site.setquit()  # `exit()` and `quit()`, which programs know from scripts; without site (-S) there are none
    library = sysconfig.get_paths()["stdlib"]
    sys.path[:] = [path for path in sys.path if path.startswith(library)]  # never where a program can write
    without = [word.partition("=")[2] for word in words if word.startswith("without=")]
    if os.getppid() != parent:
        return
    missing = confinement.confine(without)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    if not confinement.sufficient(missing) and "unconfined" not in words:
        answers.write("; ".join(missing).encode() + b"\n")
        return
    answers.write(b"ready\n")
    gc.collect()
    gc.freeze()
    for line in requests:
        request = json.loads(line) | {"seccomp": seccomp.supported()}
        answers.write(json.dumps(answer(request, pipe)).encode() + b"\n")
