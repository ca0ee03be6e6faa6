"""Read lists of inputs: an address per row, optional captions, and further columns as metadata of the source.

Lists are untrusted: rows are read in batches, a row that cannot be used only affects itself, and rows and bytes are
limited.
"""

import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa

from clipmill.errors import UserError
from clipmill.storage import read_limited, reason_of, shown
from curation.inputs.list_cells import MAX_METADATA_CHARS, captions_in, metadata_text
from curation.inputs.list_tables import read_json, read_json_lines, read_parquet
from curation.inputs.list_text import SEPARATORS, WESTERN, BadRow, Form, Record, decoded, read_delimited, read_lines

_READERS: Mapping[str, Callable[[bytes, str, Form], Iterator[Record | BadRow]]] = {
    ".txt": read_lines,
    ".csv": read_delimited,
    ".tsv": lambda content, name, form: read_delimited(content, name, form, preferred="\t"),
    ".tab": lambda content, name, form: read_delimited(content, name, form, preferred="\t"),
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}
_COMPRESSED = ".gz"
LIST_SUFFIXES = (*_READERS, *(f"{suffix}{_COMPRESSED}" for suffix in _READERS if suffix != ".parquet"))
OTHER_TABLES = (".xlsx", ".xls", ".ods", ".numbers", ".feather", ".arrow", ".orc", ".sqlite", ".db", ".pkl", ".pickle")
"""Suffixes of tables that are not read."""
MAX_ROWS = 10_000_000
_MAX_FILE_BYTES = 1 << 30
_MAX_TEXT_BYTES = 2 << 30
_MAX_ADDRESS_BYTES = 8192
_MAX_CAPTION_BYTES = 1 << 20
_READ_DEADLINE_S = 600.0
_NAMED_COLUMNS = 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a list. `address` may contain bytes that are not UTF-8, as in `os.fsdecode`."""

    address: str
    captions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    """Why it cannot be used."""


@dataclass(kw_only=True)
class Reading:
    """How a list was understood, for a note to the user."""

    name: str
    form: Form = field(default_factory=Form)
    rows: int = 0
    problems: int = 0
    western: bool = False
    """Whether a text was not UTF-8 and read as Western European."""
    too_long: Counter[str] = field(default_factory=Counter)
    """Metadata -> number of values left out because of their length."""
    metadata: dict[str, None] = field(default_factory=dict)

    def sentence(self) -> str:
        """What was recognized and kept; empty if there is nothing to say of a plain list."""
        form, said = self.form, []
        if self.western:
            said.append("read as Western European text (cp1252)")
        elif form.encoding not in ("utf-8", WESTERN):
            said.append(form.encoding)
        if form.separator and form.separator != ",":
            said.append(f"separated by {SEPARATORS[form.separator]}s")
        if not form.header:
            said.append("no header")
        if form.columns is not None and form.names:
            address, caption = form.columns.address, form.columns.caption
            said.append(f"addresses from {form.names[address]!r}")
            said.append(f"captions from {form.names[caption]!r}" if caption is not None else "no caption column")
        if self.metadata:
            said.append(f"kept as metadata: {_enumerated(list(self.metadata))}")
        left_out = [f"{column!r} ({why})" for column, why in form.left_out.items()]
        left_out += [f"{count:,} values of {column!r} (too long)" for column, count in self.too_long.items()]
        if left_out:
            said.append(f"not kept: {_enumerated(left_out)}")
        if self.problems:
            said.append(f"{self.problems:,} of {self.rows:,} rows cannot be used")
        return f"{self.name}: {'; '.join(said)}" if said else ""


def is_list_name(path: str) -> bool:
    """Whether a path or a URL's path ends like a list."""
    return path.lower().endswith(LIST_SUFFIXES)


