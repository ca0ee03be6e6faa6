"""A table column that explains itself: meaning, unit and polarity travel in the schema."""

from typing import Literal

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
    """A field with its meaning, its unit and, for a score, which way is better, in the metadata.

    `bounds` are the least and the largest value that it can have, for the rules of a selection to be checked against.
    """
    metadata = {"meaning": meaning, "unit": unit, "better": better}
    if bounds:
        metadata["bounds"] = f"{bounds[0]:g} {bounds[1]:g}"
    return pa.field(name, kind, metadata=metadata)


def bounds_of(field: pa.Field) -> tuple[float, float] | None:
    """The least and the largest value that a column can have, where its schema says so."""
    text = (field.metadata or {}).get(b"bounds")
    if text is None:
        return None
    low, high = map(float, text.decode().split())
    return low, high
