"""Wipes between shots that may move: an edge sweeps across the whole frame at constant speed.

Each column (or row, if the edge moves vertically) changes once, one after another. A pan changes all columns all the
time. A large object, or an edge dragged along by a pan, carries its own content, whereas a wipe uncovers content that
stays in place. Sizes: N frames, H rows, W columns; P pixels of a thumb; S strips of columns or rows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.shots.gradual import THUMB_SIZE, Luma

_STRIPS = 16
_LONGER = 1.15
"""Ratio of successive wipe lengths that are tried."""
_SHORT, _SHIFTS = 8, (0.25, 0.75)
"""A sweep of fewer samples is tried at sub-sample offsets as well."""
_NOISE = 3.0
"""Added to the usual change of a strip, in 8-bit levels, so that noise does not stand out."""
_MOST = 4.0
"""Upper bound on the ratio of a strip's change to its usual change."""
_STANDS_OUT = 1.5
_FEW, _FEW_STAND_OUT = 2, 0.8
"""Minimum ratio of the change under the edge to the usual one: mean over strips, and of all strips but two."""

_REACH = 0.15
"""Search range of both ends around those found on thumbs, as a share of the length."""
_PEAKS = 0.85
"""Minimum share of columns whose largest change is under the edge: nearly all in a wipe, about half otherwise."""
_PLACES, _STEP = (0.3, 0.4, 0.5, 0.6), 0.1
"""Positions of the edge, as a share of its path, at which the content beside it is compared, and the step between."""
_LEAST_PX = 4
_CARRIED = 1.0
"""Threshold on the ratio of residuals: content beside the edge that stays in place to content that moves with it."""


class Sweep(NamedTuple):
    """A candidate edge of a wipe: the times at which it enters and leaves the frame."""

    score: float
    start_s: float
    end_s: float
    turned: bool
    """Whether it moves vertically."""
    back: bool
    """Whether it moves left or up."""

    def resembles(self, other: "Sweep") -> bool:
        """Whether the two overlap for most of their duration."""
        both = min(self.end_s, other.end_s) - max(self.start_s, other.start_s)
        return both > 0.6 * (max(self.end_s, other.end_s) - min(self.start_s, other.start_s))


def find_sweeps(
    thumbs_NP: NDArray[np.float32], times_N: NDArray[np.float64], *, min_s: float, max_s: float, min_change: float
) -> list[Sweep]:
    """Candidate edges that cross evenly spaced frames at constant speed, best first. `wipe_bounds` verifies them."""
    width, height = THUMB_SIZE
    thumbs_NHW = thumbs_NP.reshape(-1, height, width)
    interval_s = float(np.median(np.diff(times_N)))
    lengths = min_s / interval_s * _LONGER ** np.arange(np.log(max_s / min_s) / np.log(_LONGER) + 1)
    tried = [(length, shift) for length in lengths for shift in (_SHIFTS if length < _SHORT else (0.5,))]
    strip = np.arange(_STRIPS)
    sweeps: list[Sweep] = []
    lag = 0
    for length, shift in tried:
        if lag != max(1, round(length / _STRIPS)):
            lag = max(1, round(length / _STRIPS))
            change_NHW = np.abs(thumbs_NHW[lag:] - thumbs_NHW[:-lag])
            strips_NS4 = _standing_out(change_NHW)
        delays = (length * (strip + 0.5) / _STRIPS + shift).astype(int)
        starts = np.arange(max(0, len(change_NHW) - delays[-1]))
        edges_NS4 = strips_NS4[starts[:, None] + delays, strip]
        scores = edges_NS4.mean(1)
        at, ways = np.nonzero(scores >= _STANDS_OUT)
        if not len(at):
            continue
        later = np.minimum(at + round(length), len(thumbs_NP) - 1)
        changed = np.abs(thumbs_NP[later] - thumbs_NP[at]).mean(1) >= min_change
        clear = np.partition(edges_NS4[at, :, ways], _FEW, axis=1)[:, _FEW] >= _FEW_STAND_OUT
        for k, way in zip(at[changed & clear], ways[changed & clear], strict=True):
            start_s = float(times_N[k]) + lag / 2 * interval_s
            end_s = start_s + float(length) * interval_s
            sweeps.append(Sweep(float(scores[k, way]), start_s, end_s, turned=way % 2 == 1, back=way >= 2))
    return sorted(sweeps, reverse=True)