def read_rows(fs: fsspec.AbstractFileSystem, path: str, reading: Reading | None = None) -> Iterator[Row]:
    """The rows that are not blank; `reading` tells how they were understood.

    Raises UserError for a list that is missing, unreadable, without an address column, or beyond the limits.
    """
    reading = reading or Reading(name=shown(fs, path))
    size_bytes, name = 0, reading.name
    try:
        content = read_limited(fs, path, max_bytes=_MAX_FILE_BYTES, deadline_s=_READ_DEADLINE_S)
        suffix, content = _uncompressed(
            path.partition("?")[0].lower() if "://" in path else path.lower(), content, name
        )
        for record in _READERS[suffix](content, name, reading.form):
            row = _row(record, reading)
            if row is None:
                continue
            size_bytes += len(row.address) + sum(map(len, row.captions)) + sum(map(len, row.metadata.values()))
            reading.rows, reading.problems = reading.rows + 1, reading.problems + (row.problem is not None)
            if reading.rows > MAX_ROWS or size_bytes > _MAX_TEXT_BYTES:
                bounds = f"{MAX_ROWS:,} rows or {_MAX_TEXT_BYTES >> 30} GiB of text"
                raise UserError(f"the list {name!r} has more than {bounds}; split it")
            yield row
    except FileNotFoundError as error:
        raise UserError(f"the list {name!r} does not exist") from error
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError, zlib.error, EOFError) as error:
        raise UserError(f"the list {name!r} cannot be read: {reason_of(error)}") from error


def _uncompressed(path: str, content: bytes, name: str) -> tuple[str, bytes]:
    """The suffix of the list itself, and its content."""
    if path.endswith(_COMPRESSED):
        path = path.removesuffix(_COMPRESSED)
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise UserError(f"the list {name!r} is larger than {_MAX_FILE_BYTES:,} bytes when decompressed; split it")
    return next(suffix for suffix in _READERS if path.endswith(suffix)), content


def _row(record: Record | BadRow, reading: Reading) -> Row | None:
    """The row of a record; None for a blank one."""
    place = f"{reading.name}#row-{record.line}"
    if isinstance(record, BadRow):
        return Row(address=place, problem=record.problem)
    columns, cells = record.columns, record.cells
    address = metadata_text(cells[columns.address]) if not isinstance(cells[columns.address], str) else None
    text = (address or str(cells[columns.address] or "")).strip()
    if not text:
        blank = all(cell is None or cell == "" for cell in cells)
        return None if blank else Row(address=place, problem="a row without an address")
    if len(text) > _MAX_ADDRESS_BYTES:
        return Row(address=f"{text[:100]}...", problem=f"an address of {len(text):,} characters")
    try:
        captions = () if columns.caption is None else _captions(cells[columns.caption], reading)
        metadata = _metadata(record, reading)
    except UserError as error:
        return Row(address=text, problem=str(error))
    except RecursionError:
        return Row(address=text, problem="a cell is nested too deeply")
    return Row(address=text, captions=captions, metadata=metadata)


def _captions(cell: Any, reading: Reading) -> tuple[str, ...]:
    captions = []
    for caption in captions_in(cell):
        if len(caption) > _MAX_CAPTION_BYTES:
            raise UserError(f"a caption of {len(caption):,} characters exceeds the limit of {_MAX_CAPTION_BYTES:,}")
        try:
            captions.append(decoded(caption, reading.form.encoding))
            reading.western |= captions[-1] != caption
        except UserError as error:
            raise UserError(f"its caption cannot be read: {error}") from error
    return tuple(captions)


def _metadata(record: Record, reading: Reading) -> dict[str, str]:
    """Values by name. One that is too long, or in an unknown encoding, is left out and counted."""
    metadata = {}
    for i, name in record.columns.metadata.items():
        text = metadata_text(record.cells[i])
        if text is None:
            continue
        try:
            text = decoded(text, reading.form.encoding)
        except UserError:
            reading.form.left_out[name] = "in some rows not UTF-8"
            continue
        if len(text) > MAX_METADATA_CHARS:
            reading.too_long[name] += 1
            continue
        metadata[name] = sys.intern(text)  # a license is that of many rows
        reading.metadata.setdefault(name)
    for name in record.columns.left_out:
        reading.form.left_out[name] = "too many columns"
    return metadata


def _enumerated(names: list[str]) -> str:
    more = len(names) - _NAMED_COLUMNS
    return ", ".join(names[:_NAMED_COLUMNS]) + (f" and {more} more" if more > 0 else "")
