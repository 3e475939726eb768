"""The tests' side: runs tests in a process without the program, whose names stand there for its objects.

What a program returns arrives as plain data; an object of the program's own stays with the program, and its attributes,
items and methods are asked for there. It never equals plain data and cannot be computed or compared with it: else an
object whose `==` or `-` is always what a test wants would pass.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import keyword
import sys
import types
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from judges.sandbox.peer import NotPlainError, Peer, PeerGoneError
from judges.sandbox.program import OPERATORS_OF_TWO, describe
from judges.sandbox.source import MODULE, Source

ENDS_A_LOOP = (StopIteration, StopAsyncIteration, GeneratorExit)
HARMLESS = sys.stdlib_module_names - {"__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo"}
"""Modules that tests may have because a program imported them. A program names a module as it likes, and importing one
runs it: `unittest.__main__` would run files that the program has written.
"""


class ProgramObject:
    """An object of the program."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self._peer.ask("getattr", self, name)

    @property
    def __doc__(self) -> Any:  # type: ignore[override]  # else that of this class
        return self._peer.ask("getattr", self, "__doc__")

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._peer.ask("delattr", self, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it, over there."""
        return self._peer.ask("call", self, *arguments, **named)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._peer.ask("iter", self)
        while isinstance(iterator, ProgramObject):
            try:
                yield self._peer.ask("next", iterator)
            except StopIteration:
                return
        yield from iterator

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __contains__(self, item: Any) -> bool:
        return any(item is each or item == each for each in self)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, ProgramObject) and self._peer.ask("isinstance", instance, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, ProgramObject) and self._peer.ask("issubclass", kind, self) is True

    def __enter__(self) -> Any:
        return self._peer.ask("call", self._peer.ask("getattr", self, "__enter__"))

    def __exit__(self, *error: Any) -> None:
        self._peer.ask("call", self._peer.ask("getattr", self, "__exit__"), None, None, None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProgramObject) and self._peer.ask("eq", self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._peer.ask("hash", self))


def _of_one(name: str, kind: type | None) -> Callable[[ProgramObject], Any]:
    def method(self: ProgramObject, *arguments: Any) -> Any:
        found = self._peer.ask(name, self, *arguments)
        if kind is not None and type(found) is not kind:
            raise TypeError(f"{name}() of an object of the program gives no {kind.__name__}")
        return found

    return method


def _of_two(name: str) -> Callable[[ProgramObject, Any], Any]:
    def method(self: ProgramObject, other: Any) -> Any:
        return self._peer.ask(name, self, other) if isinstance(other, ProgramObject) else NotImplemented

    return method


_KINDS = {"len": int, "str": str, "repr": str, "bool": bool, "int": int, "float": float, "index": int}
for _name, _kind in _KINDS.items():
    setattr(ProgramObject, f"__{_name}__", _of_one(_name, _kind))
for _name in ("getitem", "setitem", "delitem", "neg", "pos", "invert", "abs", "round", "reversed"):
    setattr(ProgramObject, f"__{_name}__", _of_one(_name, None))
for _name in (*OPERATORS_OF_TWO, "lt", "le", "gt", "ge"):
    setattr(ProgramObject, f"__{_name.rstrip('_')}__", _of_two(_name))


class Bench:
    """Where tests of one program run."""

    def __init__(self, connection: int) -> None:
        self._functions: list[Any] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self._objects: dict[int, ProgramObject] = {}  # by their numbers, so that `is` means what it does over there
        self._peer = Peer(connection, self._serve, self._export, self._find, self._failure)

    def _serve(self, operation: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        """The program may call the functions that it was given, and do nothing else here."""
        number, *rest = arguments
        if operation != "call" or type(number) is not int or number < 0:
            raise TypeError("only functions can be called")
        return self._functions[number](*rest, **named)

    def _export(self, value: Any) -> Any:
        if isinstance(value, ProgramObject):
            return value._number
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type):
            self._functions.append(value)
            return ["theirs", len(self._functions) - 1]
        if isinstance(value, types.ModuleType):  # a name of the program's may be one
            raise TypeError("a module cannot be given to the program")
        raise NotPlainError(f"a test cannot give the program an object of {type(value).__name__}")

    def _find(self, content: Any) -> Any:
        if type(content) is not int:
            raise ValueError("not the number of an object")
        return self._objects.setdefault(content, ProgramObject(self._peer, content))

    def _failure(self, names: list[str], text: str) -> Exception:
        """The nearest exception that is known here; never one by which a program could end a test's loop."""
        for name in names:
            known = self._exceptions.get(name) or getattr(builtins, name, None)
            if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, ENDS_A_LOOP):
                try:
                    return known(text)
                except TypeError:  # such as UnicodeDecodeError, which takes five arguments
                    continue
            if name == "StopIteration" and sys._getframe(2).f_code.co_name in ("__next__", "__iter__"):
                return StopIteration(text)
        return RuntimeError(f"{names[0] if names else 'nothing'}: {text}")

    def start(self) -> dict[str, Any]:
        """Runs the program; returns its names.

        Raises:
            PeerGoneError: it ended.
            Exception: what it raised.
        """
        found: dict[str, Any] = {}
        for name, (kind, *content) in self._peer.ask("start").items():
            if not _can_be_named(name):
                continue
            if kind == "module":
                try:
                    found[name] = _module(str(content[0]))
                except ImportError:
                    continue
            elif kind == "exception":
                bases = (getattr(builtins, each, None) for each in content[0])
                base = next(
                    (each for each in bases if isinstance(each, type) and issubclass(each, Exception)), Exception
                )
                found[name] = self._exceptions[str(content[0][0])] = type(str(name), (base,), {"raised_by": content[1]})
            else:
                found[name] = content[0]
        return found

    def run(self, tests: str | Sequence[str]) -> tuple[bool, str, bool]:
        """(passed, why not, whether it is the tests that are broken).

        Args:
            tests: source that is run after the program, or single statements. Functions `test…` that need no arguments
                and cases of unittest in it are run, too. Tests of which some would never run are broken.
        """
        single = not isinstance(tests, str)
        statements = list(tests) if single else [str(tests)]
        try:
            codes = [
                compile(text, f"<test {index + 1}>" if single else "<tests>", "exec")
                for index, text in enumerate(statements)
            ]
            source = Source(statements)
        except (SyntaxError, ValueError) as error:
            return False, f"tests: {describe(error)}", True
        if source.fault:
            return False, f"tests: {source.fault}", True
        where = ""
        try:
            names = self.start()
            module = types.ModuleType(MODULE)
            module.__dict__.update(names)
            sys.modules[MODULE] = module
            shown = _shown(names, source)
            module.__dict__["__all__"] = [name for name in shown if not name.startswith("_")]
            namespace: dict[str, Any] = {**shown, "__name__": "tests"}
            for index, code in enumerate(codes):
                where = f"test {index + 1} of {len(codes)}: " if single else ""
                exec(code, namespace)
            where = ""
            verdict = _collected(namespace, shown)
            return (False, f"tests: {self._peer.not_plain}", True) if self._peer.not_plain else verdict
        except BaseException as error:  # noqa: BLE001  # a test that raises anything has failed
            if self._peer.not_plain:
                return False, f"tests: {self._peer.not_plain}", True
            return _failed(error, where)


