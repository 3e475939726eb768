"""From a preset or a YAML file and dotted overrides to a validated `Config`; every mistake is one line."""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from posttrain.config.schema import Config
from rollouts.errors import ConfigError

Key = tuple[str, ...]

TINY_MODELS = {"tiny:base": "base", "tiny:judge": "judge", "tiny:chat-judge": "chat-judge"}
TINY_DATA = {
    "tiny:sft": "sft.jsonl",
    "tiny:rl": "rl.jsonl",
    "tiny:heldout": "heldout.jsonl",
    "tiny:instructions": "instructions.jsonl",
    "tiny:judge-template": "judge/template.txt",
    "tiny:chat-template": "chat-judge/template.txt",
}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number: YAML 1.1 wants 1.0e-4 and makes a text of the other."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Tree:
    """Values as nested dicts, with the place that each key was written at.

    Example: `places[("rl", "steps")] == "configs/tiny.yaml:31"` or `"override 'rl.steps=3'"`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, Any] = {}
        self.places: dict[Key, str] = {}

    def place(self, key: Key) -> str:
        """Where `key`, or the nearest key around it, was written."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)

    def read(self, text: str) -> None:
        """Take the values of a YAML text."""
        try:
            root = yaml.compose(text, _Loader)
            if isinstance(root, yaml.MappingNode):
                self._mark((), root)
                self.values = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{self.name}{line}: not YAML: {error.problem or error.context}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.name}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{self.name}: expected keys and values, such as 'model: tiny:base'")

    def _mark(self, key: Key, node: yaml.MappingNode) -> None:
        for name, value in node.value:
            inner = (*key, str(name.value))
            place = f"{self.name}:{name.start_mark.line + 1}"
            if inner in self.places:
                raise ConfigError(f"{place}: {'.'.join(inner)}: given twice, first at {self.places[inner]}")
            self.places[inner] = place
            if isinstance(value, yaml.MappingNode):
                self._mark(inner, value)

    def override(self, text: str) -> None:
        """Take `a.b=VALUE`, whose value is YAML."""
        place = f"override '{text}'"
        dotted, equals, value = text.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            raise ConfigError(f"{place}: expected KEY=VALUE, such as rl.max_staleness=0")
        node = self.values
        for depth, name in enumerate(key[:-1], 1):
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
            if not isinstance(node, dict):
                outer = ".".join(key[:depth])
                raise ConfigError(f"{place}: {outer}: holds a value and no keys; give all of it, {outer}=VALUE")
        try:
            node[key[-1]] = yaml.load(value, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"{place}: {dotted}: {value!r} is not YAML; quote it") from None
        self.places = {other: at for other, at in self.places.items() if other[: len(key)] != key}
        self.places[key] = place


