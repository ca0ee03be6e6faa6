"""What every shape of a network has in common: its values come from files of strangers, and are bounded."""

from typing import Annotated

from pydantic import Field

from clipmill.config import StrictConfig

MAX_SIZE = 1 << 16

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
"""A width, or another whole number of a network."""
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=16, strict=False)]
"""A size per level; JSON has lists for tuples."""
Scale = Annotated[float, Field(gt=0, le=1e6)]


class Shape(StrictConfig):
    """A base of configurations that say how large a network is. Every value has to be of its type and within its
    bounds before anything is built: a billion layers cost time and memory on the meta device, too.
    """
