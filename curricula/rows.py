"""Rows of JSONL and Parquet files and of `datasets` names, each with the place it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rollouts.dotted import describe, load_dotted
from rollouts.errors import DataError, first_line

SUFFIXES = (".jsonl", ".json", ".parquet")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Row:
    """A row with its origin.

    Example: `Row({"question": "2+2?", "answer": "#### 4"}, "train.jsonl", 17)`; `line` counts from 1, and counts rows
    where the file has no lines.
    """

    values: Mapping[str, Any]
    file: str
    line: int

    @property
    def place(self) -> str:
        """`train.jsonl:17`."""
        return f"{self.file}:{self.line}"


def load_rows(path: str, what: str = "data", limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a JSONL or Parquet file, a directory of them, a function, or a `datasets` name.

    A function is named by its dotted path, `my_package.my_module:rows`; it takes nothing and returns or yields
    mappings. A name is `owner/name` or `owner/name/config`, either with `:split` (default: `train`). A directory is
    read file by file in the order of their names, without what lies deeper. `what` names the setting in errors:
    `data.prompts`.

    Raises:
        DataError: no such file or data set, no rows, a line that is not a JSON object.
    """
    rows = list(islice(iterate_rows(path, what), limit))
    if not rows:
        raise DataError(f"{path}: no rows; set {what}.path to a file that has some")
    return rows


def short(value: Any) -> str:
    """A value for an error message: on one line, its middle cut out."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def iterate_rows(path: str, what: str = "data", streaming: bool = False) -> Iterator[Row]:
    """The rows of what `load_rows` reads, one after the other, so that no more is read than is asked for.

    `streaming`: a `datasets` name is not downloaded, but read over the network as far as it is asked for.

    Raises:
        DataError: while iterating; as for `load_rows`, but that there may be no rows.
    """
    if not path:
        raise DataError(f"no data: set {what}.path")
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in (".jsonl", ".parquet"))
        if not files:
            raise DataError(f"{path}: no .jsonl or .parquet file in this directory; set {what}.path")
        for file in files:
            yield from _file_rows(file)
    elif place.exists():
        yield from _file_rows(place)
    elif path.startswith((".", "/", "~")) or place.suffix in SUFFIXES:
        raise DataError(f"{path}: no such file; set {what}.path")
    elif _DOTTED.fullmatch(path):
        yield from _function_rows(path, what)
    else:
        yield from _dataset_rows(path, what, streaming)


def _file_rows(file: Path) -> Iterator[Row]:
    try:
        yield from _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)
    except OSError as error:
        raise DataError(f"{file}: can not be read: {error.strerror or error}") from None


def _jsonl_rows(file: Path) -> Iterator[Row]:
    line = 0
    try:
        with file.open("rb") as lines:
            for line, raw in enumerate(lines, 1):
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                if not text.strip():
                    continue
                values = json.loads(text)
                if "\\ud" in text.lower():
                    _check_text(values, f"{file}:{line}")
                if not isinstance(values, dict):
                    raise DataError(f"{file}:{line}: expected a JSON object on each line, found {short(values)}")
                yield Row(values, str(file), line)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{line}: not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}:{line}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists within lists
        raise DataError(f"{file}:{line}: cannot be read: {first_line(error)}") from None


def _check_text(values: Any, place: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer and no file takes."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start : error.end]
        raise DataError(f"{place}: {half!a} is half of a character (a lone surrogate); mend the row") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield from _number(parquet.iter_batches(1000), str(file))
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: not Parquet: {first_line(error)}") from None


def _function_rows(path: str, what: str) -> Iterator[Row]:
    try:
        rows = iter(load_dotted(path, f"{what}.path")())
    except TypeError as error:  # it wants arguments, or gives nothing that can be iterated
        raise DataError(f"{path}: expected a function that takes nothing and gives rows: {error}") from None
    line = 0
    while True:
        line += 1
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{path}: failed on row {line}: {describe(error)}") from error
        if not isinstance(values, Mapping):
            raise DataError(f"{path}:{line}: expected a mapping for each row, found {short(values)}")
        yield Row(values, path, line)


def _dataset_rows(path: str, what: str, streaming: bool) -> Iterator[Row]:
    import datasets

    name, _, split = path.partition(":")
    repository, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    try:
        dataset = datasets.load_dataset(repository, config, split=split or "train", streaming=streaming)
    except Exception as error:
        # What fails here comes from half a dozen libraries that share no base class: name, network, licence, format.
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: no file, and no data set that can be loaded ({reason}); set {what}.path") from error
    read = 0
    # As Arrow, an image stays a mapping with its bytes; as Python values it would be decoded.
    rows = _number(dataset.with_format("arrow").iter(1000), path)
    try:
        for row in rows:
            yield row
            read = row.line
    except Exception as error:  # a streamed one is read over the network
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: can not be read behind row {read} ({reason}); try again") from error


def _number(batches: Iterable[Any], file: str) -> Iterator[Row]:
    """The rows of Arrow batches, counted from 1."""
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for line, values in enumerate(rows, 1):
        yield Row(values, file, line)