def preset_names() -> list[str]:
    """The names that `load_config` takes beside paths, sorted."""
    files = importlib.resources.files("configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """The validated settings of a preset or YAML file; `overrides` such as `rl.max_staleness=0` go last.

    Relative paths among the values are relative to the current directory, not to the file.

    Raises:
        ConfigError: one line that names the file and line (or the override), the key, the value and what is expected.
    """
    tree = _Tree(name_or_path)
    if name_or_path in preset_names():
        tree.name = f"configs/{name_or_path}.yaml"
        tree.read((importlib.resources.files("configs") / f"{name_or_path}.yaml").read_text(encoding="utf-8"))
    else:
        tree.read(_read(name_or_path))
    for text in overrides:
        tree.override(text)
    try:
        config = Config.model_validate(tree.values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        raise ConfigError(_one_line(tree, (unknown or details)[0])) from None
    models = [(("model",), config.model), (("judge", "model"), config.judge.model)]
    if config.rubric is not None and config.rubric.model is not None:
        models.append((("rubric", "model"), config.rubric.model))
    for key, model in models:
        try:
            _check_directory(model)
        except ConfigError as error:
            written = key if key in tree.places else ("model",)
            raise ConfigError(f"{tree.place(written)}: {'.'.join(written)}: {error}") from None
    return config


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, and no preset; presets: {', '.join(preset_names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: can not be read: {reason}") from None


def config_hash(config: Config) -> str:
    """16 hex digits that change when any setting does."""
    text = json.dumps(config.resolved(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_directory(model: str) -> None:
    """Refuse what looks like a path (begins with `.`, `/` or `~`, or exists) and is no model directory."""
    path = Path(model).expanduser()
    if model.startswith("tiny:") and model not in TINY_MODELS:
        raise ConfigError(f"{model!r} is not in the tiny world; expected one of: {', '.join(TINY_MODELS)}")
    if model.startswith((".", "/", "~")) and not path.is_dir():
        raise ConfigError(f"{model!r} is no directory; expected a model directory, a hub name or tiny:base")
    if path.exists() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(f"{model!r} is no model directory: it has no config.json")


def resolve_model(model: str) -> str:
    """What an engine can load: `tiny:base` and `tiny:judge` become directories, all else stays as it is.

    Raises:
        ConfigError: a directory that is missing or holds no model.
    """
    _check_directory(model)
    if model in TINY_MODELS:
        return _tiny(TINY_MODELS[model])
    return str(Path(model).expanduser()) if model.startswith("~") else model


def resolve_data(path: str) -> str:
    """What `curricula.datasets` can load: the names of the tiny world (`tiny:sft`, …) become files.

    Raises:
        ConfigError: an empty path, or a set that the tiny world does not have.
    """
    if not path:
        raise ConfigError("no data: set the 'path' of data.demonstrations, data.prompts or data.heldout")
    if path.startswith("tiny:") and path not in TINY_DATA:
        raise ConfigError(f"{path!r} is not in the tiny world; expected one of: {', '.join(TINY_DATA)}")
    return _tiny(TINY_DATA[path]) if path in TINY_DATA else path


def _tiny(name: str) -> str:
    path = Path(str(importlib.resources.files("posttrain"))) / "tiny" / "world" / name
    if not path.exists():
        raise ConfigError(f"{path}: missing; `posttrain tiny build` makes it")
    return str(path)


def _fields(key: Key) -> tuple[str, ...]:
    """The names that exist in the section `key` of the schema."""
    kind: Any = Config
    for name in key:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(name)
            kind = field.annotation if field else None
        else:  # dict[str, list[Section]]
            kind = next(iter(get_args(kind)[-1:]), None)
        if NoneType in get_args(kind):  # Section | None
            kind = next(part for part in get_args(kind) if part is not NoneType)
    return tuple(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else ()


def _suggestion(key: Key) -> str:
    siblings = _fields(key[:-1])
    elsewhere = [f"{section}.{key[-1]}" for section in _fields(()) if key[-1] in _fields((section,))]
    if near := difflib.get_close_matches(key[-1], siblings, n=1):
        return f"did you mean '{near[0]}'?"
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return f"known here: {', '.join(siblings)}"


_EXPECTED: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a section with keys",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} item",
}


def _one_line(tree: _Tree, detail: ErrorDetails) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    kind, value = detail["type"], detail["input"]
    key = tuple(str(part) for part in detail["loc"])
    if kind == "conflict":
        key, value = (*key, *str(context["key"]).split(".")), context["value"]
    head = f"{tree.place(key)}: {'.'.join(key)}"
    if kind == "missing":
        return f"{tree.name}: {'.'.join(key)}: is not set, and has no default"
    if kind == "extra_forbidden":
        return f"{head}: unknown key; {_suggestion(key)}"
    if kind == "conflict":
        return f"{head}: {_show(value)}: {context['why']}"
    if kind == "value_error":
        return f"{head}: {_show(value)}: {context['error']}"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(re.split(r"_(?:type|parsing|from)", kind)[0])
    if expected is None:
        return f"{head}: {_show(value)}: {detail['msg']}"
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    return f"{head}: {_show(value)}: expected {expected.format(**limits)}"


def _show(value: object) -> str:
    """A value as YAML has it, on one line, and shortened."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
