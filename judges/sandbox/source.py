"""A look at the source of tests, before a program is run: what in it would never run, and which names it borrows.

Tests of which nothing runs pass every program. That is told by their form alone, so that no program decides it.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable, Iterator, Sequence

MODULE = "solution"
"""The name by which tests may import the program."""
_MAIN = ("__name__ == '__main__'", "'__main__' == __name__")
_LOOKS_UP = {"globals", "locals", "vars", "dir"}
_HARMLESS = vars(builtins).keys() - {"exec", "eval"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """The source of tests, parsed.

    Example: of `assert set(f(1)) == {2}`, `borrowed` is `{"set", "f"}`, `called` the same, and `fault` is empty.

    Attributes:
        borrowed: names that are read but bound nowhere in it: they are built in or the program's.
        called: names of which something is called.
        imports_program: whether it imports the program, or something of it by name.
        fault: what in it would never run, empty if there is no such thing.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Parses them, which are run one after the other.

        Raises:
            SyntaxError: one of them cannot be parsed.
            ValueError: as above.
        """
        self._body = [statement for text in texts for statement in _without_main(ast.parse(text).body)]
        self._nodes = [node for statement in self._body for node in ast.walk(statement)]
        defined = list(_run_with(self._body))
        self._functions = [node for node in defined if isinstance(node, _Function)]
        self._classes = {node.name: node for node in defined if isinstance(node, ast.ClassDef)}
        self._read = _read(self._nodes)
        self.borrowed = _borrowed(texts)
        calls = [node.func for node in self._nodes if isinstance(node, ast.Call)]
        self.called = {function.id for function in calls if isinstance(function, ast.Name)}
        self.imports_program = any(map(_imports_program, self._nodes))
        self.fault = self._never_run() or self._nothing_runs()

    def _never_run(self) -> str:
        """The first test that looks like one and is none here."""
        for function in self._functions:
            why = _parameters(function) or _suspended(function)
            if why and function.name.startswith("test") and not self._is_mentioned(function.name):
                return f"{function.name} is never run: {why}"
        for kind in self._classes.values():
            tests, roots = list(self._tests_of(kind)), self._roots(kind)
            if tests and not roots and kind.name.startswith("Test") and not self._is_mentioned(kind.name):
                return f"{kind.name} is never run: it is no unittest.TestCase"
            if tests and "IsolatedAsyncioTestCase" in roots:
                return f"{kind.name} cannot be run: asyncio needs sockets, which no program gets"
            for test in tests if roots else []:
                if why := _suspended(test):
                    return f"{kind.name}.{test.name} is never run: {why}"
        return ""

    def _nothing_runs(self) -> str:
        """Why a program could not fail, if so."""
        if any(each.name.startswith("test") and not _parameters(each) for each in self._functions):
            return ""
        if any(map(self._is_case, self._classes.values())) or self._judges():
            return ""
        names = [*(each.name for each in self._functions), *self._classes]
        return "nothing in them judges a program" + (f"; {', '.join(names)}: never called" if names else "")

    def _is_mentioned(self, name: str) -> bool:
        """Whether the tests themselves may call it; those that go through all names may call any."""
        texts = (node.value for node in self._nodes if isinstance(node, ast.Constant))
        return name in self._read or bool(_LOOKS_UP & self._read) or name in texts

    def _family(self, kind: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and those of the tests from which it comes."""
        family, left = {kind.name: kind}, [kind]
        while left:
            bases = _bases(left.pop())
            new = {base: self._classes[base] for base in bases if base in self._classes and base not in family}
            family |= new
            left += new.values()
        return list(family.values())

    def _roots(self, kind: ast.ClassDef) -> set[str]:
        """Names of the other classes from which it comes: `TestCase` for `unittest.TestCase`."""
        family = self._family(kind)
        bases = {base for each in family for base in _bases(each) if self._classes.get(base) in (None, each)}
        return {base.rpartition(".")[2] for base in bases} - {"object"}

    def _tests_of(self, kind: ast.ClassDef) -> Iterator[_Function]:
        for each in self._family(kind):
            for node in _run_with(each.body):
                if isinstance(node, _Function) and (node.name.startswith("test") or node.name == "runTest"):
                    yield node

    def _is_case(self, kind: ast.ClassDef) -> bool:
        """Whether it is a case with tests, for all that can be known of classes that are imported."""
        roots = self._roots(kind)
        return bool(roots and any(self._tests_of(kind))) or any("Test" in root for root in roots - {"TestCase"})

    def _judges(self) -> bool:
        """Whether a statement outside of functions and classes could fail.

        A call does if what it calls asserts, or if it may call the program. In an assignment the latter is not enough:
        that is how tests make the data for a check that is never called.
        """
        imports = [node for node in self._nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        aliases = [alias for node in imports if not _imports_program(node) for alias in node.names]
        others = {alias.asname or alias.name.partition(".")[0] for alias in aliases}
        asserting = self._asserting()
        for statement in self._body:
            nodes = list(_run_with([statement]))
            if any(isinstance(node, ast.Assert | ast.Raise) for node in nodes):
                return True
            if not any(isinstance(node, ast.Call) for node in nodes):
                continue
            assigns = isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)
            if _read(nodes) & asserting or (not assigns and _read(nodes) - _HARMLESS - others):
                return True
        return False

    def _asserting(self) -> set[str]:
        """Names of functions and classes that assert something, or use one that does."""
        nodes = {each.name: list(ast.walk(each)) for each in [*self._functions, *self._classes.values()]}
        found = {name for name, all_of in nodes.items() if any(isinstance(n, ast.Assert | ast.Raise) for n in all_of)}
        while more := {name for name, all_of in nodes.items() if _read(all_of) & found} - found:
            found |= more
        return found


