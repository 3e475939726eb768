"""The users' own templates of what a judge is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.config import resolve_data
from rollouts.errors import ConfigError


def read_template(key: str, path: str, places: Sequence[str]) -> str:
    """The text of a template, less the newline at its end: an editor ends a file with one, a prompt does not.

    Args:
        key: the setting that names the file, for what is said of a wrong one.
        path: of the file, or a template of the tiny world.
        places: that the template must have, such as `{prompt}`.

    Raises:
        ConfigError: there is no such file, it is no text, or it lacks a place.
    """
    try:
        template = Path(resolve_data(path)).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path}: is no text ({error.reason})") from None
    for place in places:
        if place not in template:
            raise ConfigError(f"{key}: {path}: has no {place}")
    return template
