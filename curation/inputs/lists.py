"""Read lists of inputs: .txt, .csv and .parquet files with an address and an optional caption per row.

Lists are untrusted: rows are read in batches and only the two columns, an invalid row only affects itself, and rows and
bytes are limited.
"""

import codecs
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from clipmill.errors import UserError
from clipmill.storage import read_limited, reason_of, shown

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_URI_COLUMNS = ("uri", "url", "path", "file", "video")
_CAPTION_COLUMNS = ("caption", "text", "title")
MAX_ROWS = 10_000_000
_MAX_FILE_BYTES = 1 << 30
_MAX_TEXT_BYTES = 2 << 30
_MAX_ROW_GROUP_BYTES = 1 << 30
_MAX_ADDRESS_BYTES = 8192
_MAX_CAPTION_BYTES = 1 << 20
_ROWS_AT_ONCE = 1024
_READ_DEADLINE_S = 600.0


_Cells = tuple[bytes | None, bytes | None]
"""Address and caption as bytes, because they may not be UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a list. `address` may contain bytes that are not UTF-8, as in `os.fsdecode`."""

    address: str
    caption: str | None = None
    problem: str | None = None
    """Why it cannot be used."""


def read_rows(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Row]:
    """The rows that have an address. A .txt has one per line, an optional caption after a tab, and # comments.

    Raises UserError for a list that is missing, unreadable, without an address column, or beyond the limits.
    """
    name, rows, size_bytes = shown(fs, path), 0, 0
    try:
        content = read_limited(fs, path, max_bytes=_MAX_FILE_BYTES, deadline_s=_READ_DEADLINE_S)
        for cells in _cells(path.lower(), content, name):
            row = cells if isinstance(cells, Row) else _row(*cells)
            if row is None:
                continue
            rows, size_bytes = rows + 1, size_bytes + len(row.address) + len(row.caption or "")
            if rows > MAX_ROWS or size_bytes > _MAX_TEXT_BYTES:
                bounds = f"{MAX_ROWS:,} rows or {_MAX_TEXT_BYTES >> 30} GiB of text"
                raise UserError(f"the list {name!r} has more than {bounds}; split it")
            yield row
    except FileNotFoundError as error:
        raise UserError(f"the list {name!r} does not exist") from error
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"the list {name!r} cannot be read: {reason_of(error)}") from error


def _row(address: bytes | None, caption: bytes | None) -> Row | None:
    text = (address or b"").decode("utf-8", "surrogateescape").strip()
    if not text:
        return None
    if len(text) > _MAX_ADDRESS_BYTES:
        return Row(address=f"{text[:100]}...", problem=f"an address of {len(text):,} characters")
    if caption and len(caption) > _MAX_CAPTION_BYTES:
        return Row(address=text, problem=f"a caption of {len(caption):,} bytes")
    try:
        return Row(address=text, caption=(caption or b"").decode().strip() or None)
    except UnicodeDecodeError as error:
        return Row(address=text, problem=f"its caption is not UTF-8 ({error.reason} at byte {error.start}) in the list")


def _cells(name: str, content: bytes, shown_name: str) -> Iterator[_Cells | Row]:
    if name.endswith(".txt"):
        yield from _lines(content)
    elif name.endswith(".csv"):
        yield from _csv_cells(content, shown_name)
    else:
        yield from _parquet_cells(content, shown_name)


def _lines(content: bytes) -> Iterator[_Cells]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16").encode()
    for line in io.BytesIO(content.removeprefix(codecs.BOM_UTF8)):
        if not line.startswith(b"#"):
            address, _, caption = line.partition(b"\t")
            yield address, caption


def _csv_cells(content: bytes, name: str) -> Iterator[_Cells | Row]:
    content, encoding = _as_utf8(content.removeprefix(codecs.BOM_UTF8))
    malformed: list[Row] = []

    def skip(row: Any) -> str:
        problem = f"a row of {row.actual_columns} columns, expected {row.expected_columns}"
        malformed.append(Row(address=f"{name}#malformed-{next(numbers)}", problem=problem))
        return "skip"

    numbers = itertools.count(1)
    read = pa.csv.ReadOptions(use_threads=False)
    parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    header = pa.csv.open_csv(io.BytesIO(content), read_options=read, parse_options=parse).schema.names
    columns, numbers = _columns(header, name), itertools.count(1)
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns)
    malformed.clear()
    batches = pa.csv.open_csv(io.BytesIO(content), read_options=read, parse_options=parse, convert_options=convert)
    for batch in batches:
        yield from ((_original(address, encoding), _original(caption, encoding)) for address, caption in _pairs(batch))
        yield from malformed
        malformed.clear()


def _as_utf8(content: bytes) -> tuple[bytes, str]:
    """Content for pyarrow's CSV parser: if it is not UTF-8, each byte becomes one character."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1").encode(), "latin-1"
    return content, "utf-8"


def _original(cell: bytes | None, encoding: str) -> bytes | None:
    return cell if cell is None or encoding == "utf-8" else cell.decode().encode(encoding)


def _parquet_cells(content: bytes, name: str) -> Iterator[_Cells]:
    buffer = pa.BufferReader(content)
    parquet = pq.ParquetFile(buffer)
    columns = _columns(parquet.schema_arrow.names, name)
    for i in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(i)
        chunks = [group.column(j) for j in range(group.num_columns)]
        size_bytes = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in columns)
        if size_bytes > _MAX_ROW_GROUP_BYTES:
            raise UserError(
                f"the list {name!r} has a row group of {size_bytes:,} bytes; rewrite it with smaller row groups"
            )
    texts = [c for c in columns if _is_text(parquet.schema_arrow.field(c).type)]
    file = pq.ParquetFile(buffer, read_dictionary=texts)  # a text that repeats is decoded once
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
        yield from _pairs(batch.select(columns))


def _columns(names: list[str], name: str) -> list[str]:
    """The address column, and the caption column if there is one."""
    uri = next((known for known in _URI_COLUMNS if known in names), None)
    if uri is None:
        raise UserError(
            f"the list {name!r} has columns {names[:50]}; expected an address column named one of {list(_URI_COLUMNS)}"
        )
    caption = next((known for known in _CAPTION_COLUMNS if known in names), None)
    return [uri, caption] if caption else [uri]


def _pairs(batch: pa.RecordBatch) -> Iterator[_Cells]:
    addresses = _values(batch.column(0))
    captions = _values(batch.column(1)) if batch.num_columns > 1 else [None] * batch.num_rows
    yield from zip(addresses, captions, strict=True)


def _values(column: pa.Array) -> list[bytes | None]:
    """Texts as bytes, because they may not be UTF-8; other values as Python prints them."""
    if pa.types.is_dictionary(column.type):
        values = _values(column.dictionary)
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    if _is_text(column.type):
        return list(column.cast(pa.large_binary()).to_pylist())
    return [None if value is None else str(value).encode() for value in column.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )
