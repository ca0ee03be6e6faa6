"""Thumbnail candidates, kept until the clips are known.

Candidates are a quarter of a second apart, so no second pass is needed. Those of completed clips are dropped except for
the three chosen, and the candidates of a long shot are kept within a limit.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable

import cv2
import numpy as np

from clipmill.spool import IN_MEMORY_BYTES, Spool
from curation.video.resize import Image

_JPEG_QUALITY = 92
_LEAST_SIDE_PX = 64
"""Minimum size of a thumbnail, regardless of the limit."""


class ThumbnailSpool:
    """JPEG thumbnails by pts, at most `max_bytes` of them. A context manager. Raises RunStopped like `Spool`."""

    def __init__(self, max_bytes: int, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._max_bytes, self._in_memory_bytes = max_bytes, in_memory_bytes
        self._spool = Spool(in_memory_bytes)
        self._pts: list[int] = []
        self._pieces: list[tuple[int, int]] = []
        self._times_s: list[float] = []
        self._farthest_s = 0.0
        self._shrunk = False
        self._crowded_bytes = min(in_memory_bytes, max_bytes)

    def __enter__(self) -> "ThumbnailSpool":
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.__exit__(*exc)

    @property
    def size_bytes(self) -> int:
        return self._spool.size_bytes

    @property
    def crowded(self) -> bool:
        """Whether it is time for `drop_decided`."""
        return self.size_bytes > self._crowded_bytes

    @property
    def note(self) -> str | None:
        """Note on the effect of the limit."""
        done = [f"spaced up to {self._farthest_s:.2g} s apart"] if self._farthest_s else []
        done += ["downscaled"] if self._shrunk else []
        return f"thumbnails were {' and '.join(done)} (limits.spool_bytes, limits.answer_bytes)" if done else None

    def due(self, next_s: float, spacing_s: float) -> bool:
        """Whether waiting for the next frame would leave a gap of more than `spacing_s`."""
        return not self._times_s or next_s - self._times_s[-1] > spacing_s + 1e-6

    def add(self, pts: int, time_s: float, image_HWC: Image) -> None:
        """Keep a thumbnail. Timestamps must increase."""
        jpeg = compressed(image_HWC)
        self._pieces.append((self._spool.put(jpeg), len(jpeg)))
        self._pts.append(pts)
        self._times_s.append(time_s)

    def first_middle_last(self, start_pts: int, end_pts: int) -> tuple[list[int], tuple[bytes, ...]]:
        """pts and JPEG bytes of the thumbnails nearest to the start, the middle and the end of a clip, within it."""
        chosen = self._chosen(start_pts, end_pts)
        return [self._pts[i] for i in chosen], tuple(self._spool.get(*self._pieces[i]) for i in chosen)

    def drop_decided(self, spans: Iterable[tuple[int, int]], decided_pts: int) -> None:
        """Free space: of the thumbnails before `decided_pts`, only keep those of these (start_pts, end_pts) clips.

        If that is not enough, the remaining ones are thinned out evenly, then downscaled.
        """
        undecided = bisect_left(self._pts, decided_pts)
        chosen = sorted({i for span in spans for i in self._chosen(*span) if i < undecided})
        later, room_bytes = list(range(undecided, len(self._pts))), self._max_bytes // 2 - self._bytes(chosen)
        while self._bytes(later) > room_bytes and len(later) > 1:
            apart_s = 2 * (self._times_s[later[-1]] - self._times_s[later[0]]) / (len(later) - 1)
            self._farthest_s = max(self._farthest_s, apart_s)
            later = self._at_least(apart_s, later) if apart_s > 0 else later[:1]
        self._keep(chosen + later)
        if self.size_bytes > self._max_bytes // 2:
            self._shrink()
        crowded_bytes = min(max(self._in_memory_bytes, 2 * self.size_bytes), self._max_bytes)
        self._crowded_bytes = max(crowded_bytes, self.size_bytes * 5 // 4)  # so that the next time is not at once

    def _chosen(self, start_pts: int, end_pts: int) -> list[int]:
        low, high = bisect_left(self._pts, start_pts), bisect_left(self._pts, end_pts)
        if low == high:
            return []
        twice_middle = start_pts + end_pts
        near = bisect_left(self._pts, (twice_middle + 1) // 2, low, high)
        around = range(max(low, near - 1), min(high, near + 1))
        return [low, min(around, key=lambda i: abs(2 * self._pts[i] - twice_middle)), high - 1]

    def _bytes(self, chosen: list[int]) -> int:
        return sum(self._pieces[i][1] for i in chosen)

    def _at_least(self, apart_s: float, thumbnails: list[int]) -> list[int]:
        """The first thumbnail, and then each that is at least this far from the last one kept."""
        spaced = thumbnails[:1]
        for i in thumbnails[1:]:
            if self._times_s[i] - self._times_s[spaced[-1]] >= apart_s - 1e-6:
                spaced.append(i)
        return spaced

    def _keep(self, chosen: list[int]) -> None:
        pieces = [self._pieces[i] for i in chosen]
        starts = self._spool.keep(pieces)
        self._pieces = [(start, size) for start, (_, size) in zip(starts, pieces, strict=True)]
        self._pts = [self._pts[i] for i in chosen]
        self._times_s = [self._times_s[i] for i in chosen]

    def _shrink(self) -> None:
        """Downscale the largest thumbnails until all take half of the limit."""
        share_bytes = self._max_bytes // 2 // len(self._pieces)
        self._shrunk = True
        smaller = Spool(self._in_memory_bytes)
        pieces = []
        for piece in self._pieces:
            jpeg = _within(self._spool.get(*piece), share_bytes)
            pieces.append((smaller.put(jpeg), len(jpeg)))
        self._spool.__exit__()
        self._spool, self._pieces = smaller, pieces


def cropped(jpeg: bytes, shares: tuple[float, float, float, float], long_side_px: int) -> bytes:
    """A thumbnail without these shares of its width (left, right) and height (top, bottom), at most so long.

    Where they are negative, it is extended in black.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "an image that was compressed here"
    height, width = image.shape[:2]
    left, top, right, bottom = (
        math.ceil(share * side - 1e-6) for share, side in zip(shares, (width, height) * 2, strict=True)
    )
    if height - top - bottom > 0 and width - left - right > 0:
        image = image[max(0, top) : height - max(0, bottom), max(0, left) : width - max(0, right)]
        image = cv2.copyMakeBorder(
            image, max(0, -top), max(0, -bottom), max(0, -left), max(0, -right), cv2.BORDER_CONSTANT
        )
    shrink = min(1.0, long_side_px / max(image.shape))
    if shrink < 1:
        size = tuple(max(1, round(side * shrink)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return compressed(image)


def compressed(image_HWC: Image) -> bytes:
    """A thumbnail as JPEG."""
    _, jpeg = cv2.imencode(".jpg", image_HWC, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return jpeg.tobytes()


def _within(jpeg: bytes, max_bytes: int) -> bytes:
    """The image halved repeatedly until it has at most this many bytes."""
    while len(jpeg) > max_bytes:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None, "an image that was compressed here"
        if max(image.shape) <= _LEAST_SIDE_PX:
            break
        height, width = (max(1, side // 2) for side in image.shape[:2])
        jpeg = compressed(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return jpeg
