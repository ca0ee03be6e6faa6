"""Self-describing table columns: meaning, unit and polarity are stored in the schema."""

from typing import Any, Literal

import pyarrow as pa


def column(
    name: str,
    kind: pa.DataType,
    meaning: str,
    *,
    unit: str = "",
    better: Literal["higher", "lower", ""] = "",
    bounds: tuple[float, float] | None = None,
) -> pa.Field:
    """A field with its meaning, its unit and, for a score, its polarity, in the metadata.

    `bounds` are the smallest and largest possible values; selection rules are checked against them.
    """
    metadata = {"meaning": meaning, "unit": unit, "better": better}
    if bounds:
        metadata["bounds"] = f"{bounds[0]:g} {bounds[1]:g}"
    return pa.field(name, kind, metadata=metadata)


def with_values(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The table with other values in a column, whose type and metadata stay."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


def bounds_of(field: pa.Field) -> tuple[float, float] | None:
    """The smallest and largest possible values of a column, if its schema states them."""
    text = (field.metadata or {}).get(b"bounds")
    if text is None:
        return None
    low, high = map(float, text.decode().split())
    return low, high
