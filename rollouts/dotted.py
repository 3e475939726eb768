"""Functions of the user's own, named in the configuration by their dotted paths."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from rollouts.errors import UserError


def load_dotted(path: str, key: str) -> Callable[..., Any]:
    """The plain function that a dotted path `my_package.my_module:function` names; the current directory is importable.

    Args:
        path: of the function.
        key: the configuration's key that holds the path, for the errors.

    Raises:
        UserError: the path has another form, or does not lead to a plain function.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"{key}: '{path}' is not of the form my_package.my_module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = _import_module(path, module_name, key)
    function = getattr(module, attribute, None)
    if function is None:
        hint = nearest(attribute, (key for key, value in vars(module).items() if callable(value)))
        raise UserError(f"{key}: '{path}': module {module_name} has no '{attribute}'{hint}")
    if not callable(function):
        raise UserError(f"{key}: '{path}' is of type {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{key}: '{path}' is async; it must be a plain function")
    loaded: Callable[..., Any] = function
    return loaded


def _import_module(path: str, module_name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(missing + "."):
            raise UserError(f"{key}: '{path}': importing {module_name} failed: no module '{missing}'") from error
        parent, _, last = missing.rpartition(".")
        hint = nearest(last, _modules_in(parent))
        raise UserError(f"{key}: '{path}': no module '{missing}'{hint} (searched from {Path.cwd()})") from error
    except Exception as error:
        raise UserError(f"{key}: '{path}': importing {module_name} failed: {describe(error)}") from error


def _modules_in(parent: str) -> list[str]:
    """Names of the modules beside the missing one: in its package or, at top level, in the current directory."""
    paths = list(getattr(sys.modules[parent], "__path__", [])) if parent in sys.modules else [str(Path.cwd())]
    return [module.name for module in pkgutil.iter_modules(paths)]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
