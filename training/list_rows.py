"""Rows of a list of paths and captions: JSON lines, CSV or TSV with a header."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clipmill.errors import UserError
from clipmill.local_files import open_regular
from training.sample_error import SampleError

LIST_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
PATH_KEYS = (
    "path",
    "filepath",
    "videopath",
    "clippath",
    "imagepath",
    "file",
    "filename",
    "videofile",
    "video",
    "image",
)
"""Names of the path column, in lower case without spaces and underscores; the first one present is used."""
MAX_LIST_BYTES = 1 << 30
_NUMBERS = ("motion_bucket", "elevation")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A path as written, with the `normalized` captions and conditioning of the row; or why it cannot be used."""

    line: int
    path: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_list(
    file: str, normalized: Callable[[Mapping[str, Any]], Mapping[str, Any]], content: bytes | None = None
) -> Iterator[Row]:
    """The rows of a list, of a file or of its `content`. `normalized` gives the captions and conditioning of a row, or
    raises SampleError. Raises UserError if the list cannot be read or no row has a path, naming the columns.
    """
    if content is None:
        with open_regular(file) as opened:
            content = opened.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise UserError(f"the list {file} has more than {MAX_LIST_BYTES:,} bytes: split it into several")
    rows = _of_json_lines if file.lower().endswith((".jsonl", ".ndjson")) else _of_table
    names: tuple[str, ...] = ()
    usable = False
    for line, values in rows(content, file):
        row = values if isinstance(values, Row) else _row(line, values, normalized)
        usable = usable or not row.problem
        if isinstance(values, dict):
            names = names or tuple(values)
        yield row
    if names and not usable:
        raise UserError(
            f"the list {file} has no usable row: expected a path in a column named path, file_name, video or similar, "
            f"got the columns {', '.join(map(repr, names[:12]))}"
        )


def _row(line: int, values: Any, normalized: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Row:
    try:
        path = _path(values)
        metadata = normalized(values)
    except SampleError as error:
        return Row(line=line, problem=error.message)
    return Row(line=line, path=path, metadata={name: metadata[name] for name in ("captions", "conditioning")})


def _path(values: Any) -> str:
    """The path in a row. Raises SampleError if it has none, or none that is usable."""
    if not isinstance(values, dict):
        raise SampleError("bad_row", f"expected an object, got {type(values).__name__}")
    plain = {"".join(c for c in str(name).lower() if c not in " _"): value for name, value in values.items()}
    path = next((plain[name] for name in PATH_KEYS if isinstance(plain.get(name), str) and plain[name]), None)
    if path is None:
        raise SampleError("bad_row", "no path")
    if "://" in path:
        raise SampleError("bad_row", f"expected a path, got the address {path[:200]}")
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:
        raise SampleError("bad_row", "path is not UTF-8") from error
    return str(path)


def _of_json_lines(content: bytes, file: str) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(io.BytesIO(content), start=1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield line, Row(line=line, problem=f"invalid JSON ({error})")


def _of_table(content: bytes, file: str) -> Iterator[tuple[int, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the list {file} is not UTF-8 at byte {error.start:,}: save it as UTF-8") from error
    header = text.partition("\n")[0]
    delimiter = "\t" if file.lower().endswith(".tsv") else max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for values in reader:
            yield reader.line_num, {name: _cell(name, value) for name, value in values.items() if name is not None}
    except csv.Error as error:
        raise UserError(f"the list {file} cannot be read at line {reader.line_num}: {error}") from error


def _cell(name: str, value: str | None) -> Any:
    if name in _NUMBERS and value:
        try:
            return float(value)
        except ValueError:
            return value
    return value or None
