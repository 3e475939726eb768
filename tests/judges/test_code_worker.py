import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from judges import worker_process
from judges.code_worker import CodeWorker, Result
from rollouts.errors import JudgeError

SQUARE_BOMB = "x = [1]\nwhile True:\n    x = x + x\nreturn x"


@pytest.fixture(scope="module")
def worker():
    with CodeWorker(cpu_seconds=0.3, memory_bytes=128 << 20) as running:
        yield running


def outputs(worker: CodeWorker, program: str, *inputs: object) -> list[object]:
    results = worker.run(program, list(inputs))
    assert [result.error for result in results] == [""] * len(inputs)
    return [result.output for result in results]


def process_of(worker: CodeWorker) -> worker_process.WorkerProcess:
    process = worker._pool.seats[0].process
    assert process is not None
    return process


def error(worker: CodeWorker, program: str) -> str:
    (result,) = worker.run(program, [[1, 2]])
    assert result.output is None
    return result.error


def test_the_three_forms_of_a_program(worker: CodeWorker) -> None:
    assert outputs(worker, "[v*2 for v in sorted(x) if v>1]", [3, 1, 2]) == [[4, 6]]
    assert outputs(worker, "x=[v+1 for v in x]; x=x[::-1]; return sum(x)", [1, 2], [5]) == [5, 6]
    assert outputs(worker, "y = 0\nfor v in x:\n    y += v\nreturn y", [1, 2]) == [3]
    assert outputs(worker, "def g(n): return n*n\ndef f(x): return [g(v) for v in x]", [2, 3]) == [[4, 9]]
    assert outputs(worker, "def double(x):\n    return (x[0]*2, True, None)", [4]) == [[8, True, None]]
    assert outputs(worker, "len(x)", "abc", {"a": 1}) == [3, 1]
    assert outputs(worker, "50**40", []) == [50**40]


def test_a_list_is_the_arguments_of_a_function_that_wants_several(worker: CodeWorker) -> None:
    assert outputs(worker, "def f(a, b): return a-b", [5, 3]) == [2]
    assert outputs(worker, "def f(a, b, c=1): return a-b-c", [5, 3], [5, 3, 2]) == [1, 0]
    assert outputs(worker, "def f(x, key=None): return len(x)", [], [3, 1]) == [0, 2]
    assert outputs(worker, "def f(x, *, key=None): return len(x)", [3, 1]) == [2]
    cached = "from functools import lru_cache\n@lru_cache\ndef f(a, b): return a*b"
    assert outputs(worker, cached, [3, 4]) == [12]


def test_a_class_solution_is_called_by_its_method(worker: CodeWorker) -> None:
    solution = "class Solution:\n    def twice(self, v): return 2*v\n    def go(self, a, b): return self.twice(a)+b\n"
    assert outputs(worker, solution, [3, 4]) == [10]
    assert outputs(worker, solution + "    def _last(self): pass\n", [3, 4]) == [10]
    assert outputs(worker, "class Solution:\n    def f(self, n): return n if n < 2 else self.f(n-1)+1", 5) == [5]
    assert error(worker, "class Other:\n    def f(self, n): return n").startswith("SyntaxError: neither")


def test_a_program_finds_its_own_module(worker: CodeWorker) -> None:
    node = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        '@dataclass\nclass Node:\n    value: int\n    next: "Node | None" = None\n'
        "def f(x): return Node(x).value"
    )
    assert outputs(worker, node, 5, 6) == [5, 6]
    assert worker.test(node, "assert f(5) == 5 and Node(3).next is None") == ""


def test_each_input_is_fresh_and_so_is_the_program(worker: CodeWorker) -> None:
    inputs = [[3, 1], [3, 1]]
    assert outputs(worker, "x.sort(); x.append(9); return x", *inputs) == [[1, 3, 9], [1, 3, 9]]
    assert inputs == [[3, 1], [3, 1]]
    assert outputs(worker, "def f(x, kept=[]):\n    kept.append(1)\n    return len(kept)", 0, 0) == [1, 1]
    assert worker.run("x", []) == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass\nreturn x", "CPU time limit"),
        ("9**9**9**9", "CPU time limit"),
        ("while True:\n    try:\n        while True: pass\n    except Exception: pass\nreturn x", "CPU time limit"),
        ("y=[1]*10\nfor i in range(12): y=[y]*10\nreturn y", "CPU time limit"),
        (SQUARE_BOMB, "MemoryError"),
        ("[0]*10**10", "MemoryError"),
        ("'a'*100000", "output of more than 64000 characters"),
        ("10**5000", "ValueError: Exceeds the limit"),
        ("def f(x): return f(x)", "RecursionError"),
        ("x=[1]; x.append(x); return x", "ValueError: Circular"),
        ("y=x\nfor i in range(5000): y=[y]\nreturn y", "RecursionError"),
        ("(" * 500 + "1" + ")" * 500, "SyntaxError: too many nested"),
        ("-" * 15000 + "1", "MemoryError"),
        ("[" * 130000, "SyntaxError: more than"),
        ("__import__('os')._exit(0)", "the program ended its process"),
        ("raise SystemExit; return 1", "SystemExit"),
        ("{1, 2}", "TypeError"),
        ("lambda x: x", "TypeError"),
        ("x = 1", "SyntaxError: neither"),
        ("return", ""),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("\0", "SyntaxError"),
        ("", "SyntaxError: neither"),
    ],
)
def test_a_bad_program_gives_a_reason(worker: CodeWorker, program: str, reason: str) -> None:
    assert error(worker, program).startswith(reason)
    assert worker.run("x", [1]) == [Result(1)]


