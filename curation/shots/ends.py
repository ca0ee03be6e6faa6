"""Where a gradual change begins and ends.

Within a shot, each block of a frame reappears a few frames later, moved by a pixel or two. From the first frame that
shows part of the next shot to the last that shows part of the old one, some blocks do not. The residual of the best
match varies between shots and within the frame, so each block is compared with its usual residual: before the change
for its beginning, after it for its end. Sizes: N frames or pairs of frames, B blocks.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.shots.gradual import Luma, Sample

_REACH_S = 1.6
"""Time on both sides of a change that shows how well blocks are usually found again."""
_LAG_S, _LAG_PART = 0.16, 8
"""Time between two compared frames; an eighth of a long change, whose frames differ less."""
_BLOCK_PX = 5
_MOVE_PX = 2
"""Motion within that time that is followed."""
_FEW, _FEWEST = 0.03, 4
"""Share of the blocks that stand out for a pair of frames to count, as a wipe begins in a corner; and their number."""
_NOISE = 1.5
"""Residuals that differ by less, in 8-bit levels, do not."""
_OUTER, _USUAL = 0.5, 0.8
"""What is usual: this quantile of this share of the pairs on one side, the farthest from the change."""
_TIMES, _PLUS = 1.5, 1.5
"""A pair stands out if it exceeds what is usual so many times and by so much,"""
_RISE = 0.25
"""and this share of the median within the change: motion in the shot may grow slowly towards it."""
_PAUSE, _PAUSE_PART = 2, 6
"""Pairs in a row that may not stand out within a change; a sixth of a long one."""
_MUCH_SHORTER, _EXTENDED_PART = 0.35, 4
"""Share of a dissolve below which the ends found are not believed, and part of a wipe by which it may be extended."""
_MARGIN, _MARGIN_PART = 3, 6
"""Frames left out at either end, as the first and last mixed frames hardly differ from clean ones; plus a sixth."""


def gradual_bounds(samples: Sequence[Sample], old: int, new: int, *, certain: str = "") -> tuple[int, int]:
    """The first of the samples to leave out for a gradual change, and the first of the next shot.

    `old` and `new` are roughly the last old and the first new sample. The bounds of a `certain` "wipe", which include
    its margin, are only extended, and not by much; those of a certain "dissolve" are kept if this finds a much shorter
    change, as in a fast pan.
    """
    times = np.array([sample.time_s for sample in samples])
    first, last = np.searchsorted(times, (times[old] - _REACH_S, times[new] + _REACH_S), side="right")
    around = [sample.luma for sample in samples[first:last]]
    start, end = (int(first) + place for place in find_ends(around, times[first:last], old - first, new - first))
    if certain == "wipe":
        most = _MARGIN + (new - old) // _EXTENDED_PART
        return max(min(start, old + 1), old + 1 - most), min(max(end, new), new + most)
    if certain == "dissolve" and end - start < _MUCH_SHORTER * (new - old):
        start, end = old + 1, new
    margin = _MARGIN + (end - start) // _MARGIN_PART
    # The first sample may be that of a hard cut.
    return max(start - margin, 1), min(end + margin, len(samples) - 1)


def find_ends(lumas: Sequence[Luma], times_N: NDArray[np.float64], old: int, new: int) -> tuple[int, int]:
    """The first mixed frame of a gradual change and the first clean one after it.

    `lumas` are consecutive frames of both shots; `old` and `new` are roughly the last old and the first new one, and
    are kept where the ends cannot be told. A few mixed frames that hardly differ from clean ones are missed.
    """
    lag = max(2, round(_LAG_S / float(np.median(np.diff(times_N)))), (new - old) // _LAG_PART)
    if len(lumas) < lag + _FEWEST:
        return old + 1, new
    residuals_NB = np.stack([residuals(a, b) for a, b in zip(lumas, lumas[lag:], strict=False)])
    pairs, middle = np.arange(len(residuals_NB)), (old + new) // 2
    pause = max(_PAUSE, (new - old) // _PAUSE_PART)
    first = _edge(residuals_NB, pairs[: middle - lag + 1], pairs[middle - lag + 1 :][: new - middle], lag, pause)
    last = _edge(residuals_NB, pairs[middle:][::-1], pairs[:middle][::-1][: middle - old], lag, pause)
    return (old + 1 if first is None else first + lag), (new if last is None else last + 1)


def _edge(
    residuals_NB: NDArray[np.float32], outside: NDArray[np.int64], inside: NDArray[np.int64], lag: int, pause: int
) -> int | None:
    """The outermost pair that stands out, connected with the one that stands out most; None if none does.

    Pairs outside and inside the change are ordered from the outside in.
    """
    usual = outside[: max(_FEWEST, int(_OUTER * len(outside)))]
    if len(usual) < _FEWEST:
        return None
    median_B = np.median(residuals_NB[usual], axis=0)
    spread_B = np.median(np.abs(residuals_NB[usual] - median_B), axis=0) + _NOISE
    blocks = residuals_NB.shape[1]
    few = min(blocks, max(_FEWEST, int(_FEW * blocks)))
    order = np.concatenate([outside, inside])
    above_NB = (residuals_NB[order] - median_B) / spread_B
    above_N = opened(np.partition(above_NB, -few, axis=1)[:, -few:].mean(1), lag + 2)
    least = _TIMES * np.quantile(above_N[: len(usual)], _USUAL) + _PLUS
    if len(inside):
        least = max(least, _RISE * np.median(above_N[len(outside) :]))
    edge = place = len(usual) + int(above_N[len(usual) :].argmax()) if len(order) > len(usual) else 0
    if above_N[place] <= least:
        return None
    while place > 0 and edge - place <= pause:
        place -= 1
        if above_N[place] > least:
            edge = place
    return int(order[edge])


def opened(values_N: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Without peaks narrower than `width`: a caption that appears stands out from as many pairs as the lag."""
    kernel = np.ones((1, width), np.uint8)
    return cv2.morphologyEx(values_N[None].astype(np.float32), cv2.MORPH_OPEN, kernel)[0]


def residuals(a_HW: Luma, b_HW: Luma, *, block_px: int = _BLOCK_PX, move_px: int = _MOVE_PX) -> NDArray[np.float32]:
    """(B,) mean difference of each block of `a` from the best place near by in `b`, in 8-bit levels."""
    height, width = a_HW.shape
    rows, columns = (max(1, n // block_px) for n in (height, width))
    inside = a_HW[: rows * block_px, : columns * block_px]
    height, width = inside.shape
    padded = cv2.copyMakeBorder(b_HW, move_px, move_px, move_px, move_px, cv2.BORDER_REPLICATE)
    moves = [(down, right) for down in range(2 * move_px + 1) for right in range(2 * move_px + 1)]
    differences = np.empty((len(moves), height, width), np.uint8)
    for (down, right), difference in zip(moves, differences, strict=True):
        cv2.absdiff(inside, padded[down : down + height, right : right + width], dst=difference)
    # One below the other, so that the means of all blocks take a single call.
    means = cv2.resize(differences.reshape(-1, width), (columns, len(moves) * rows), interpolation=cv2.INTER_AREA)
    return means.reshape(len(moves), -1).min(axis=0).astype(np.float32)
