"""Measurements on short windows of small frames: pure functions behind the cut detectors.

In a fade, dissolve or wipe each pixel goes one way, from its old value to its new one, so the path from frame to frame
is straight. Under camera motion it is not. A dissolve also has a dip in detail of known depth (the variance parabola of
Alattar 1993, here on gradients). Sizes: N frames, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
"""(H, W) luma, some 80 pixels on the long side."""

_LONG_SIDE_PX = 80
BLACK = 32
"""Maximum brightness of a black pixel; in limited range black is 16."""
_STEEP = 16
_BLOCK_PX = 5
_TEXTURED = 4.0
"""Standard deviation from which a block is textured; compression noise is below."""
_CHANGED = 8.0
"""Mean difference, in 8-bit levels, from which a block or pixel counts as changed."""

THUMB_SIZE = (32, 18)
_PARTS = 4
_LARGEST_PART = 0.45
"""Maximum share of the whole change in a quarter of the time: a gradual change takes a quarter, a cut all of it."""
_STRAIGHT = 0.5
_BENT = 0.25
"""Straightness: length of the direct path over that of the path taken; 1 for still shots, less for moving ones."""
_CLEAR = (0.5, 1.25, 0.15)
_EXACT = (0.7, 1.2, 0.05)
"""Minimum depth, maximum depth and maximum unexplained share of a dip: for a straight path, and for a bent one."""

_PIECES_SIZE = (8, 6)
_PURE = 0.8
"""Halfway through a wipe, most pieces of this size show one shot only; in a dissolve or pan each shows both."""
_FOREIGN = 0.3
"""Maximum share of content that is in neither shot, relative to the difference between the two."""

_SAME = 0.4
"""Correlation of fine structure: at least 0.45 for a scene that moved, at most 0.3 for two shots."""
_ZOOMS, _SAME_ZOOMED = (0.84, 0.71, 0.59, 0.5, 0.42), 0.66
"""Scales at which a frame is searched for in another. The correlation is 0.7 to 0.98 in a zoom, else at most 0.66."""
_FINE_PX = 9
_SAME_COLOURS = 20.0
_COLOURS_SIZE = (6, 4)


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame as seen by the detectors: a small luma image and some statistics."""

    index: int
    time_s: float
    luma: Luma
    brightness: float
    contrast: float
    """Standard deviation of the brightness."""
    dark: float
    """Share of pixels at or below the level of black."""
    texture: float
    """Mean gradient, clipped at 16 so that hard edges such as a letterbox have little weight."""
    detail: tuple[float, float]
    """Mean squared gradient, horizontal and vertical. A pan blurs one of them; a dissolve lowers both."""


