"""The sandbox holds what is in `hostile.py`, by each way that this machine has, and lets usual programs run."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from judges.code_worker import UNCONFINED, CodeWorker, Result
from rollouts.errors import DataError, UserError
from tests.judges.hostile import HACKS, SCRIPTS, UNIT

CPU, WALL = 0.5, 2.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(
    scope="module", params=["", "namespaces", "landlock"], ids=lambda part: f"without-{part}" if part else "all"
)
def worker(request: pytest.FixtureRequest) -> Iterator[CodeWorker]:
    with CodeWorker(cpu_seconds=CPU, wall_seconds=WALL, without=[request.param]) as running:
        yield running


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("canary") / "secret"
    for folder in [*path.parents][:3]:
        if folder.is_relative_to(tmp_path_factory.getbasetemp()):
            folder.chmod(0o755)
    path.write_text("sings")
    path.chmod(0o666)
    return path


def test_the_corpus_is_large_enough() -> None:
    assert len(SCRIPTS) + len(HACKS) >= 100


def test_no_hostile_program_escapes(worker: CodeWorker, listener: socket.socket, canary: Path) -> None:
    port, escaped, late = listener.getsockname()[1], [], []
    sentinel = subprocess.Popen(["sleep", "1000"], user=65534 if os.getuid() == 0 else None)
    try:
        for name, program in SCRIPTS.items():
            text = program.replace("CANARY", str(canary)).replace("PORT", str(port)).replace("PROJECT", str(ROOT))
            start = time.monotonic()
            (result,) = worker.run_script(text, [""])
            if time.monotonic() - start > WALL + 1:
                late.append((name, time.monotonic() - start))
            if "ESCAPED" in str(result):
                escaped.append(name)
            assert worker.run("x", [1]) == [Result(1)], name
        alive = sentinel.poll() is None
    finally:
        sentinel.kill()
        sentinel.wait()
    assert not escaped
    assert not late
    assert alive
    assert canary.read_text() == "sings"
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("name", HACKS)
def test_no_hack_passes_its_tests(worker: CodeWorker, name: str) -> None:
    program, tests = HACKS[name]
    start = time.monotonic()
    assert worker.test(program, tests)
    assert time.monotonic() - start < WALL + 1
    assert worker.test("def f(): return 1", "assert f() == 1") == ""


GOOD = {
    "in place": ("def f(a): a.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
    "class": (
        ("class Stack:\n    def __init__(self): self.v = []\n    def push(self, x): self.v.append(x)\n"
        "    def pop(self): return self.v.pop()\n    def __len__(self): return len(self.v)"),
        ("s = Stack()\ns.push(1)\ns.push('a')\nassert len(s) == 2 and s.pop() == 'a'\n"
        "assert isinstance(s, Stack) and not isinstance(3, Stack)"),
    ),
    "function given": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda v: v + 1, [1, 2]) == [2, 3]"),
    "key given": ("def f(xs, key): return sorted(xs, key=key)", "assert f(['bb', 'a'], len) == ['a', 'bb']"),
    "function returned": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
    "exception": (
        "def f(x):\n    raise ValueError('negative')",
        "try:\n    f(-1)\nexcept ValueError as e:\n    assert 'negative' in str(e)\nelse:\n    assert False",
    ),
    "own exception": (
        "class E(Exception): pass\ndef f(): raise E('no')", "try: f()\nexcept E: pass\nelse: assert False"
    ),
    "module": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)"),
    "plain data": (
        ("from decimal import Decimal\nfrom collections import Counter, deque\n"
        "def f(): return {1: (2, 3), 'a': {4}, b'x': [None, True, 1.5, 2j, Decimal('1.5'), deque([1])]}\n"
        "def g(s): return Counter(s)"),
        ("from decimal import Decimal\nfrom collections import deque\n"
        "assert f() == {1: (2, 3), 'a': {4}, b'x': [None, True, 1.5, 2j, Decimal('1.5'), deque([1])]}\n"
        "assert g('aab') == {'a': 2, 'b': 1}"),
    ),
    "generator": (
        "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        "g = f()\nassert next(g) == 0 and next(g) == 1\nfor v in f():\n    if v > 3: break\nassert v == 4",
    ),
    "operators": (
        ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
        "    def __eq__(self, o): return self.x == o.x"),
        "assert V(1) + V(2) == V(3) and V(1) != V(2) and (V(1) + V(2)).x == 3",
    ),
    "check(candidate)": ("def f(x): return -x", "def check(candidate):\n    assert candidate(1) == -1\ncheck(f)"),
    "unittest": ("def f(x): return 2 * x", ("from solution import f\nimport unittest\n"
                 "class T(unittest.TestCase):\n    def test(self): self.assertEqual(f(2), 4)")),
    "pytest's way": ("def f(x): return 2 * x", "def test_f():\n    assert f(2) == 4"),
    "attributes": (
        ("X = 5\nclass C:\n    n = 0\n    @classmethod\n    def make(cls): return cls()\n    @property\n"
        "    def p(self): return 7"),
        "assert X == 5 and C.n == 0\nc = C.make()\nc.z = 3\nassert c.z == 3 and c.p == 7",
    ),
    "printing": ("print('hello')\ndef f(): return 1", "assert f() == 1"),
    "a file of its own": (
        ("def f():\n    import tempfile\n    with tempfile.TemporaryFile() as t:\n        t.write(b'a')\n"
        "        t.seek(0)\n        return t.read()"),
        "assert f() == b'a'",
    ),
    "threads": (
        ("from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n    with ThreadPoolExecutor(2) as p:\n"
        "        return list(p.map(abs, x))"),
        "assert f([-1, 2]) == [1, 2]",
    ),
    "a built-in's name": ("def sum(a, b): return a + b", "assert sum(10, 15) == 25"),
    "a built-in's name, beside another": (
        "import math\ndef add(a, b): return a + b\ndef sum(a, b): return add(a, b)",
        "for a, b in [(1, 2), (3, 4)]:\n    assert math.isclose(sum(a, b), a + b)",
    ),
    "a built-in's name, given": ("def max(a): return a[0]", "def check(f):\n    assert f([1, 2]) == 1\ncheck(max)"),
    "a built-in's name, imported": ("def max(a): return a[0]", "from solution import max\nassert max([1, 2]) == 1"),
    "a built-in's name, in a module": ("def max(a): return a[0]", "import solution\nassert solution.max([1, 2]) == 1"),
    "a built-in's name, with all": ("def max(a): return a[0]", "from solution import *\nassert max([1, 2]) == 1"),
    "built-ins that the program replaced": (
        "def list(x): return 1\ndef len(x): return list(x) + 1\ndef f(x): return len(x)",
        "assert f([]) == 2 and len(list('abc')) == 3",
    ),
    "names that the tests have too": (
        "T = test_f = 0\ndef f(x): return 2 * x", UNIT + "\ndef test_f(y=3):\n    assert f(y) == 6"
    ),
    "a test that is called with arguments": (
        "def f(x): return x", "def test_f(x):\n    assert f(x) == x\nfor x in range(3): test_f(x)"
    ),
    "tests that look for themselves": (
        "def f(x): return x",
        ("def test_f(x):\n    assert f(x) == x\nfor name, each in list(globals().items()):\n"
         "    if name.startswith('test'): each(1)"),
    ),
    "a class of tests that is called": (
        "def f(x): return x", "class TestF:\n    def test(self):\n        assert f(1) == 1\nTestF().test()"
    ),
    "a base of cases": (
        "def f(x): return x",
        ("import unittest\nclass TestF:\n    def test(self):\n        assert f(1) == 1\n"
         "class TestAll(TestF, unittest.TestCase): pass\nif __name__ == '__main__': unittest.main()"),
    ),
    "plain data with names": (
        ("from collections import Counter, namedtuple\nfrom datetime import *\nimport uuid\n"
        "P = namedtuple('P', 'x y')\ndef f(): return Counter('aab'), P(1, [2])\n"
        "def g(): return date(2024, 2, 29), datetime(2024, 2, 29, 12), time(1), timedelta(1.5), uuid.UUID(int=5)"),
        ("import datetime as d, uuid\ncounts, point = f()\nassert counts.most_common(1) == [('a', 2)]\n"
        "assert point.y == [2] and point == (1, [2])\nassert g() == (d.date(2024, 2, 29), d.datetime(2024, 2, 29, 12), "
        "d.time(1), d.timedelta(1.5), uuid.UUID(int=5))"),
    ),
    "the same object": (
        "class S: pass\none = S()\ndef f(): return one\ndef g(): return S()",
        "assert f() is f() and g() is not g() and one is f()",
    ),
    "in place, by keyword": ("def f(*, a): a.sort()", "a = [3, 1]\nf(a=a)\nassert a == [1, 3]"),
    "a docstring": ("def f():\n    'Says it.'", "assert f.__doc__ == 'Says it.'"),
    "a module that was not loaded": ("import colorsys\ndef f(): return 1", "assert colorsys.rgb_to_hsv and f() == 1"),
    "a case that is skipped": (
        "def f(): return 1",
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(), 1)\n"
         "    @unittest.skip('slow')\n    def test_more(self): self.assertEqual(f(), 2)"),
    ),
    "files' flags and locks": (
        ("import fcntl, os\ndef f():\n    r, w = os.pipe()\n    os.dup(r)\n    os.set_inheritable(r, True)\n"
         "    fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | os.O_NONBLOCK)\n"
         "    with open('/tmp/l', 'w') as l: fcntl.lockf(l, fcntl.LOCK_EX); l.truncate(0)\n"
         "    try: os.read(r, 1)\n    except BlockingIOError: return fcntl.fcntl(r, fcntl.F_GETFD)"),
        "assert f() == 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_program_passes(name: str) -> None:
    program, tests = GOOD[name]
    assert WORKER.test(program, tests) == ""
    assert WORKER.test(program, tests.splitlines()[:1] if "\n" not in tests else tests) == ""


WORKER = CodeWorker(cpu_seconds=CPU)


def test_single_statements_are_counted() -> None:
    tests = ["assert f(1) == 1", "assert f(2) == 3"]
    assert WORKER.test("def f(x): return x", tests) == "test 2 of 2: AssertionError"
    assert WORKER.test("def f(x): return x", "\n".join(tests)) == "AssertionError (line 2 of the tests)"


@pytest.mark.parametrize(
    "tests",
    [
        "assert f( == 1",
        "import nothing_of_that_name\nassert f() == 1",
        "class Node: pass\nassert f(Node()) == 1",
        "with __import__('contextlib').suppress(TypeError): f(iter('abc'))\nassert f() == 1",
        ("import unittest\nclass T(unittest.TestCase):\n"
         "    def test(self):\n        with self.assertRaises(TypeError): f(object())"),
        ("import unittest\n@unittest.skip('later')\nclass T(unittest.TestCase):\n"
         "    def test(self): self.assertEqual(f(), 1)"),
    ],
)  # fmt: skip
def test_tests_that_cannot_be_run_are_not_the_programs_fault(tests: str) -> None:
    with pytest.raises(DataError, match="tests: "):
        WORKER.test("def f(): return 1", tests)


CHECK = "def check(candidate):\n    assert candidate(1) == 1\n"
CASE = "import unittest\nclass T(unittest.{})"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (CHECK, "nothing in them judges a program; check: never called"),
        ("METADATA = {'a': 1}\n" + CHECK, "check: never called"),
        ("import random\nrandom.seed(0)\nprint('tests')\ncases = list(range(9))\n" + CHECK, "check: never called"),
        (CHECK + "if __name__ == '__main__':\n    check(f)", "check: never called"),
        ("", "nothing in them judges a program$"),
        (["import math", "x = 1"], "nothing in them judges a program$"),
        ("class TestF:\n    def test(self): assert f() == 1\nassert f() == 1", "TestF is never run: it is no unittest"),
        ("async def test_f(): assert f() == 1", "test_f is never run: it is async"),
        ("def test_f():\n    yield f() == 1", "test_f is never run: it is a generator"),
        ("def test_f(fixture): assert f() == 1\nassert f() == 1", "test_f is never run: it has parameters"),
        ("def test_f(*, fixture): assert f() == 1", "test_f is never run: it has parameters"),
        (CASE.format("TestCase") + ":\n    def check(self): assert f() == 1", "T: never called"),
        (CASE.format("TestCase") + ":\n    async def test(self): assert f() == 1", "T.test is never run: it is async"),
        (CASE.format("IsolatedAsyncioTestCase") + ":\n    async def test(self): pass", "T cannot be run: asyncio"),
    ],
)
def test_tests_that_would_never_run_are_not_passed(tests: str | list[str], reason: str) -> None:
    for program in ("def f(): return 1", "raise ValueError", ""):
        with pytest.raises(DataError, match=f"tests: .*{reason}"):
            WORKER.test(program, tests)


def test_a_script_reads_and_writes() -> None:
    program = "import sys\nn = int(input())\nprint(n * 2)\nprint(sum(map(int, sys.stdin.read().split())))"
    assert WORKER.run_script(program, ["3\n1 2\n", "4\n"]) == [Result("6\n3\n"), Result("8\n0\n")]
    assert WORKER.run_script("print(1)\nraise SystemExit", [""]) == [Result("1\n")]
    assert WORKER.run_script("raise SystemExit(3)", [""]) == [Result(None, "exit status 3")]
    (result,) = WORKER.run_script("int(input())", ["a"])
    assert result.error.startswith("ValueError: invalid literal")
    assert WORKER.run_script("x[::-1]", ["abc"]) == [Result("cba")]
    assert WORKER.run_script("def f(s): return s.upper()", ["abc"]) == [Result("ABC")]
    assert WORKER.run_script("def main():\n    print(input())\nmain()", ["abc"]) == [Result("abc\n")]
    assert WORKER.run_script("def f(n):\n    return n + 1\nprint(f(1))", [""]) == [Result("2\n")]
    assert WORKER.run_script("def f(input):\n    return input + '!'", ["abc"]) == [Result("abc!")]
    assert WORKER.run_script("print(1)\nexit()", [""]) == [Result("1\n")]
    assert WORKER.run_script("input()\nquit(2)", ["a\n"]) == [Result(None, "exit status 2")]
    of_its_own = "def parse(input): return map(int, input.split())\nprint(sum(parse(input())))"
    assert WORKER.run_script(of_its_own, ["1 2"]) == [Result("3\n")]
    assert WORKER.run_script("import sys\ndef main(stdin): print(stdin.read())\nmain(sys.stdin)", ["a"]) == [
        Result("a\n")
    ]
    pool = "from concurrent.futures import ThreadPoolExecutor\nprint(sum(ThreadPoolExecutor(2).map(abs, [-1, 2])))"
    assert WORKER.run_script(pool, [""]) == [Result("3\n")]
    later = "import atexit, threading, time\natexit.register(lambda: print('end'))\n"
    later += "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    assert WORKER.run_script(later, [""]) == [Result("thread\nend\n")]
    assert WORKER.run_script("raise ValueError(chr(0xD800))", [""]) == [Result(None, "ValueError: ?")]
    text = "é" * 100_000
    assert WORKER.run_script("print(len(input()))", [text]) == [Result("100000\n")]


def test_nothing_lasts_from_one_program_to_the_next() -> None:
    WORKER.run_script("open('/tmp/left', 'w').write('x')", [""])
    assert WORKER.run_script("import os\nprint(os.listdir('/tmp'))", [""]) == [Result("[]\n")]


@pytest.mark.parametrize("without", ["", "landlock"])
def test_what_a_program_hides_is_gone_too(without: str) -> None:
    hide = (
        "import os\nos.mkdir('/tmp/d', 0o300)\nopen('/tmp/d/x', 'w').write('secret')\nos.mkdir('/tmp/d/e', 0)\n"
        "for n in range(450):\n    os.mkdir('n' * 200)\n    os.chdir('n' * 200)\n    open('x', 'w').close()\n"
        "print('hidden')"
    )
    with CodeWorker(without=[without]) as worker:
        assert worker.run_script(hide, [""]) == [Result("hidden\n")]
        assert worker.run_script("import os\nprint(os.listdir('/tmp'), os.path.exists('/tmp/d/x'))", [""]) == [
            Result("[] False\n")
        ]
        fill = "import os\nfor n in range(900): os.mkdir(f'/tmp/{n}', 0)\nprint('filled')"
        assert [worker.run_script(fill, [""]) for _ in range(3)] == [[Result("filled\n")]] * 3


@pytest.mark.parametrize("flags", ["os.O_RDONLY", "os.O_ACCMODE"])
def test_what_may_be_read_cannot_be_emptied_whatever_version_landlock_has(flags: str) -> None:
    empty = (
        "import os\nopen('/tmp/x', 'w').close()\ntry:\n    os.open({0}, {1} | os.O_TRUNC)\n"
        "except OSError as error:\n    print(error.errno == 1)"
    )
    with CodeWorker() as worker, CodeWorker(without=["namespaces"]) as landlocked:
        assert worker.run_script(empty.format("'/tmp/x'", flags), [""]) == [Result("True\n")]
        no_file = empty.replace("open('/tmp/x', 'w').close()\n", "")
        assert landlocked.run_script(no_file.format("os.__file__", flags), [""]) == [Result("True\n")]


def test_a_machine_that_cannot_hold_programs_runs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with CodeWorker(without=["namespaces", "landlock"]) as worker:
        with pytest.raises(UserError, match=rf"cannot hold programs .*left out.*{UNCONFINED}=1"):
            worker.run("x", [1])
        monkeypatch.setenv(UNCONFINED, "1")
        assert worker.run("x", [1]) == [Result(1)]
        assert worker.run("import os\nreturn os.getcwd() is None", [1])[0].error.startswith("FileNotFoundError")
        assert worker.run("import os\nreturn os.fork()", [1])[0].error.startswith("PermissionError")
    with CodeWorker() as worker:  # a machine that can goes on doing so
        assert worker.run("return len(open('/etc/passwd').read())", [1])[0].error


@pytest.mark.skipif(os.getuid() != 0, reason="we are an ordinary user ourselves")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no Python that others may use")
@pytest.mark.parametrize("without", [[], ["landlock"], ["namespaces"]])
def test_an_ordinary_user_has_it_too(without: list[str]) -> None:
    """Namespaces within a user namespace, and Landlock, need no root."""
    script = f"from judges.code_worker import CodeWorker; print(CodeWorker(without={without}).run('x', [1]))"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for package in ("judges", "rollouts"):
            shutil.copytree(ROOT / package, Path(folder, package))
        ended = subprocess.run(
            ["/usr/bin/python3", "-c", script], cwd=folder, user=1234, group=1234, extra_groups=[], env={},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.stdout == "[Result(output=1, error='')]\n", ended.stderr[-600:]
