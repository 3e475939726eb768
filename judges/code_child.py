"""The program that runs inside the code worker's process: it forks once for each check, so that nothing lasts.

Started by `judges.code_worker` as a script, with the standard library only. A request is `{"program", "inputs",
"cpu_seconds", "wall_seconds", "memory_bytes"}`; the answer is `{"lines": [...], "ended": "..."}`: one line of JSON for
each input that was reached, `{"output": ...}` or `{"error": "..."}`, and why the check ended early, if it did.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import select
import signal
import sys
import time
import types
from typing import Any, NoReturn

MAX_PROGRAM_CHARS = 20_000
MAX_OUTPUT_CHARS = 64_000
MAX_LINES_BYTES = 1_000_000
PR_SET_PDEATHSIG = 1
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
NOBODY = 65534

ALLOWED = (
    "abs all any bin bool bytes callable chr complex dict divmod enumerate filter float format frozenset hash hex int "
    "isinstance issubclass iter len list map max min next oct ord pow range repr reversed round set slice sorted str "
    "sum tuple zip True False None Exception ArithmeticError AssertionError AttributeError IndexError KeyError "
    "LookupError NameError NotImplementedError OverflowError RecursionError RuntimeError StopIteration TypeError "
    "ValueError ZeroDivisionError"
)
BUILTINS = {name: getattr(builtins, name) for name in ALLOWED.split()} | {"print": lambda *_, **__: None}
# Attributes that lead from a value to the interpreter: dunders, and the frames of generators and tracebacks.
FORBIDDEN_PREFIXES = ("_", "gi_", "f_", "tb_", "cr_", "ag_", "co_")


def compile_program(program: str) -> tuple[types.CodeType, str]:
    """(module code, name of the function in it) of an expression in `x`, a function's body, or a definition.

    Raises:
        SyntaxError: it is none of them, or uses what is forbidden. Hostile nesting may raise MemoryError and others.
    """
    if len(program) > MAX_PROGRAM_CHARS:
        raise SyntaxError(f"more than {MAX_PROGRAM_CHARS} characters")
    tree = ast.parse(program.strip())
    for node in ast.walk(tree):
        _reject_forbidden(node)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if functions:
        name = "f" if "f" in functions else functions[-1]
        return compile(tree, "<program>", "exec"), name
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        tree.body[0] = ast.copy_location(ast.Return(tree.body[0].value), tree.body[0])
    if not any(isinstance(node, ast.Return) for node in ast.walk(tree)):
        raise SyntaxError("neither an expression nor a function that returns")
    module = ast.parse("def f(x): pass")
    function = module.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = tree.body
    return compile(ast.fix_missing_locations(module), "<program>", "exec"), "f"


def _reject_forbidden(node: ast.AST) -> None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        raise SyntaxError("import is not allowed")
    names: list[str] = [node.attr] if isinstance(node, ast.Attribute) else []
    if isinstance(node, ast.MatchClass):
        names = node.kwd_attrs
    for name in names:
        if name.startswith(FORBIDDEN_PREFIXES):
            raise SyntaxError(f"attribute {name} is not allowed")


def call(code: types.CodeType, name: str, argument: Any) -> str:
    """Run the program afresh on one input, with nothing that it kept from the input before; a line of JSON."""
    namespace: dict[str, Any] = {"__builtins__": BUILTINS.copy(), "__name__": "program"}
    try:
        exec(code, namespace)
        text = json.dumps(namespace[name](argument))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the program's
        return failure(describe(error))
    if len(text) > MAX_OUTPUT_CHARS:
        return failure(f"output of more than {MAX_OUTPUT_CHARS} characters")
    return f'{{"output": {text}}}\n'


def failure(reason: str) -> str:
    """The line of JSON that says that there is no output, and why."""
    return json.dumps({"error": reason}) + "\n"


def describe(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`, cut to a line of 200 characters."""
    try:
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    except BaseException:  # noqa: BLE001  # its text is the program's, too
        return type(error).__name__


def limit(request: dict[str, Any]) -> None:
    """Set the limits of one check. CPU time, not wall time, decides: the verdict is the same on a busy machine."""
    cpu, memory = request["cpu_seconds"], request["memory_bytes"]
    signal.setitimer(signal.ITIMER_PROF, cpu)
    seconds = math.ceil(cpu) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if sys.platform == "linux":  # macOS knows RLIMIT_AS and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def check(request: dict[str, Any], code: types.CodeType, name: str, pipe: int, null: int, worker: int) -> NoReturn:
    """The forked process: run the program on all inputs, write a line for each, leave."""
    try:
        die_with_parent(worker)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.dup2(pipe, 3)
        os.closerange(4, 32)
        limit(request)
        for argument in request["inputs"]:
            write_all(call(code, name, argument))
    except BaseException:  # noqa: BLE001  # such as MemoryError, outside the program; SystemExit must not get out
        os._exit(1)
    finally:
        os._exit(0)


def write_all(lines: str) -> None:
    """Write to the check's own pipe, which is file 3."""
    data = memoryview(lines.encode())
    while data:
        data = data[os.write(3, data) :]


def supervise(pid: int, pipe: int, wall_seconds: float) -> dict[str, Any]:
    """Read the forked process's lines until it ends or must be ended."""
    deadline, data, ended = time.monotonic() + wall_seconds, bytearray(), ""
    while not ended:
        ready = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            ended = f"no answer within {wall_seconds:g} s"
            break
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        data += chunk
        if len(data) > MAX_LINES_BYTES:
            ended = "too much output"
            data.clear()
    # Always: it may have closed its pipe and gone on, or have left processes of its own.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"lines": data.decode(errors="replace").splitlines(), "ended": ended or how_it_ended(status)}


def how_it_ended(status: int) -> str:
    """In words; empty if it ended as it should."""
    if status in (-signal.SIGPROF, -signal.SIGXCPU):
        return "CPU time limit"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else ""


def answer(request: dict[str, Any], null: int, worker: int) -> dict[str, Any]:
    """Compile here, where the parser is warm (half of a check's time otherwise), and run in a forked process.

    A program that makes the parser crash or hang takes the worker with it; the parent then starts another.
    """
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    try:
        code, name = compile_program(request["program"])
    except Exception as error:  # noqa: BLE001  # parsing what a model wrote may raise nearly anything
        return {"lines": [], "ended": describe(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        check(request, code, name, writing, null, worker)
    os.close(writing)
    with contextlib.suppress(OSError):  # it may be gone already
        os.setpgid(pid, pid)
    answered = supervise(pid, reading, request["wall_seconds"])
    os.close(reading)
    return answered


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies; leave at once if it already has."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def drop_root() -> None:
    """As root RLIMIT_NPROC does not bind, and every process could be signalled: be nobody instead, where possible."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)


def main() -> None:
    """Answer requests until stdin closes."""
    drop_root()  # before PR_SET_PDEATHSIG, which a change of user clears
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null, worker = os.open(os.devnull, os.O_RDWR), os.getpid()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    answers.write(b"ready\n")
    gc.collect()
    gc.freeze()
    for line in requests:
        answers.write(json.dumps(answer(json.loads(line), null, worker)).encode() + b"\n")


if __name__ == "__main__":
    main()
