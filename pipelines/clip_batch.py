"""Some clips on their way through captioners, the CLIP embedder and scorers: their rows, pictures and frames."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from clipmill.pipeline import Need
from curation.dataset.schemas import CLIPS
from curation.inputs.captions import Caption
from curation.scores.base import ClipView, Embeddings
from curation.video.resize import Image

Jpegs = tuple[bytes, ...]
"""First, middle and last picture of a clip; none if there are none."""


class ClipBatch:
    """Clips of one or several sources. Stages read `views()` and fill `rows`."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        thumbnails: Sequence[Jpegs] = (),
        previews: Sequence[Jpegs] = (),
        part: str = "",
    ) -> None:
        self.rows = rows
        """Rows of the clips table; columns of other scores stand beside those."""
        self.thumbnails: list[Jpegs] = list(thumbnails) or [()] * len(rows)
        self.previews: list[Jpegs] = list(previews) or [()] * len(rows)
        self.embeddings: list[Embeddings | None] = [None] * len(rows)
        self.part = part
        """Of the dataset, if all are of one."""

    def views(self, needs: Sequence[Need] = ("thumbnails", "captions", "embeddings")) -> list[ClipView]:
        """Per clip, what is needed of it: by default what captioners and the embedder need."""
        named = [need for need in needs if need in CLIPS.names and need != "captions"]
        nothing: list[tuple[Image, ...]] = [()] * len(self.rows)
        thumbnails = self._thumbnails if {"thumbnails", "embeddings"} & set(needs) else nothing
        previews = self._previews if "previews" in needs else nothing
        return [
            ClipView(
                thumbnails=thumbnails[i],
                previews=previews[i],
                captions=_captions(row) if "captions" in needs else (),
                embeddings=self.embeddings[i],
                columns={str(name): row.get(str(name)) for name in named},
            )
            for i, row in enumerate(self.rows)
        ]

    @cached_property
    def _thumbnails(self) -> list[tuple[Image, ...]]:
        return [tuple(map(decode_jpeg, jpegs)) for jpegs in self.thumbnails]

    @cached_property
    def _previews(self) -> list[tuple[Image, ...]]:
        return [tuple(map(decode_jpeg, jpegs)) for jpegs in self.previews]


def decode_jpeg(jpeg: bytes, flags: int = cv2.IMREAD_COLOR) -> Any:
    """(height, width, 3) uint8 BGR; with IMREAD_REDUCED_COLOR_2 at half the size."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
    assert image is not None, "a thumbnail that the scan itself compressed"
    return image


def _captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    return tuple(Caption(**caption) for caption in row["captions"])