def sample_size(luma_HW: NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) of the samples of a video: 80 pixels on the long side, never enlarged, at least 4."""
    height, width = luma_HW.shape[:2]
    scale = min(1.0, _LONG_SIDE_PX / max(height, width))
    return max(4, round(width * scale)), max(4, round(height * scale))


def measure(index: int, time_s: float, luma_HW: NDArray[np.uint8], size: tuple[int, int]) -> Sample:
    """Shrink a frame to `size` (width, height) and measure it."""
    if luma_HW.shape[::-1] != size:
        luma_HW = cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    across = cv2.absdiff(luma_HW[:, 1:], luma_HW[:, :-1])
    down = cv2.absdiff(luma_HW[1:], luma_HW[:-1])
    mean, std = cv2.meanStdDev(luma_HW)
    return Sample(
        index=index,
        time_s=time_s,
        luma=luma_HW,
        brightness=float(mean[0, 0]),
        contrast=float(std[0, 0]),
        dark=1 - cv2.countNonZero(cv2.threshold(luma_HW, BLACK, 255, cv2.THRESH_BINARY)[1]) / luma_HW.size,
        texture=cv2.mean(cv2.threshold(across, _STEEP, 0, cv2.THRESH_TRUNC)[1])[0],
        detail=(cv2.norm(across, cv2.NORM_L2SQR) / luma_HW.size, cv2.norm(down, cv2.NORM_L2SQR) / luma_HW.size),
    )


def distance(a_HW: Luma, b_HW: Luma) -> float:
    """Mean absolute difference of two frames, in 8-bit levels."""
    return float(cv2.norm(a_HW, b_HW, cv2.NORM_L1)) / a_HW.size


def rms_distance(a_HW: Luma, b_HW: Luma) -> float:
    """Root mean square difference of two frames, in 8-bit levels: a small object counts for more than in the mean."""
    return float(cv2.norm(a_HW, b_HW, cv2.NORM_L2)) / a_HW.size**0.5


def changed_share(a_HW: Luma, b_HW: Luma) -> float:
    """Share of textured blocks whose content differs in `b`: 0 for the same scene, 1 for an entirely new one.

    Areas that are blank in both frames are ignored, so a change of slide counts as much as a change of shot. A block
    that only became brighter or darker has the same texture and counts as unchanged.
    """
    a, b = _blocks(a_HW), _blocks(b_HW)
    a_mean, b_mean = a.mean(2, keepdims=True), b.mean(2, keepdims=True)
    a_std, b_std = a.std(2), b.std(2)
    difference = np.abs(a - b).mean(2)
    likeness = ((a - a_mean) * (b - b_mean)).mean(2) / np.maximum(a_std * b_std, 1.0)
    textured = np.maximum(a_std, b_std) > _TEXTURED
    changed = (difference > _CHANGED) & ((likeness < 0.5) | ~textured)
    return float(changed.sum() / max(1, (textured | (difference > _CHANGED)).sum()))


def _blocks(luma_HW: Luma) -> NDArray[np.float32]:
    rows, columns = (max(1, n // _BLOCK_PX) for n in luma_HW.shape)
    gray = cv2.resize(luma_HW, (columns * _BLOCK_PX, rows * _BLOCK_PX), interpolation=cv2.INTER_AREA)
    blocks = gray.reshape(rows, _BLOCK_PX, columns, _BLOCK_PX).transpose(0, 2, 1, 3)
    return blocks.reshape(rows, columns, -1).astype(np.float32)


def comes_back(before: Sequence[Luma], after: Sequence[Luma], change: float) -> bool:
    """Whether a frame after a change of this size resembles one before it: a flash, or a dropped frame."""
    return any(distance(a, b) < change / 2 for a in before for b in after)


def fade_length(blank_HW: Luma, lumas: Sequence[Luma], times_s: Sequence[float]) -> int:
    """Number of `lumas`, ordered away from the blank frame, that belong to the fade.

    In a fade the distance from the blank frame grows until the shot is at full strength. It ends where the distance
    grows by less than 5 % within a fifth of a second.
    """
    away = np.array([distance(blank_HW, luma) for luma in lumas])
    if not len(away):
        return 0
    times = np.abs(np.asarray(times_s) - times_s[0])
    for i, now in enumerate(away):
        later = away[i + 1 :][times[i + 1 :] - times[i] <= 0.2 + 1e-6]
        if not len(later) or later.max() < 1.05 * now + 0.25:
            return i
    return len(away)


def thumb(luma_HW: Luma) -> NDArray[np.float32]:
    """(576,) float32: the luma of a frame at 32x18."""
    return cv2.resize(luma_HW, THUMB_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)


class Candidate(NamedTuple):
    """A candidate gradual change: the last sample of the old shot and the first of the new one."""

    score: float
    old: int
    new: int
    dips: bool


def find_gradual(
    thumbs_NP: NDArray[np.float32],
    times_N: NDArray[np.float64],
    detail_2N: NDArray[np.float64],
    *,
    min_s: float,
    max_s: float,
    min_change: float,
) -> list[Candidate]:
    """Candidate dissolves and wipes among samples without a cut between them, best first.

    `detail_2N` is the mean squared gradient of each sample. Blending two unrelated frames of detail A and B with weight
    x of the second gives a detail of (1-x)^2 A + x^2 B, whether they move or not: a dip of known shape below the line
    from A to B. A pan has no dip, and a blurred whip pan a deeper one.
    """
    n = len(times_N)
    interval_s = float(np.median(np.diff(times_N)))
    longest = min(n - 1, round(max_s / interval_s))
    change = [np.abs(thumbs_NP[lag:] - thumbs_NP[: n - lag]).mean(1) for lag in range(longest + 1)]
    candidates = []
    for length in range(max(_PARTS, round(min_s / interval_s)), longest + 1):
        marks = np.linspace(0, length, _PARTS + 1).round().astype(int)
        parts = np.stack([change[b - a][a : n - length + a] for a, b in pairwise(marks)])
        straight = change[length] / np.maximum(parts.sum(0), 1e-9)
        even = parts.max(0) <= _LARGEST_PART * parts.sum(0)
        rows = np.flatnonzero(even & (straight >= _BENT) & (change[length] >= min_change))
        if not len(rows):
            continue
        depth, left = dip_fit(
            sliding_window_view(times_N, length + 1)[rows],
            sliding_window_view(detail_2N, length + 1, axis=1)[:, rows],
        )
        clear = straight[rows] >= _STRAIGHT
        dips = (clear & is_dip(depth, left, _CLEAR)) | is_dip(depth, left, _EXACT)
        score = change[length][rows] * straight[rows] ** 2 * np.where(dips, 1 - left.max(0), 0.7)
        candidates += [
            Candidate(float(score[k]), int(rows[k]), int(rows[k]) + length, bool(dips[k]))
            for k in np.flatnonzero(dips | clear)
        ]
    return sorted(candidates, reverse=True)


def dip_fit(
    times_MN: NDArray[np.float64], detail_2MN: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the dip in detail from the first to the last sample of each row: its depth_2M, and the unexplained share
    left_2M.

    The depth is 1 for a dissolve between two unrelated frames, and 0 without a dip.
    """
    first, last = detail_2MN[..., :1], detail_2MN[..., -1:]
    share_MN = (times_MN - times_MN[:, :1]) / (times_MN[:, -1:] - times_MN[:, :1])
    dip = share_MN * (1 - share_MN) * (first + last)
    below = (1 - share_MN) * first + share_MN * last - detail_2MN
    size = np.maximum((dip * dip).sum(-1), 1e-9)
    depth = (below * dip).sum(-1) / size
    left = ((below - depth[..., None] * dip) ** 2).sum(-1) / np.maximum(depth**2 * size, 1e-9)
    return depth, left