def _standing_out(change_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, S, 4) float32: ratio of each strip's change to its usual change; columns, rows, and both in reverse order."""
    both = []
    for axis in (1, 2):
        change_NW = change_NHW.mean(axis)
        marks = np.linspace(0, change_NW.shape[1], _STRIPS + 1).round().astype(int)
        strips = np.add.reduceat(change_NW, marks[:-1], axis=1) / np.diff(marks).astype(np.float32)
        usual = np.partition(strips, len(strips) // 2, axis=0)[len(strips) // 2]
        both.append(np.minimum(strips / (usual + np.float32(_NOISE)), np.float32(_MOST)))
    return np.stack([*both, *(strips[:, ::-1] for strips in both)], axis=2)


def wipe_bounds(lumas: Sequence[Luma], times_N: NDArray[np.float64], sweep: Sweep) -> tuple[int, int] | None:
    """The last old and the first new frame of a wipe; None if the sweep is not one.

    `lumas` are all frames of the sweep and about half a second on both sides.
    """
    luma_NHW = np.stack(lumas)
    if sweep.turned:
        luma_NHW = luma_NHW.transpose(0, 2, 1)
    if sweep.back:
        luma_NHW = luma_NHW[:, :, ::-1]
    first, last = np.interp((sweep.start_s, sweep.end_s), times_N, np.arange(len(times_N)))
    lag = max(1, round((last - first) / _STRIPS))
    if len(lumas) < lag + 3:
        return None
    later, earlier = luma_NHW[lag:], luma_NHW[:-lag]
    change_NW = (np.maximum(later, earlier) - np.minimum(later, earlier)).mean(1, dtype=np.float32)
    columns = np.arange(change_NW.shape[1])
    tried = np.linspace(-1, 1, 13) * max(1.0, _REACH * (last - first))
    starts, ends = (place.ravel() for place in np.meshgrid(first + tried, last + tried))
    way = (columns + 0.5) / len(columns)
    edges = np.round(starts[:, None] + (ends - starts)[:, None] * way - lag / 2).astype(int).clip(0, len(change_NW) - 1)
    best = int(change_NW[edges, columns].mean(1).argmax())
    start, end = float(starts[best]), float(ends[best])
    near = np.abs(np.arange(len(change_NW))[:, None] - edges[best]) <= min(lag, (last - first) / 8)
    peaks = np.where(near, change_NW, 0).max(0) > np.where(near, 0, change_NW).max(0)
    if end <= start or peaks.mean() < _PEAKS or _carries(luma_NHW, start, end):
        return None
    margin = 1 + int(end - start) // 25  # the first and last mixed frames hardly differ from clean ones
    return max(int(start) - margin, 0), min(int(np.ceil(end)) + margin, len(lumas) - 1)


def _carries(luma_NHW: NDArray[np.uint8], start: float, end: float) -> bool:
    """Whether the content ahead of the edge, or behind it, moves with the edge."""
    width = luma_NHW.shape[2]
    stays, goes = np.zeros(2), np.zeros(2)
    for place in _PLACES:
        a = round(start + place * (end - start))
        b = max(a + 1, round(start + (place + _STEP) * (end - start)))
        if a < 0 or b >= len(luma_NHW):
            continue
        a_px, b_px = (round((i - start) / (end - start) * width) for i in (a, b))
        step = b_px - a_px
        margin_px = _LEAST_PX + step // 2
        for side, (left, right) in enumerate(((b_px + margin_px, width), (0, a_px - margin_px))):
            still, moving = (
                min(_residuals(luma_NHW[a], luma_NHW[b], left, right, moves), default=np.inf)
                for moves in (range(-(step // 2), step // 2 + 1), range(step - step // 4, step + step // 4 + 1))
            )
            if np.isfinite(still + moving):
                stays[side] += still
                goes[side] += moving
    return bool((stays > _CARRIED * goes).any())


def _residuals(
    a_HW: NDArray[np.uint8], b_HW: NDArray[np.uint8], left: int, right: int, moves: range
) -> Iterator[float]:
    """Mean difference of columns [left, right) between two frames if the first is moved right by each of `moves`."""
    for move in moves:
        lo, hi = max(left, left + move), min(right, right + move)
        if hi - lo >= _LEAST_PX:
            yield float(np.abs(b_HW[:, lo:hi].astype(np.float32) - a_HW[:, lo - move : hi - move]).mean())