def test_what_comes_before_a_failure_counts(worker: CodeWorker) -> None:
    results = worker.run("if x > 1:\n    while True: pass\nreturn x", [0, 1, 2, 3])
    assert results == [Result(0), Result(1), Result(None, "CPU time limit"), Result(None, "CPU time limit")]


def test_a_program_that_kills_its_worker_is_not_solved() -> None:
    slow_to_parse = "def f(x): return x\n" + ("a" + "+a" * 900 + ";") * 50
    with CodeWorker(cpu_seconds=0.05) as worker:
        assert error(worker, slow_to_parse) == "the program killed its worker"
        assert outputs(worker, "x", 1) == [1]


def test_a_worker_that_died_is_restarted(worker: CodeWorker) -> None:
    assert outputs(worker, "x", 1) == [1]
    process = process_of(worker)
    os.killpg(process._process.pid, signal.SIGKILL)
    assert outputs(worker, "x+1", 1) == [2]
    assert process_of(worker) is not process


def child_that_does(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program in the place of the worker's."""
    package = tmp_path / "judges" / "sandbox"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "child.py").write_text(f"def main(*_):\n    {what}\n")
    monkeypatch.setattr("judges.worker_process.ROOT", tmp_path)


def test_a_worker_that_dies_whatever_it_runs_is_a_judge_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that_does("print('ready', flush=True); input(); raise OSError('no pipes left')", tmp_path, monkeypatch)
    with CodeWorker() as worker, pytest.raises(JudgeError, match=r"dies whatever it runs: .*no pipes left"):
        worker.run("x", [1])


def test_a_worker_that_cannot_start_is_a_judge_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "nothing"))
        with CodeWorker() as worker, pytest.raises(JudgeError, match=r"cannot be started: .*nothing"):
            worker.run("x", [1])
    child_that_does("raise SystemExit('too old')", tmp_path, monkeypatch)
    with CodeWorker() as worker, pytest.raises(JudgeError, match="cannot be started: it died with status 1: too old"):
        worker.run("x", [1])


def test_threads_share_a_worker_and_outlive_the_one_that_started_it() -> None:
    worker, seen = CodeWorker(), {}

    def check(number: int) -> None:
        seen[number] = outputs(worker, f"x+{number}", 1)

    first = threading.Thread(target=check, args=(0,))
    first.start()
    first.join()
    process = process_of(worker)
    time.sleep(0.1)  # the starting thread is gone: a worker bound to its life would be, too
    threads = [threading.Thread(target=check, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: [1 + number] for number in range(9)}
    assert process_of(worker) is process
    worker.close()


def test_close_leaves_nothing() -> None:
    with CodeWorker() as worker:
        outputs(worker, "x", 1)
        process = process_of(worker)
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_the_worker_dies_with_its_parent() -> None:
    script = """
import time
from judges.code_worker import CodeWorker
worker = CodeWorker()
worker.run("x", [1])
print(worker._pool.seats[0].process._process.pid, flush=True)
time.sleep(60)
"""
    root = Path(worker_process.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.02)
    assert not _alive(pid)


def test_a_forked_copy_of_the_owner_starts_its_own_process() -> None:
    with CodeWorker() as worker:
        assert outputs(worker, "x", 1) == [1]
        process = process_of(worker)
        copy = os.fork()
        if copy == 0:
            right = worker.run("x+1", [1]) == [Result(2)] and process_of(worker) is not process
            worker.close()
            os._exit(0 if right else 1)
        assert os.waitpid(copy, 0)[1] == 0
        assert outputs(worker, "x", 3) == [3]
        assert process_of(worker) is process


def _alive(pid: int) -> bool:
    """Running, that is neither gone nor a zombie that nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
