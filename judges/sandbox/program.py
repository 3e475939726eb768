"""The program's side: makes a program of its text, and runs it for inputs, as a script, or for tests that ask."""

from __future__ import annotations

import ast
import atexit
import inspect
import json
import math
import operator
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from judges.sandbox.peer import Peer

MAX_PROGRAM_CHARS = 100_000
MAX_OUTPUT_CHARS = 64_000
LEADING_IN = ("input", "stdin", "fileinput", "open")
"""Names by whose use a program shows that it reads its standard input."""


def parse(text: str) -> ast.Module:
    """The program's syntax tree.

    Raises:
        SyntaxError: it has none. Hostile nesting may raise MemoryError and others.
    """
    if len(text) > MAX_PROGRAM_CHARS:
        raise SyntaxError(f"more than {MAX_PROGRAM_CHARS} characters")
    return ast.parse(text.strip())


def is_script(tree: ast.Module) -> bool:
    """Whether the program reads its standard input, or at least is nothing that could be called with an argument."""
    names = _used(tree)
    if names & set(LEADING_IN):
        return True
    try:
        as_function(tree)
    except SyntaxError:
        return True
    return "x" not in names and not any(isinstance(node, ast.FunctionDef | ast.Return) for node in ast.walk(tree))


def _used(tree: ast.Module) -> set[str]:
    """The names and attributes that a program uses, but for a function's own parameters in it."""
    names: set[str] = set()
    todo: list[tuple[ast.AST, frozenset[str]]] = [(tree, frozenset())]
    while todo:
        node, own = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            own |= {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
        elif isinstance(node, ast.Name) and node.id not in own:
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        todo += [(child, own) for child in ast.iter_child_nodes(node)]
    return names


def acts(tree: ast.Module) -> bool:
    """Whether the program does something when it is run, beside defining what can be called."""
    passive = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    active = [node for node in tree.body if not isinstance(node, passive)]
    return len(active) < len(tree.body) and any(
        isinstance(node, ast.Call | ast.For | ast.While) for part in active for node in ast.walk(part)
    )


def as_function(tree: ast.Module) -> tuple[types.CodeType, str]:
    """(module code, name of the function in it) of an expression in `x`, a function's body, or a definition.

    Of several functions that are defined it is `f`, or the last; where there is none but a class `Solution`, the last
    of its public methods that the others do not use.

    Raises:
        SyntaxError: it is none of them.
    """
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if functions:
        name = "f" if "f" in functions else functions[-1]
        return compile(tree, "<program>", "exec"), name
    solution = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Solution"]
    method = _entry(solution[-1]) if solution else None
    if method:
        called = ast.Module([*tree.body, *ast.parse(f"f = Solution().{method}").body], [])
        return compile(called, "<program>", "exec"), "f"
    body = list(tree.body)
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        body[0] = ast.copy_location(ast.Return(body[0].value), body[0])
    if not _returns(body):
        raise SyntaxError("neither an expression nor a function that returns")
    module = ast.parse("def f(x): pass")
    function = module.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = body
    return compile(ast.fix_missing_locations(module), "<program>", "exec"), "f"


def _entry(solution: ast.ClassDef) -> str | None:
    """The method of a class to call, if it has any."""
    methods = [node for node in solution.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    used = {
        node.attr for each in methods for node in ast.walk(each)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr != each.name
    }  # fmt: skip
    names = [each.name for each in methods if each.name not in used] or [each.name for each in methods]
    return names[-1] if names else None


def _returns(body: list[ast.stmt]) -> bool:
    """Whether statements return, apart from the functions and classes that they define."""
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Return):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            todo += ast.iter_child_nodes(node)
    return False


def call(code: types.CodeType, name: str, argument: Any) -> str:
    """Runs the program afresh on one input, with nothing that it kept from the input before; a line of JSON.

    A function with several parameters gets a list's items as its arguments; one is enough where it has defaults for the
    others, which are its own affair.
    """
    namespace = _module("program")
    try:
        exec(code, namespace)
        function = namespace[name]
        several = isinstance(argument, list) and _takes(function, len(argument))
        text = json.dumps(function(*argument) if several else function(argument))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the program's
        return failure(describe(error))
    if len(text) > MAX_OUTPUT_CHARS:
        return failure(f"output of more than {MAX_OUTPUT_CHARS} characters")
    return f'{{"output": {text}}}\n'


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module, which is found by its name: `dataclasses`, for one, looks there."""
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name].__dict__


def _takes(function: Any, count: int) -> bool:
    """Whether a function wants several arguments, and may have so many."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in
        return False
    placed = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    least = sum(each.default is each.empty for each in placed)
    most = math.inf if any(each.kind is each.VAR_POSITIONAL for each in parameters) else len(placed)
    return len(placed) > 1 and least != 1 and least <= count <= most


def run_script(code: types.CodeType) -> str:
    """Runs the program with the standard streams as they are; a line of JSON if it failed."""
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")
    try:
        try:
            exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
        except SystemExit as end:
            if end.code not in (None, 0):
                return failure(f"exit status {end.code!r:.40}")
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does: pools end, threads are waited for
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  # the program's
        return failure(describe(error))
    return ""


def serve_tests(code: types.CodeType, connection: int) -> None:
    """Runs the program and then does with its objects what the tests ask for."""
    namespace = _module("solution")
    objects: list[Any] = []
    numbers: dict[int, int] = {}  # by `id`, which stays that of the object as long as we have it

    def export(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    def find(content: Any) -> Any:
        """An object of ours by its number, or a function of the tests, `["theirs", number]`."""
        if isinstance(content, list):
            return lambda *arguments, **named: peer.ask("call", content[1], *arguments, **named)
        return objects[content]

    def serve(operation: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        return OPERATIONS[operation](*arguments, **named)

    def start() -> dict[str, Any]:
        exec(code, namespace)
        return {name: described(value) for name, value in namespace.items() if not name.startswith("__")}

    def described(value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return ("module", value.__name__)
        if isinstance(value, type) and issubclass(value, BaseException):
            return ("exception", [kind.__name__ for kind in value.__mro__], value)
        return ("value", value)

    OPERATIONS: dict[str, Callable[..., Any]] = {"start": start, "call": lambda function, *a, **k: function(*a, **k)}
    OPERATIONS |= {each.__name__: each for each in BUILT_IN}
    OPERATIONS |= {name: getattr(operator, name) for name in OPERATORS}
    peer = Peer(connection, serve, export, find, failure_of)
    peer.serve()


BUILT_IN = (getattr, setattr, delattr, len, iter, next, str, repr, bool, int, float, complex, abs, round, hash, dir)
BUILT_IN += (isinstance, issubclass, reversed)  # type: ignore[assignment]
OPERATORS_OF_TWO = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift",
)  # fmt: skip
OPERATORS = (
    *OPERATORS_OF_TWO, "eq", "lt", "le", "gt", "ge", "neg", "pos", "invert", "getitem", "setitem", "delitem", "index",
)  # fmt: skip


def failure_of(names: list[str], text: str) -> Exception:
    """What a function of the tests raised."""
    return RuntimeError(f"{names[0]}: {text}")


def failure(reason: str) -> str:
    """The line of JSON that says that there is no output, and why."""
    return json.dumps({"error": reason}) + "\n"


def describe(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`, cut to a line of 200 characters."""
    try:
        text = f"{type(error).__name__}: {error}".partition("\n")[0][:200].removesuffix(": ")
        return text.encode(errors="replace").decode()  # half a surrogate could not be written anywhere
    except BaseException:  # noqa: BLE001  # its text is the program's, too
        return type(error).__name__
