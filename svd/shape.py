"""Base types of network configurations. Values may come from untrusted files, so they are bounded."""

from typing import Annotated

from pydantic import Field

from clipmill.config import StrictConfig

MAX_SIZE = 1 << 16

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
"""A width or another integer dimension of a network."""
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=16, strict=False)]
"""A size per level; lists from JSON are converted to tuples."""
Scale = Annotated[float, Field(gt=0, le=1e6)]


class Shape(StrictConfig):
    """Base class of network configurations. Types and bounds are validated before anything is built: even on the meta
    device, a billion layers would take time and memory.
    """
