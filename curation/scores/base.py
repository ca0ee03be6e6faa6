"""What a scorer is: a small class that looks at a clip's three pictures and answers with columns.

A scorer knows neither Ray nor thresholds. Every clip gets every score once; filtering is `curation.select`'s job.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from curation.pictures import Image


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """What a scorer sees of one clip: upright (height, width, 3) uint8 BGR pictures and its captions.

    `pictures` holds the first, middle and last frame, at most 640 px on the longer side.
    """

    pictures: tuple[Image, ...]
    captions: tuple[str, ...] = field(default=())


class Scorer(Protocol):
    """The protocol of a score: add one file, one line of the registry in `curation.scores`, and a test."""

    name: str
    """What the command line and the error columns call it."""
    columns: tuple[pa.Field, ...]
    """The columns it fills, with meaning, unit and polarity in their metadata (see `curation.columns.column`)."""

    def load(self, device: str) -> None:
        """Load models onto `device` ("cpu", "cuda"), once per process, before the first `score`."""

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """One mapping of column name to value per clip, in order.

        A clip that cannot be scored gets null columns and a reason in `{name}_error`; it never ends the batch.
        """
