"""Query results as Arrow tables, and values as JSON."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

LONGEST_TEXT = 2_000
"""Characters of a text that the page holds; longer captions are cut off."""


def table_of(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The complete result of a query."""
    relation = connection.sql(query)
    assert relation is not None
    return relation.to_arrow_table()


def json_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as JSON; maps become objects."""
    return [_json(value) for value in column.to_pylist(maps_as_pydicts="lossy")]


def _json(value: Any) -> Any:
    """A value as JSON; types that JSON lacks become text."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return value.isoformat() if isinstance(value, date | datetime) else str(value)[:LONGEST_TEXT]