def _can_be_named(name: object) -> bool:
    """Whether a program's name may be one in the tests: no `__builtins__`, with which it would say what `abs` is."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def _module(name: str) -> types.ModuleType:
    """One of Python's own; raises ImportError for others."""
    if name not in HARMLESS and not (name in sys.modules and name.partition(".")[0] in HARMLESS):
        raise ImportError(name)
    return importlib.import_module(name)


def _failed(error: BaseException, where: str) -> tuple[bool, str, bool]:
    """The verdict where tests raised: see `Bench.run`."""
    if isinstance(error, PeerGoneError):
        return False, f"{where}the program ended its process", False
    if isinstance(error, ModuleNotFoundError):
        return False, f"tests: {describe(error)}", error.name not in (None, MODULE)
    return False, where + (describe(error) + _line_of(error)), False


def _line_of(error: BaseException) -> str:
    """Where in the tests it was raised."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = f" (line {trace.tb_lineno} of the tests)"
        trace = trace.tb_next
    return line


def _shown(names: dict[str, Any], source: Source) -> dict[str, Any]:
    """The program's names that the tests have as their own.

    A program that calls something `set` or `all` must not decide what the tests mean by it, unless it is that which
    they test: then they use nothing else of a program's. A module is nothing of a program's, if it is used as one.
    """
    modules = {name for name, value in names.items() if isinstance(value, types.ModuleType) and value.__name__ == name}
    used = source.borrowed - (modules - source.called) - vars(builtins).keys()
    if not used and not source.imports_program:
        return names
    return {name: value for name, value in names.items() if name not in vars(builtins)}


def _collected(namespace: dict[str, Any], shown: dict[str, Any]) -> tuple[bool, str, bool]:
    """Runs what the tests define but do not call, whatever the program calls the same; the verdict, see `Bench.run`."""
    own = {name: value for name, value in namespace.items() if name not in shown or value is not shown[name]}
    for name, value in own.items():
        if name.startswith("test") and isinstance(value, types.FunctionType) and not _needs_arguments(value):
            value()
    cases = [each for each in own.values() if isinstance(each, type) and issubclass(each, unittest.TestCase)]
    loader = unittest.defaultTestLoader
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
    result = unittest.TextTestRunner(io.StringIO()).run(suite)
    if 0 < result.testsRun == len(result.skipped):
        return False, f"tests: all are skipped: {result.skipped[0][1]:.150}", True
    bad = [(case.id(), text.strip().splitlines()[-1][:200]) for case, text in [*result.failures, *result.errors]]
    bad += [(case.id(), "was expected to fail") for case in result.unexpectedSuccesses]
    return not bad, ": ".join(bad[0]) if bad else "", False


def _needs_arguments(function: types.FunctionType) -> bool:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return any(each.default is each.empty and each.kind not in several for each in parameters)
