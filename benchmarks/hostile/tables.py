"""Mutations of tables: cells and columns of CSV and Parquet, and the Parquet footer."""

import csv
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hostile.mutate import Rng, edge, mutate_bytes, mutate_text, odd_name

_TYPES = (pa.string(), pa.int64(), pa.float32(), pa.binary(), pa.bool_(), pa.list_(pa.string()), pa.null())


def mutate_csv(rng: Rng, content: bytes) -> bytes:
    """Odd cells, ragged rows, odd headers, other quoting; or damaged text."""
    if rng.random() < 0.3:
        return mutate_text(rng, content)
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(rng.choice((1, 2, 5))):
        row = rng.choice(rows)
        action = rng.random()
        if action < 0.6 and row:
            row[rng.randrange(len(row))] = odd_name(rng)
        elif action < 0.75:
            row.append(odd_name(rng))
        elif action < 0.85 and row:
            row.pop()
        elif action < 0.95:
            rows.insert(rng.randrange(len(rows) + 1), list(row))
        else:
            rows = [list(rows[0])] + rows[1:] * rng.choice((0, 200))
        rows = rows or [["uri"]]
    written = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    csv.writer(written, quoting=quoting, delimiter=rng.choice(",,,;\t")).writerows(rows)
    return written.getvalue().encode("utf-8", "surrogatepass")


def mutate_parquet(rng: Rng, content: bytes) -> bytes:
    """Columns dropped, duplicated, renamed, retyped, emptied, or filled with odd values; or a damaged footer."""
    action = rng.random()
    if action < 0.25:
        footer = int.from_bytes(content[-8:-4], "little") + 8
        return content[:-footer] + mutate_bytes(rng, content[-footer:])
    try:
        changed = _changed(rng, pq.read_table(io.BytesIO(content)))
        written = io.BytesIO()
        pq.write_table(changed, written, compression=rng.choice(("zstd", "snappy", "gzip", "none")))
    except (pa.ArrowException, OSError, TypeError, ValueError, OverflowError):
        return mutate_bytes(rng, content)
    return written.getvalue()


def _changed(rng: Rng, table: pa.Table) -> pa.Table:  # noqa: PLR0911
    place, action = rng.randrange(table.num_columns), rng.random()
    name = table.column_names[place]
    names, count = list(table.column_names), table.num_columns
    if action < 0.1:
        return table.drop_columns([name])
    if action < 0.25:
        return table.append_column(_utf8(odd_name(rng)), table[name])
    if action < 0.35:
        return table.rename_columns([*names[:place], _utf8(odd_name(rng)), *names[place + 1 :]])
    if action < 0.5:
        return table.set_column(place, name, pa.nulls(table.num_rows, rng.choice(_TYPES)))
    if action < 0.65:
        return pa.concat_tables([table] * rng.choice((0, 2, 3)) or [table.slice(0, 0)])
    if action < 0.7:
        return table.select(rng.sample(names, count))
    values = table[name].to_pylist()
    for _ in range(rng.choice((1, 3, len(values))) if values else 0):
        values[rng.randrange(len(values))] = _odd(rng, table.schema.field(name).type)
    return table.set_column(
        place, name, pa.array(values, None if rng.random() < 0.2 else table.schema.field(name).type)
    )


def _odd(rng: Rng, kind: pa.DataType) -> Any:
    if rng.random() < 0.2:
        return None
    if pa.types.is_floating(kind):
        return rng.choice((float("nan"), float("inf"), -1.0, 1e38, 0.0))
    if pa.types.is_integer(kind):
        return rng.choice((0, -1, edge(rng) % (1 << 31), 2**63 - 1, -(2**63)))
    if pa.types.is_string(kind):
        return _utf8(odd_name(rng))
    if pa.types.is_binary(kind):
        return rng.randbytes(rng.choice((0, 1, 100)))
    return [] if pa.types.is_list(kind) else None


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