def _without_main(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All but what runs only in a file that is the main one, which tests never are."""
    for statement in body:
        if isinstance(statement, ast.If) and any(text in ast.unparse(statement.test) for text in _MAIN):
            yield from statement.orelse
        else:
            yield statement


def _run_with(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes and all in them, but not what is in functions and classes: that may run later, or never."""
    left = list(nodes)
    while left:
        node = left.pop()
        yield node
        if isinstance(node, _Function | ast.ClassDef):
            left += node.decorator_list
        elif not isinstance(node, ast.Lambda):
            left += ast.iter_child_nodes(node)


def _read(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _borrowed(texts: Iterable[str]) -> set[str]:
    """Names of the outermost scope that are read there or in a function, and bound in none of the texts."""
    read, bound = set(), set()
    for text in texts:
        outermost = symtable.symtable(text, "<tests>", "exec")
        left = [outermost]
        while left:
            table = left.pop()
            left += table.get_children()
            symbols = [each for each in table.get_symbols() if table is outermost or each.is_global()]
            read |= {each.get_name() for each in symbols if each.is_referenced()}
            bound |= {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
    return read - bound


def _imports_program(node: ast.AST) -> bool:
    """But for `from solution import *`, which only brings what is there anyway."""
    if isinstance(node, ast.ImportFrom):
        return node.module == MODULE and node.names[0].name != "*"
    return isinstance(node, ast.Import) and any(alias.name == MODULE for alias in node.names)


def _bases(kind: ast.ClassDef) -> list[str]:
    return [ast.unparse(base) for base in kind.bases]


def _parameters(function: _Function) -> str:
    """Why it cannot be called without arguments, if so. What a decorator makes of a function is not known."""
    taken = function.args
    optional = len(taken.defaults) == len(taken.posonlyargs) + len(taken.args) and None not in taken.kw_defaults
    return "" if optional or function.decorator_list else "it has parameters"


def _suspended(function: _Function) -> str:
    """Why a call runs nothing of it, if so."""
    if function.decorator_list:
        return ""
    if isinstance(function, ast.AsyncFunctionDef):
        return "it is async"
    generator = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _run_with(function.body))
    return "it is a generator" if generator else ""
