"""A table column that explains itself: meaning, unit and polarity travel in the schema."""

from typing import Literal

import pyarrow as pa


def column(
    name: str, kind: pa.DataType, meaning: str, *, unit: str = "", better: Literal["higher", "lower", ""] = ""
) -> pa.Field:
    """A field with its meaning, its unit and, for a score, which way is better, in the metadata."""
    return pa.field(name, kind, metadata={"meaning": meaning, "unit": unit, "better": better})
