"""Lists as tables and objects: Parquet, .json and .jsonl."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.errors import UserError
from curation.inputs.list_cells import Columns, columns_of, looks_like_address
from curation.inputs.list_text import BadRow, Form, Record, encoding_of, no_address_column, read_text_lines

_MAX_ROW_GROUP_BYTES = 1 << 30
_MAX_JSON_BYTES = 256 << 20
_ROWS_AT_ONCE = 1024
_SPACE = re.compile(r"\s*")
_PLAIN = Columns(address=0, caption=1, metadata={})


def read_json_lines(content: bytes, name: str, form: Form) -> Iterator[Record | BadRow]:
    """The rows of a .jsonl: an object, a string (an address), or a list (address and caption) per line.

    One array of these, or objects over several lines, as `jq` prints them, are understood as well.
    """
    form.encoding = encoding_of(content)
    lines = read_text_lines(content, form.encoding)
    if not _begins_with_a_row(lines) and (values := _values_of(content, form)):
        yield from _rows(_unwrapped(values[0]) if len(values) == 1 else values, name, form)
        return
    usable = False
    for line, text in read_text_lines(content, form.encoding):
        if isinstance(text, BadRow):
            yield text
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield BadRow(line=line, problem=f"invalid JSON ({error})")
            continue
        row = _json_row(value, line, form)
        usable = usable or isinstance(row, Record)
        yield row
    if not usable and form.names:
        raise no_address_column(name, form.names)


def read_json(content: bytes, name: str, form: Form) -> Iterator[Record | BadRow]:
    """The rows of a .json: an array of what a line of a .jsonl may be, or an object from addresses to captions.

    JSON lines are understood as well.
    """
    if len(content) > _MAX_JSON_BYTES:
        raise UserError(
            f"the list {name!r} has {len(content):,} bytes, the limit of a .json list is {_MAX_JSON_BYTES:,}; write it "
            "as .jsonl, an object per line"
        )
    form.encoding = encoding_of(content)
    try:
        value = json.loads(_text(content, form))
    except ValueError:
        if not _begins_with_a_row(read_text_lines(content, form.encoding)) and not _values_of(content, form):
            raise
        yield from read_json_lines(content, name, form)
        return
    yield from _rows(_unwrapped(value), name, form)


def _text(content: bytes, form: Form) -> str:
    return content.decode({"utf-8": "utf-8-sig", "cp1252": "cp1252"}.get(form.encoding, form.encoding))


def _begins_with_a_row(lines: Iterator[tuple[int, str | BadRow]]) -> bool:
    """Whether the first line is JSON by itself, and not an array of several rows."""
    for _, text in lines:
        try:
            value = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            return False
        several = isinstance(value, list) and (len(value) > 2 or not all(isinstance(first, str) for first in value[:1]))
        return not several
    return True


def _values_of(content: bytes, form: Form) -> list[Any] | None:
    """All JSON values of a text, one after the other; None if it has anything else."""
    if len(content) > _MAX_JSON_BYTES:
        return None
    values, decoder = [], json.JSONDecoder()
    try:
        text = _text(content, form).rstrip()
        place = _begin_of_value(text, 0)
        while place < len(text):
            value, end = decoder.raw_decode(text, place)
            values.append(value)
            place = _begin_of_value(text, end)
    except (ValueError, RecursionError):
        return None
    return values


def _begin_of_value(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _unwrapped(values: Any) -> Any:
    """The rows in an object with one array, or in an object from addresses to captions or objects."""
    if isinstance(values, dict) and values and all(looks_like_address(key) for key in values):
        return [{**v, "uri": k} if isinstance(v, dict) else {"uri": k, "caption": v} for k, v in values.items()]
    if isinstance(values, dict):  # {"videos": [...]}
        lists = [value for value in values.values() if isinstance(value, list)]
        return lists[0] if len(lists) == 1 else values
    return values


def _rows(values: Any, name: str, form: Form) -> Iterator[Record | BadRow]:
    """The rows of an array, numbered from 1."""
    if not isinstance(values, list):
        raise UserError(
            f'the list {name!r} is not an array; expected [{{"path": "a.mp4", "caption": "text"}}, ...], an object '
            'with one such array, or {"a.mp4": "text", ...}'
        )
    usable = False
    for number, value in enumerate(values, start=1):
        row = _json_row(value, number, form)
        usable = usable or isinstance(row, Record)
        yield row
    if not usable and form.names:
        raise no_address_column(name, form.names)


def _json_row(value: Any, line: int, form: Form) -> Record | BadRow:
    if isinstance(value, str):
        return Record(line=line, cells=(value, None), columns=_PLAIN)
    if isinstance(value, list) and value and isinstance(value[0], str) and len(value) <= 2:
        return Record(line=line, cells=(value[0], *value[1:], None)[:2], columns=_PLAIN)
    if not isinstance(value, dict):
        return BadRow(line=line, problem='expected an object such as {"path": "a.mp4", "caption": "text"}')
    names = tuple(value)
    columns = columns_of(names)
    form.names = form.names or names
    if columns is None:
        return BadRow(line=line, problem=f"no address among the keys {[name[:60] for name in names[:20]]}")
    if form.columns is None:
        form.names, form.columns = names, columns
    return Record(line=line, cells=tuple(value.values()), columns=columns)


def read_parquet(content: bytes, name: str, form: Form) -> Iterator[Record | BadRow]:
    """The rows of a Parquet file. Columns that are neither text, numbers, times nor lists of text are not read."""
    buffer = pa.BufferReader(content)
    parquet = pq.ParquetFile(buffer)
    schema = parquet.schema_arrow
    found = columns_of(tuple(schema.names))
    if found is None:
        raise no_address_column(name, tuple(schema.names))
    needed = [i for i in (found.address, found.caption) if i is not None]
    address_field = schema.field(found.address)
    if pa.types.is_struct(address_field.type):
        raise UserError(
            f"the list {name!r} contains the videos themselves in column {address_field.name!r}; expected addresses: "
            "write each video to a file"
        )
    sizes = _largest_chunks(parquet, schema.names)
    for i in needed:
        if sizes[schema.names[i]] > _MAX_ROW_GROUP_BYTES:
            raise UserError(
                f"the list {name!r} has a row group of {sizes[schema.names[i]]:,} bytes; rewrite it with smaller row "
                "groups"
            )
    for i in found.metadata:
        column = schema.field(i)
        if not _is_plain(column.type):
            form.left_out[column.name] = f"of type {column.type}"
        elif sizes[column.name] > _MAX_ROW_GROUP_BYTES:
            form.left_out[column.name] = "too large"
    read = [schema.names[i] for i in sorted([*needed, *found.metadata]) if schema.names[i] not in form.left_out]
    form.names, form.columns = tuple(read), columns_of(tuple(read))
    assert form.columns is not None
    texts = [n for n in read if _is_text(schema.field(n).type)]
    lists = [path for path in _leaves(parquet) if path.split(".")[0] in read and "." in path]
    file = pq.ParquetFile(buffer, read_dictionary=[*texts, *lists])  # a text that repeats is decoded once
    line = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=read, use_threads=False):
        for cells in zip(*(_values(batch.column(n)) for n in read), strict=True):
            line += 1
            yield Record(line=line, cells=cells, columns=form.columns)


def _leaves(parquet: pq.ParquetFile) -> list[str]:
    return [parquet.schema.column(i).path for i in range(len(parquet.schema))]


def _largest_chunks(parquet: pq.ParquetFile, names: Sequence[str]) -> dict[str, int]:
    """Column -> its bytes in the row group where it has most, uncompressed."""
    largest = dict.fromkeys(names, 0)
    for i in range(parquet.metadata.num_row_groups):
        group, sizes = parquet.metadata.row_group(i), dict.fromkeys(names, 0)
        for chunk in map(group.column, range(group.num_columns)):
            root = chunk.path_in_schema if chunk.path_in_schema in sizes else chunk.path_in_schema.split(".")[0]
            sizes[root] = sizes.get(root, 0) + chunk.total_uncompressed_size
        for name in names:
            largest[name] = max(largest[name], sizes[name])
    return largest


def _values(column: pa.Array) -> list[Any]:
    """Cells as Python values; bytes that are not UTF-8 as lone surrogates."""
    if pa.types.is_dictionary(column.type):
        values = _values(column.dictionary)
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    if _is_text(column.type):
        texts = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "surrogateescape") for text in texts]
    if _is_list(column.type):
        items, offsets = _values(column.values), column.offsets.to_pylist()
        valid = column.is_valid().to_pylist()
        return [items[a:b] if v else None for a, b, v in zip(offsets, offsets[1:], valid, strict=False)]
    return list(column.to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    return kind in _TEXTS


_TEXTS = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column can be metadata."""
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _is_text(kind.value_type) and not _is_bytes(kind.value_type)
    return not _is_bytes(kind) and (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or _is_text(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view()) or pa.types.is_fixed_size_binary(kind)
