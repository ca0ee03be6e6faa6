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
JITTER_PX = 4
"""By which the bars of a clip vary between frames."""
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
        self._steady_size, self._steady_level = (1, 1), 0

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
        if _is_wider(self.steady.sides, seen) or _is_wider(common.sides, self.steady.sides):
            self.steady, self._steady_size = common, (width, height)
            self._steady_level = max((sample.level for sample in recent if sample), default=0)

    def steady_at(self, frame: int) -> Margins:
        """`steady` if this frame shows such bars, too, and they are black: nothing is lost where they are cut off."""
        sides = self.steady.sides
        if self._steady_level > _BLACK or any(self._contradicts(frame, frame + 1, sides, self._steady_size)):
            return NO_MARGINS
        return self.steady

    def between(self, first: int, last: int) -> Margins:
        """The bars of the frames first <= i < last, for cropping: even numbers of pixels of the decoded frame."""
        low, high = bisect_left(self._sample_frames, first), bisect_left(self._sample_frames, last)
        samples = self._samples[low:high]
        sides = _sides(samples)
        if not any(sides):
            return NO_MARGINS
        width, height = next(sample.size for sample in samples if sample is not None)
        for axis, contradicted in enumerate(self._contradicts(first, last, sides, (width, height))):
            if contradicted:
                sides[axis] = sides[axis + 2] = 0
        return _for_cropping(sides, width, height)

    def _contradicts(self, first: int, last: int, sides: Sequence[int], size: tuple[int, int]) -> list[bool]:
        """Whether the small images of some of these frames show narrower bars than these, of each axis."""
        coarse = [min(self._coarse[4 * first + side : 4 * last : 4]) / 1000 for side in range(4)]
        # Of a margin narrower than two columns of the small image, it says nothing.
        return [
            any(coarse[side] * length < sides[side] - 2 * length / _SMALL_COLUMNS for side in (axis, axis + 2))
            for axis, length in enumerate(size)
        ]


def _sides(looks: Sequence[_Sample | None]) -> list[int]:
    """Left, top, right and bottom bars that all of these frames have, and whose edges some of them show."""
    samples = [sample for sample in looks if sample is not None]
    sides = [0, 0, 0, 0]
    if not samples or len(samples) < len(looks) or any(sample.size != samples[0].size for sample in samples):
        return sides
    levels = [sample.level for sample in samples]
    if max(levels) - min(levels) > _ALIKE:
        return sides
    margins = [min(side) for side in zip(*(sample.margins_px for sample in samples), strict=True)]
    edges = [max(side) for side in zip(*(sample.edge_shares for sample in samples), strict=True)]
    least = _BRIGHT_EDGE_SHARE if max(levels) > _BLACK else _EDGE_SHARE
    for pair in ((0, 2), (1, 3)):
        if all(margins[side] and edges[side] >= least for side in pair):
            for side in pair:
                sides[side] = margins[side]
    return sides


def _is_wider(sides: Sequence[int], others: Sequence[int]) -> bool:
    """Whether a margin exceeds the other one by more than jitter."""
    return any(px - other > JITTER_PX for px, other in zip(sides, others, strict=True))


def _uniform_sides(small_HW: Image, level: int) -> tuple[int, int, int, int]:
    """Uniform columns and rows of the small image from each side inwards, in thousandths of its width and height."""
    left, top, across, down = cv2.boundingRect(_others_than(small_HW, level))
    if not across:
        return 1000, 1000, 1000, 1000
    height, width = small_HW.shape
    right, bottom = width - left - across, height - top - down
    return 1000 * left // width, 1000 * top // height, 1000 * right // width, 1000 * bottom // height


def _others_than(small_HW: Image, level: int) -> Image:
    """Mask of the pixels that cannot be of bars of this level."""
    if level <= _SMALL_DEVIATION:  # nearly always, and several times faster
        return cv2.threshold(small_HW, level + _SMALL_DEVIATION, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_not(cv2.inRange(small_HW, level - _SMALL_DEVIATION, level + _SMALL_DEVIATION))


def _run(uniform: NDArray[np.bool_]) -> int:
    """How many are uniform before the first that is not."""
    return len(uniform) if uniform.all() else int(np.argmin(uniform))


def _looked(luma_HW: Image, bits: int, coarse: Sequence[int], level: int) -> _Sample | None:
    """Where exactly the bars end that the small image shows; None if it has none."""
    height, width = luma_HW.shape
    # Each side seen from outside: its lines are the rows of a view.
    views = luma_HW.T, luma_HW, luma_HW.T[::-1], luma_HW[::-1]
    margins = [0, 0, 0, 0]
    for axis, length in enumerate((width, height)):
        first = _end_of_bar(views[axis], bits, coarse[axis], level)
        other = _end_of_bar(views[axis + 2], bits, coarse[axis + 2], level) if first else 0
        alike = max(first, other) <= _OPPOSITE * min(first, other)
        if alike and _LEAST_SHARE <= (first + other) / length <= _MOST_SHARE:
            margins[axis], margins[axis + 2] = first, other
    if not any(margins):
        return None
    left, top, right, bottom = margins
    inside_HW = luma_HW[top : height - bottom, left : width - right]
    offset = min(_EDGE_OFFSET_PX, min(inside_HW.shape) - 1)
    lines = inside_HW[:, offset], inside_HW[offset], inside_HW[:, -1 - offset], inside_HW[-1 - offset]
    return _Sample(
        margins_px=tuple(margins),
        edge_shares=tuple(
            _edge_share(line, bits, level) if margin else 0.0 for line, margin in zip(lines, margins, strict=True)
        ),
        level=level,
        size=(width, height),
    )


def _edge_share(line: Image, bits: int, level: int) -> float:
    """Share of the line along a bar that stands out from it."""
    return np.count_nonzero(_deviation(line[None], bits, level) > _EDGE_CONTRAST) / len(line)


def _end_of_bar(view_LN: Image, bits: int, coarse: int, level: int) -> int:
    """Lines from the first on that are of the bar: looked for around where the small image has its end."""
    lines = len(view_LN)
    reach = 3 * lines // _SMALL_COLUMNS + 2
    end = coarse * lines // 1000
    start = max(0, end - reach)
    near_LN = view_LN[start : end + reach, :: _EVERY if view_LN.shape[1] > 256 else 1]
    across = int(abs(near_LN.strides[0]) > abs(near_LN.strides[1]))  # columns are read in the order of memory, too
    deviation = _deviation(near_LN if across else near_LN.T, bits, level)
    sums_L = cv2.reduce(deviation, across, cv2.REDUCE_SUM, dtype=cv2.CV_32S).reshape(-1)
    most = _MEAN_DEVIATION * near_LN.shape[1]
    run = _run((sums_L <= most) & (deviation.max(axis=across) <= _MOST_DEVIATION))
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