def is_dip(
    depth_2M: NDArray[np.float64], left_2M: NDArray[np.float64], limits: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Whether both depths are within the first two limits, and the unexplained shares at most the third."""
    shallow, deep, most_left = limits
    within = (depth_2M >= shallow) & (depth_2M <= deep) & (left_2M <= most_left)
    return within[0] & within[1]


def wiped(old_HW: Luma, middle_HW: Luma, new_HW: Luma) -> bool:
    """Whether the middle frame is composed of large pieces of the other two, as halfway through a wipe."""
    to_old, to_new = cv2.absdiff(middle_HW, old_HW), cv2.absdiff(middle_HW, new_HW)
    between = cv2.absdiff(old_HW, new_HW)
    if cv2.mean(cv2.min(to_old, to_new))[0] > _FOREIGN * cv2.mean(between)[0]:
        return False
    tells = (between > _CHANGED).astype(np.float32)
    weight, of_old = (
        cv2.resize(part, _PIECES_SIZE, interpolation=cv2.INTER_AREA) for part in (tells, tells * (to_old < to_new))
    )
    total = max(float(weight.sum()), 1e-3)
    pure = float(np.abs(2 * of_old - weight).sum()) / total
    return pure >= _PURE and 0.25 <= float(of_old.sum()) / total <= 0.75


def same_scene(a_HW: Luma, b_HW: Luma) -> bool:
    """Whether the middle of one frame appears in the other, possibly shifted: camera motion, not a new shot.

    The brightness may change between them, its pattern may not.
    """
    return _found_in(a_HW, b_HW) or _found_in(b_HW, a_HW)


def zoomed(a_HW: Luma, b_HW: Luma) -> bool:
    """Whether one frame, made smaller, appears in the other: a zoom by up to 2.5."""
    for near_HW, far_HW in ((a_HW, b_HW), (b_HW, a_HW)):
        for scale in _ZOOMS:
            smaller = cv2.resize(near_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            if _found_in(smaller, far_HW, least=_SAME_ZOOMED):  # type: ignore[arg-type]
                return True
    return False


def _found_in(part_HW: Luma, whole_HW: Luma, *, least: float = _SAME) -> bool:
    height, width = part_HW.shape
    rows, columns = height // 5, width // 5
    middle = slice(rows, height - rows), slice(columns, width - columns)
    likeness = cv2.matchTemplate(_structure(whole_HW), _structure(part_HW)[middle], cv2.TM_CCOEFF_NORMED)
    _, best, _, (left, top) = cv2.minMaxLoc(likeness)
    if best < least:
        return False
    here = part_HW[middle]
    there = whole_HW[top : top + here.shape[0], left : left + here.shape[1]]
    a, b = _colours(here), _colours(there)
    light = float((a * b).sum()) / max(float((b * b).sum()), 1.0)
    return float(np.abs(a - light * b).mean()) < _SAME_COLOURS


def displacement(a_HW: Luma, b_HW: Luma) -> float:
    """By how many pixels the middle of one frame is moved in the other; 0 if it is not found there."""
    height, width = a_HW.shape
    rows, columns = height // 5, width // 5
    middle = _structure(a_HW)[rows : height - rows, columns : width - columns]
    _, best, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(_structure(b_HW), middle, cv2.TM_CCOEFF_NORMED))
    return float(np.hypot(left - columns, top - rows)) if best >= _SAME else 0.0


def _colours(luma_HW: Luma) -> NDArray[np.float32]:
    return cv2.resize(luma_HW, _COLOURS_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)


def _structure(luma_HW: Luma) -> NDArray[np.float32]:
    gray = luma_HW.astype(np.float32)
    return gray - cv2.blur(gray, (_FINE_PX, _FINE_PX))


def dissolve_bounds(samples: Sequence[Sample], first: int, last: int, *, reach: int) -> tuple[int, int]:
    """Frame-exact bounds of a dissolve that is roughly (first, last): its last old and first new frame."""
    times = np.array([s.time_s for s in samples])
    detail = np.array([s.detail for s in samples]).T
    best, bounds = (0.0, 0), (first, last)
    stride = max(1, reach // 4)
    for a in range(max(0, first - reach), min(first + reach, last - 3) + 1, stride):
        for b in range(max(a + 3, last - reach), min(len(times) - 1, last + reach) + 1, stride):
            depth, left = dip_fit(times[None, a : b + 1], detail[:, None, a : b + 1])
            fit = round(1 - float(left.max()), 2), b - a
            if is_dip(depth, left, _CLEAR)[0] and fit > best:
                best, bounds = fit, (a, b)
    return bounds
