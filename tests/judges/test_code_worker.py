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
# The closed-off ways to the interpreter; each must be refused before it runs.
FORBIDDEN = [
    "import os",
    "from os import system; return system('id')",
    "().__class__.__base__.__subclasses__()",
    "(v for v in x).gi_frame.f_back.f_builtins",
    "match x:\n    case list(__class__=c): return c",
]


@pytest.fixture(scope="module")
def worker():
    with CodeWorker(cpu_seconds=0.3, memory_bytes=96 << 20) as running:
        yield running


def outputs(worker: CodeWorker, program: str, *inputs: object) -> list[object]:
    results = worker.run(program, list(inputs))
    assert [result.error for result in results] == [""] * len(inputs)
    return [result.output for result in results]


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
        ("[" * 30000, "SyntaxError: more than"),
        ("exit()", "NameError"),
        ("__import__('os')._exit(0)", "SyntaxError: attribute _exit"),
        ("open('/etc/passwd')", "NameError"),
        ("raise SystemExit; return 1", "NameError"),
        ("eval('1')", "NameError"),
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


@pytest.mark.parametrize("program", FORBIDDEN)
def test_ways_to_the_interpreter_are_refused(worker: CodeWorker, program: str) -> None:
    assert "is not allowed" in error(worker, program)


def test_what_comes_before_a_failure_counts(worker: CodeWorker) -> None:
    results = worker.run("if x > 1:\n    while True: pass\nreturn x", [0, 1, 2, 3])
    assert results == [Result(0), Result(1), Result(None, "CPU time limit"), Result(None, "CPU time limit")]


def defeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_seconds: float = 0.3) -> CodeWorker:
    """A worker whose syntax check and built-ins let everything through: what is left are the process's limits."""
    source = Path(worker_process.__file__).with_name("code_child.py").read_text()
    source = source.replace("        _reject_forbidden(node)\n", "        pass\n")
    source = source.replace('"__builtins__": BUILTINS.copy()', '"__builtins__": builtins')
    (tmp_path / "code_child.py").write_text(source)
    monkeypatch.setattr("judges.code_worker.__file__", str(tmp_path / "code_worker.py"))
    return CodeWorker(cpu_seconds=cpu_seconds, wall_seconds=1.0)


def test_the_limits_hold_a_program_that_defeats_the_syntax_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with defeated(tmp_path, monkeypatch) as worker:
        assert outputs(worker, "import os; return os.getuid() >= 0", 0) == [True]
        assert error(worker, "import os; os._exit(0); return 1") == "the program ended its process"
        # The supervisor's kill, or its own end since it cannot write its answer: which is first is up to chance.
        assert error(worker, "import os; os.close(3); return 1") in (
            "killed by SIGKILL",
            "the program ended its process",
        )
        assert error(worker, "import sys; sys.exit(3); return 1").startswith("SystemExit")
        assert error(worker, "import os; return os.fork()").startswith("BlockingIOError")
        assert error(worker, "return open('/etc/hostname').read()").startswith(("OSError", "PermissionError"))
        assert error(worker, "import time; time.sleep(60); return 1") == "no answer within 1 s"
        assert error(worker, "import os; os.kill(os.getpid(), 11); return 1") == "killed by SIGSEGV"
        assert error(worker, "import os\nwhile True: os.write(3, b'a'*10000)\nreturn 1") == "too much output"
        assert outputs(worker, "import os; return os.write(1, b'noise')", 0) == [5]
        # The interpreter itself sets the one that there may be.
        assert outputs(worker, "import os; return [key for key in os.environ if key != 'LC_CTYPE']", 0) == [[]]
        assert error(worker, "import os; return os.getcwd()").startswith("FileNotFoundError")
        assert error(worker, "import os; os.mkdir('kept'); return 1").startswith(
            ("FileNotFoundError", "PermissionError")
        )
        assert outputs(worker, "x", 1) == [1]


def test_a_program_that_kills_its_worker_is_not_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with defeated(tmp_path, monkeypatch) as worker:
        assert error(worker, "import os; os.kill(os.getppid(), 9); return 1") == "the program killed its worker"
        assert outputs(worker, "x", 1) == [1]


def test_a_worker_that_died_is_restarted(worker: CodeWorker) -> None:
    assert outputs(worker, "x", 1) == [1]
    process = worker._process
    assert process is not None
    os.killpg(process._process.pid, signal.SIGKILL)
    assert outputs(worker, "x+1", 1) == [2]
    assert worker._process is not process


def test_a_worker_that_dies_whatever_it_runs_is_a_judge_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code_child.py").write_text("print('ready', flush=True)\ninput()\nraise OSError('no pipes left')")
    monkeypatch.setattr("judges.code_worker.__file__", str(tmp_path / "code_worker.py"))
    with CodeWorker() as worker, pytest.raises(JudgeError, match=r"dies whatever it runs: .*no pipes left"):
        worker.run("x", [1])


def test_a_worker_that_cannot_start_is_a_judge_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "nothing"))
        with CodeWorker() as worker, pytest.raises(JudgeError, match=r"cannot be started: .*nothing"):
            worker.run("x", [1])
    (tmp_path / "code_child.py").write_text("raise SystemExit('too old')")
    monkeypatch.setattr("judges.code_worker.__file__", str(tmp_path / "code_worker.py"))
    with CodeWorker() as worker, pytest.raises(JudgeError, match="cannot be started: it died with status 1: too old"):
        worker.run("x", [1])


def test_threads_share_a_worker_and_outlive_the_one_that_started_it() -> None:
    worker, seen = CodeWorker(), {}

    def check(number: int) -> None:
        seen[number] = outputs(worker, f"x+{number}", 1)

    first = threading.Thread(target=check, args=(0,))
    first.start()
    first.join()
    process = worker._process
    time.sleep(0.1)  # the starting thread is gone: a worker bound to its life would be, too
    threads = [threading.Thread(target=check, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: [1 + number] for number in range(9)}
    assert worker._process is process
    worker.close()


def test_close_leaves_nothing() -> None:
    with CodeWorker() as worker:
        outputs(worker, "x", 1)
        process = worker._process
        assert process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_the_worker_dies_with_its_parent() -> None:
    script = """
import time
from judges.code_worker import CodeWorker
worker = CodeWorker()
worker.run("x", [1])
print(worker._process._process.pid, flush=True)
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
        process = worker._process
        copy = os.fork()
        if copy == 0:
            right = worker.run("x+1", [1]) == [Result(2)] and worker._process is not process
            worker.close()
            os._exit(0 if right else 1)
        assert os.waitpid(copy, 0)[1] == 0
        assert outputs(worker, "x", 3) == [3]
        assert worker._process is process


def _alive(pid: int) -> bool:
    """Running, that is neither gone nor a zombie that nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
