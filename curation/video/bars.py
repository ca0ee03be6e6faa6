"""Bars around the picture: uniform margins that stay the same through a clip, as letterboxing and pillarboxing leave.

A margin counts only if it comes with one on the opposite side, is uniform in every frame, and ends in an edge that runs
along most of the picture: a dark scene, a night sky or text in the bars must not be cropped.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.cropping import NO_MARGINS, Margins
from curation.video.resize import Image

_ALIKE = 6
"""Levels by which the corners of a frame with bars may differ."""
_MEAN_DEVIATION, _MOST_DEVIATION = 3.0, 40
"""Levels of a row or column of a bar from the level of the bar: on average, as noise and ringing, and of any pixel."""
_SMALL_DEVIATION = 24
"""The same of any pixel of the small image, which averages."""
_BLACK = 34
"""Levels up to which bars count as black; of others more evidence is asked."""
_EDGE_CONTRAST = 20
_EDGE_SHARE, _BRIGHT_EDGE_SHARE = 0.5, 0.9
"""Share of the line along a bar that has to stand out from it in some frame."""
_EDGE_OFFSET_PX = 3
"""From the end of the bar to that line: beyond the blur between both."""
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.75
"""Of the frame's width or height that both bars take together."""
_OPPOSITE = 3
"""Times that a bar may be as wide as the opposite one."""
_BLUR_PX = 1
"""Cut off beyond the bar: where it meets the picture, both are mixed."""
_JITTER_PX = 4
_NOTHING = (0, 0, 0, 0)
_EVERY = 4
"""Pixel of a long line that is looked at."""
_SMALL_COLUMNS = 80
"""Long side of the small image, of which the shorter one has at least half as many."""
_STEADY = 3
"""Frames looked at that have to agree before motion is measured between the bars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """A frame looked at closely. Sides are left, top, right, bottom."""

    margins_px: tuple[int, ...]
    edge_shares: tuple[float, ...]
    """Share of the line along each bar that stands out from it."""
    level: int
    size: tuple[int, int]
    """Width and height of the frame."""


class BarMeter:
    """Takes frames in display order and answers, afterwards, which margins of a range of frames are bars."""

    def __init__(self) -> None:
        self._coarse = array("H")
        """Of each frame the uniform columns and rows of the small image, in thousandths of its width and height."""
        self._last: tuple[int, ...] = _NOTHING
        self._level = 0
        self._samples: list[_Sample | None] = []
        self._sample_frames: list[int] = []
        self.steady = NO_MARGINS
        """Margins that the frames of late had in common, to measure motion between them."""

    def push(self, small_HW: Image) -> bool:
        """Take the small luma image of the next frame; returns whether `look` should see the frame closely."""
        width = small_HW.shape[1]
        corners = (small_HW.item(0), small_HW.item(width - 1), small_HW.item(-width), small_HW.item(-1))
        self._last = _NOTHING
        if max(corners) - min(corners) <= _ALIKE:
            self._level = sum(corners) // 4
            self._last = _uniform_sides(small_HW, self._level)
        self._coarse.extend(self._last)
        return any(self._last)

    def look(self, luma_HW: Image | None, bits: int = 8) -> None:
        """Look closely at the frame pushed last, at its luma in full size; None if `push` saw no bars."""
        if self._last[0] == 1000:
            return  # a blank frame fits any bars
        sample = _looked(luma_HW, bits, self._last, self._level) if luma_HW is not None else None
        self._samples.append(sample)
        self._sample_frames.append(len(self._coarse) // 4 - 1)
        recent = self._samples[-_STEADY:]
        width, height = luma_HW.shape[::-1] if luma_HW is not None else (0, 0)
        common = _for_cropping(_sides(recent), width, height)
        seen = sample.margins_px if sample else _NOTHING
        gone = np.subtract(self.steady.sides, seen).max() > _JITTER_PX
        if gone or np.subtract(common.sides, self.steady.sides).max() > _JITTER_PX:
            self.steady = common

    def between(self, first: int, last: int) -> Margins:
        """The bars of the frames first <= i < last, for cropping: even numbers of pixels of the decoded frame."""
        low, high = bisect_left(self._sample_frames, first), bisect_left(self._sample_frames, last)
        samples = self._samples[low:high]
        sides = _sides(samples)
        if not any(sides):
            return NO_MARGINS
        coarse = np.array(self._coarse[4 * first : 4 * last]).reshape(-1, 4).min(axis=0) / 1000
        width, height = next(sample.size for sample in samples if sample is not None)
        for axis, length in enumerate((width, height)):
            pair = [axis, axis + 2]
            # Of a margin narrower than two columns of the small image, it says nothing.
            if (coarse[pair] * length < np.array(sides)[pair] - 2 * length / _SMALL_COLUMNS).any():
                sides[axis] = sides[axis + 2] = 0
        return _for_cropping(sides, width, height)


def _sides(looks: Sequence[_Sample | None]) -> list[int]:
    """Left, top, right and bottom bars that all of these frames have, and whose edges some of them show."""
    samples = [sample for sample in looks if sample is not None]
    sides = [0, 0, 0, 0]
    if not samples or len(samples) < len(looks) or any(sample.size != samples[0].size for sample in samples):
        return sides
    levels = [sample.level for sample in samples]
    if max(levels) - min(levels) > _ALIKE:
        return sides
    margins = np.min([sample.margins_px for sample in samples], axis=0)
    edges = np.max([sample.edge_shares for sample in samples], axis=0)
    least = _BRIGHT_EDGE_SHARE if max(levels) > _BLACK else _EDGE_SHARE
    for axis in (0, 1):
        pair = [axis, axis + 2]
        if margins[pair].all() and (edges[pair] >= least).all():
            sides[axis], sides[axis + 2] = (int(px) for px in margins[pair])
    return sides


def _uniform_sides(small_HW: Image, level: int) -> tuple[int, int, int, int]:
    """Uniform columns and rows of the small image from each side inwards, in thousandths of its width and height."""
    uniform_HW = cv2.inRange(small_HW, level - _SMALL_DEVIATION, level + _SMALL_DEVIATION)
    left, top, across, down = cv2.boundingRect(cv2.bitwise_not(uniform_HW))
    if not across:
        return 1000, 1000, 1000, 1000
    height, width = small_HW.shape
    right, bottom = width - left - across, height - top - down
    return 1000 * left // width, 1000 * top // height, 1000 * right // width, 1000 * bottom // height


def _run(uniform: NDArray[np.bool_]) -> int:
    """How many are uniform before the first that is not."""
    return len(uniform) if uniform.all() else int(np.argmin(uniform))


def _looked(luma_HW: Image, bits: int, coarse: Sequence[int], level: int) -> _Sample | None:
    """Where exactly the bars end that the small image shows; None if it has none."""
    height, width = luma_HW.shape
    # Each side seen from outside: its lines are the rows of a view.
    views = luma_HW.T, luma_HW, luma_HW.T[::-1], luma_HW[::-1]
    margins = [_end_of_bar(view, bits, share, level) for view, share in zip(views, coarse, strict=True)]
    for axis, length in enumerate((width, height)):
        pair = margins[axis], margins[axis + 2]
        if min(pair) * _OPPOSITE < max(pair) or not _LEAST_SHARE <= sum(pair) / length <= _MOST_SHARE:
            margins[axis] = margins[axis + 2] = 0
    if not any(margins):
        return None
    left, top, right, bottom = margins
    inside_HW = luma_HW[top : height - bottom, left : width - right]
    offset = min(_EDGE_OFFSET_PX, min(inside_HW.shape) - 1)
    lines = inside_HW[:, offset], inside_HW[offset], inside_HW[:, -1 - offset], inside_HW[-1 - offset]
    return _Sample(
        margins_px=tuple(margins),
        edge_shares=tuple(float((_deviation(line, bits, level) > _EDGE_CONTRAST).mean()) for line in lines),
        level=level,
        size=(width, height),
    )


def _end_of_bar(view_LN: Image, bits: int, coarse: int, level: int) -> int:
    """Lines from the first on that are of the bar: looked for around where the small image has its end."""
    lines = len(view_LN)
    reach = 3 * lines // _SMALL_COLUMNS + 2
    end = coarse * lines // 1000
    start = max(0, end - reach)
    deviation_LN = _deviation(view_LN[start : end + reach, :: _EVERY if view_LN.shape[1] > 256 else 1], bits, level)
    uniform = (deviation_LN.mean(axis=1) <= _MEAN_DEVIATION) & (deviation_LN.max(axis=1) <= _MOST_DEVIATION)
    run = _run(uniform)
    return start + run if run or not start else 0


def _deviation(luma: Image, bits: int, level: int) -> Image:
    """From the level of the bars, both in 8 bits."""
    return cv2.absdiff(np.ascontiguousarray(luma >> (bits - 8) if bits > 8 else luma, np.uint8), np.array(float(level)))


def _for_cropping(sides: Sequence[int], width: int, height: int) -> Margins:
    left, top, right, bottom = ((side + _BLUR_PX + 1) // 2 * 2 if side else 0 for side in sides)
    if left or right:
        right += (width - left - right) % 2
    if top or bottom:
        bottom += (height - top - bottom) % 2
    if width - left - right < 2 or height - top - bottom < 2:
        return NO_MARGINS
    return Margins(left=left, top=top, right=right, bottom=bottom)
