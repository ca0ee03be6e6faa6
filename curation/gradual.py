"""What a change of shot looks like in a short window of small pictures: pure functions behind the cut detectors.

A fade, dissolve or wipe moves from one picture to the other on a straight line: each pixel goes one way, from its
old value to its new one. A moving camera does not: its pictures wander. Sizes: N pictures, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(H, W, 3) BGR, some 80 pixels on the long side."""

_LONG_SIDE_PX = 80
_BLOCK_PX = 5
_TEXTURED = 4.0
_CHANGED = 8.0
_THUMB_SIZE = (32, 18)
_PARTS = 4
_STRAIGHT = 0.85
_BENT = 0.6
_DIP = 0.25
_SAME = 0.4
_FINE_PX = 9


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame as the detectors see it: a small picture and a few numbers."""

    index: int
    time_s: float
    picture: Picture
    brightness: float
    contrast: float
    """Standard deviation of the brightness."""
    dark: float
    """Share of pixels at or below the level of black."""
    texture: float
    """Mean gradient, each clipped at 16 so that a hard edge such as a letterbox weighs little."""
    detail: float
    """Mean squared gradient."""


def measure(index: int, time_s: float, bgr_HWC: NDArray[np.uint8], *, dark_level: int) -> Sample:
    """Shrink a picture to 80 pixels on the long side and measure it."""
    height, width = bgr_HWC.shape[:2]
    scale = _LONG_SIDE_PX / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        bgr_HWC = cv2.resize(bgr_HWC, size, interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2GRAY)
    gradient = cv2.absdiff(gray[:, 1:], gray[:, :-1])
    mean, std = cv2.meanStdDev(gray)
    return Sample(
        index=index,
        time_s=time_s,
        picture=bgr_HWC,
        brightness=float(mean[0, 0]),
        contrast=float(std[0, 0]),
        dark=1 - cv2.countNonZero(cv2.threshold(gray, dark_level, 255, cv2.THRESH_BINARY)[1]) / gray.size,
        texture=cv2.mean(cv2.min(gradient, 16))[0],
        detail=cv2.norm(gradient, cv2.NORM_L2SQR) / gradient.size,
    )


def distance(a_HWC: Picture, b_HWC: Picture) -> float:
    """Mean absolute difference of two pictures, in 8-bit levels."""
    return float(cv2.norm(a_HWC, b_HWC, cv2.NORM_L1)) / a_HWC.size


def changed_share(a_HWC: Picture, b_HWC: Picture) -> float:
    """Share of the picture's textured blocks whose content is another in `b`: 0 the same scene, 1 all new.

    Blank areas that stay blank count neither way, so a change of slide is as large as a change of shot. A block that
    only got brighter or darker keeps its texture and is not changed.
    """
    a, b = _blocks(a_HWC), _blocks(b_HWC)
    a_mean, b_mean = a.mean(2, keepdims=True), b.mean(2, keepdims=True)
    a_std, b_std = a.std(2), b.std(2)
    difference = np.abs(a - b).mean(2)
    likeness = ((a - a_mean) * (b - b_mean)).mean(2) / np.maximum(a_std * b_std, 1.0)
    textured = np.maximum(a_std, b_std) > _TEXTURED
    changed = (difference > _CHANGED) & ((likeness < 0.5) | ~textured)
    return float(changed.sum() / max(1, (textured | (difference > _CHANGED)).sum()))


def _blocks(picture_HWC: Picture) -> NDArray[np.float32]:
    gray = cv2.cvtColor(picture_HWC, cv2.COLOR_BGR2GRAY)
    rows, columns = (max(1, n // _BLOCK_PX) for n in gray.shape)
    gray = cv2.resize(gray, (columns * _BLOCK_PX, rows * _BLOCK_PX), interpolation=cv2.INTER_AREA)
    blocks = gray.reshape(rows, _BLOCK_PX, columns, _BLOCK_PX).transpose(0, 2, 1, 3)
    return blocks.reshape(rows, columns, -1).astype(np.float32)


def comes_back(before: Sequence[Picture], after: Sequence[Picture]) -> bool:
    """Whether some picture after the change looks like one before it: a flash or a dropped frame, not a cut."""
    jump = distance(before[-1], after[0])
    return min(distance(a, b) for a in before for b in after) < jump / 2


def fade_length(blank_HWC: Picture, pictures: Sequence[Picture], times_s: Sequence[float]) -> int:
    """How many of `pictures` (going away from the blank one, nearest first) belong to the fade.

    In a fade the distance from the blank picture grows steadily until the shot stands at full strength. The fade is
    over where the distance no longer grows by 5 % within a fifth of a second.
    """
    away = np.array([distance(blank_HWC, picture) for picture in pictures])
    if not len(away):
        return 0
    times = np.abs(np.asarray(times_s) - times_s[0])
    for i, now in enumerate(away):
        later = away[i + 1 :][times[i + 1 :] - times[i] <= 0.2 + 1e-6]
        if not len(later) or later.max() < 1.05 * now + 0.25:
            return i
    return len(away)


def thumb(picture_HWC: Picture) -> NDArray[np.float32]:
    """(576,) float32: the brightness of a picture at 32x18."""
    gray = cv2.cvtColor(picture_HWC, cv2.COLOR_BGR2GRAY)
    return cv2.resize(gray, _THUMB_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)


def find_gradual(
    thumbs_NP: NDArray[np.float32],
    times_N: NDArray[np.float64],
    detail_N: NDArray[np.float64],
    *,
    min_s: float,
    max_s: float,
    min_change: float,
) -> list[tuple[float, int, int]]:
    """Likely dissolves and wipes among samples of one stretch without cuts, best first, as (score, old, new).

    `old` is the last sample of the old shot and `new` the first of the new one; `detail_N` is each sample's mean
    squared gradient. Two signs together: the pictures move straight from one to the other, and the detail dips on
    the way, as it does when two unrelated pictures are laid over each other.
    """
    n = len(times_N)
    steps = np.stack([np.abs(thumbs_NP - t).mean(1) for t in thumbs_NP])
    found = []
    for i in range(n):
        first = int(np.searchsorted(times_N, times_N[i] + min_s, "left"))
        last = int(np.searchsorted(times_N, times_N[i] + max_s, "right"))
        for j in range(max(first, i + _PARTS), min(last, n)):
            if steps[i, j] < min_change:
                continue
            marks = np.linspace(i, j, _PARTS + 1).round().astype(int)
            path = steps[marks[:-1], marks[1:]]
            straight = steps[i, j] / path.sum()
            ends = (detail_N[i] + detail_N[j]) / 2
            dip = 1 - detail_N[marks[1:-1]].min() / max(ends, 1.0)
            if straight >= _STRAIGHT or (straight >= _BENT and dip >= _DIP):
                found.append((float(steps[i, j] * straight**2), i, j))
    return sorted(found, reverse=True)


def same_scene(a_HWC: Picture, b_HWC: Picture) -> bool:
    """Whether the middle of one picture is found, perhaps moved, in the other: a camera motion, no new shot."""
    a, b = _structure(a_HWC), _structure(b_HWC)
    height, width = a.shape
    rows, columns = slice(height // 5, height - height // 5), slice(width // 5, width - width // 5)
    return any(
        float(cv2.matchTemplate(whole, part[rows, columns], cv2.TM_CCOEFF_NORMED).max()) > _SAME
        for whole, part in ((a, b), (b, a))
    )


def _structure(picture_HWC: Picture) -> NDArray[np.float32]:
    gray = cv2.cvtColor(picture_HWC, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return gray - cv2.blur(gray, (_FINE_PX, _FINE_PX))


def mixing_bounds(pictures: Sequence[Picture], first: int, last: int) -> tuple[int, int]:
    """Narrow (first, last) to the mixed frames between them.

    Each frame is placed on the way from pictures[first] (0) to pictures[last] (1). Returns the index of the first
    frame past 4 % and of the first frame from which all are past 96 %.
    """
    a = pictures[first].astype(np.float32)
    way = pictures[last].astype(np.float32) - a
    length = max(float((way * way).sum()), 1.0)
    place = np.array([float(((p - a) * way).sum()) / length for p in pictures[first : last + 1]])
    start = int(np.argmax(place > 0.04))
    below = np.flatnonzero(place < 0.96)
    end = int(below[-1]) + 1 if len(below) else last - first
    return first + start, first + end
