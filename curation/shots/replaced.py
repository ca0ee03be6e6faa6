"""Gradual changes of any shape, also between moving shots: found from blocks that do not reappear.

Within a shot, nearly all blocks of a frame reappear a sixth of a second later, moved a little. While the next shot
comes in, blocks do not, and by the end every block has been affected. A passing object leaves part of the frame alone;
in a fast pan all blocks move together. Sizes: N frames or pairs of frames, B blocks.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.shots.ends import opened, residuals
from curation.shots.gradual import Luma, displacement

_LAG = 2
"""Frames between the two that are compared, of twelve per second."""
_BLOCK_PX, _MOVE_PX = 4, 1
"""Size and maximum motion of a block, at half the size of the small frames."""
_FEW, _FEWEST = 0.08, 4
"""Share and number of blocks whose residuals decide whether a pair of frames stands out."""
_NOISE = 1.0
"""Residuals that differ from the usual by less, in 8-bit levels, do not."""
_CALM, _TIMES, _PLUS = 0.4, 1.5, 3.0
"""A pair stands out if it exceeds this quantile of all pairs so many times and by so much."""
_CALM_PAIRS = 4
"""Pairs on both sides of a change that do not stand out."""
_AFFECTED, _REACHED = 3.0, 0.7
"""Minimum share of blocks that exceed their usual residual by so many spreads at some time during the change."""
_MOST_MOVED = 0.25
"""Maximum motion of the whole picture during the change, as a share of its longer side: more is a pan."""


def find_replaced(
    lumas: Sequence[Luma], times_N: NDArray[np.float64], *, min_s: float, max_s: float
) -> Iterator[tuple[int, int]]:
    """Candidates among evenly spaced frames without a cut between them: the last old frame and the first new one."""
    small: list[Luma] = [cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for luma in lumas]  # type: ignore[misc]
    if len(small) < _LAG + 2 * _CALM_PAIRS + 2:
        return
    pairs = zip(small, small[_LAG:], strict=False)
    residuals_NB = np.stack([residuals(a, b, block_px=_BLOCK_PX, move_px=_MOVE_PX) for a, b in pairs])
    median_B = np.median(residuals_NB, axis=0)
    spread_B = np.median(np.abs(residuals_NB - median_B), axis=0) + _NOISE
    above_NB = (residuals_NB - median_B) / spread_B
    blocks = above_NB.shape[1]
    few = min(blocks, max(_FEWEST, int(_FEW * blocks)))
    above_N = opened(np.partition(above_NB, -few, axis=1)[:, -few:].mean(1), _LAG + 2)
    least = _TIMES * np.quantile(above_N, _CALM) + _PLUS
    for first, last in _runs(above_N > least):
        old, new = first + _LAG - 1, last + 1
        if first < _CALM_PAIRS or last >= len(above_N) - _CALM_PAIRS:
            continue
        if not min_s <= times_N[new] - times_N[old] <= max_s:
            continue
        if (above_NB[first : last + 1] > _AFFECTED).any(0).mean() < _REACHED:
            continue
        moved = sum(displacement(a, b) for a, b in zip(lumas[old:new], lumas[old + 1 : new + 1], strict=False))
        if moved <= _MOST_MOVED * max(lumas[0].shape):
            yield old, new


def _runs(stands_out_N: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last place of each run; a single gap does not end one."""
    places = np.flatnonzero(stands_out_N)
    for run in np.split(places, np.flatnonzero(np.diff(places) > 2) + 1):
        if len(run):
            yield int(run[0]), int(run[-1])
