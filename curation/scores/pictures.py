"""Stored pictures of a clip, decoded when they are looked at."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import cv2
import numpy as np

from clipmill.errors import SourceError
from clipmill.jpeg import jpeg_size
from curation.video.resize import Image

_LARGEST_SIDE_PX = 8192


class Pictures(Sequence[Image]):
    """Upright (height, width, 3) uint8 BGR images from JPEGs. Each access decodes anew: keep what is needed twice.

    Decoded one after another, pictures stay in the cache of the CPU and reuse its memory: a batch decoded at once takes
    one and a half times as long. Raises SourceError for one that is damaged, or would be huge.
    """

    def __init__(self, jpegs: Sequence[bytes] = ()) -> None:
        self._jpegs = tuple(jpegs)

    def __len__(self) -> int:
        return len(self._jpegs)

    def __iter__(self) -> Iterator[Image]:
        return map(_decoded, self._jpegs)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: int | slice) -> "Image | Pictures":
        return Pictures(self._jpegs[index]) if isinstance(index, slice) else _decoded(self._jpegs[index])


def _decoded(jpeg: bytes) -> Image:
    size = jpeg_size(jpeg)
    image: Any = None
    if size is not None and 0 < min(size) <= max(size) <= _LARGEST_SIDE_PX:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise SourceError("decode_error", "the dataset's picture of the clip cannot be decoded")
    return image
