"""Which frames show a new picture, and how many a second do: film at 60 fps, animation on twos, screen recordings.

An encoder stores a repeated picture with a little noise, and footage has moments of little change. So a frame counts as
a repeat only by comparison with larger changes on both sides, or where small and large changes alternate in a fixed
cadence. Where nothing moves, nothing can be said.
"""

from functools import cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

_MOVES = 1.0
"""Root mean square difference of two successive small frames, in 8-bit levels, that shows something moving."""
_NEAR_FRAMES = 4
"""A cadence repeats a picture at most so many times, from 12 fps in 60 on."""
_OF_NEAR = 0.15
"""A repeat differs by less than this share of the changes within `_NEAR_FRAMES` on both sides."""
_AROUND_S = 1.0
_OF_AROUND = 0.05
"""The same within this time, if it hardly differs at all: pictures that change rarely, as in screen recordings."""
_HARDLY = 0.3
_LEAST_FRAMES = 12
_NOISE_FLOOR = 0.02
_ALL_DIFFER = 0.9
"""From this share of different pictures on there are no repeats worth telling: a few frames always change little."""
_CADENCE_FRAMES = 6
_CADENCE_RATIO = 0.45
"""How small repeats are, relative to changes, on geometric average, for a cadence to be one..."""
_BEYOND_CHANCE = 1.05
"""A cadence, which cannot be chance, counts even if single frames seem to be a few less."""
_CADENCE_SIGMA = 5.0
"""...and by how many standard errors."""


def new_pictures(intervals_s: NDArray[np.float64], changes: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float]:
    """Which frames show another picture than the frame before, and their rate as a share of the frame rate.

    For each frame but the first: the time since the frame before, and how far it differs from it (root mean square of
    small frames, 8-bit levels). Where nothing moves, every frame counts as new, and none for the share.
    """
    everything = np.ones(len(changes), np.bool_), 1.0
    level = _largest_around(np.cumsum(intervals_s), changes)
    moving = level >= _MOVES
    if moving.sum() < _LEAST_FRAMES:
        return everything
    repeat = changes <= np.maximum(_OF_NEAR * _largest_beside(changes), np.minimum(_OF_AROUND * level, _HARDLY))
    new = ~moving | ~repeat
    share = float(new[moving].sum() / intervals_s[moving].sum() * intervals_s.mean())
    in_cadence, cadence = _cadence(changes, moving)
    if cadence < _BEYOND_CHANCE * share:
        new, share = in_cadence, cadence
    return (new, share) if share < _ALL_DIFFER else everything


def _largest_around(times_s: NDArray[np.float64], change: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the largest changes in the time before and after each frame, itself included, the smaller one."""
    frames = np.arange(len(change))
    first = np.searchsorted(times_s, times_s - _AROUND_S)
    last = np.searchsorted(times_s, times_s + _AROUND_S, side="right")
    return np.minimum(_largest_of(change, first, frames + 1), _largest_of(change, frames, last))


def _largest_of(values: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest of values[first:last] for each pair, from the maxima of 1, 2, 4, ... values in a row."""
    power = np.log2(last - first).astype(int)
    largest, result = values, np.empty(len(first))
    for k in range(power.max() + 1):
        here = power == k
        result[here] = np.maximum(largest[first[here]], largest[last[here] - (1 << k)])
        largest = np.maximum(largest[: -(1 << k)], largest[1 << k :])
    return result


def _largest_beside(change: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for the few frames next to each one, itself excluded."""
    beside = np.lib.stride_tricks.sliding_window_view(np.pad(change, _NEAR_FRAMES), _NEAR_FRAMES).max(1)
    return np.minimum(beside[: len(change)], beside[_NEAR_FRAMES + 1 :])


def _cadence(changes: NDArray[np.float64], moving: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The same if repeats come in a fixed cadence, such as three of five; else all."""
    place = np.flatnonzero(moving)
    logs = np.log(np.maximum(changes[place], _NOISE_FLOOR))
    best_sigma, best = _CADENCE_SIGMA, (np.ones(len(changes), np.bool_), 1.0)
    for period, patterns in _patterns().items():
        phase = place % period
        count, total, squares = (np.bincount(phase, w, minlength=period) for w in (None, logs, logs**2))
        for pattern in patterns:
            n = np.array([count[pattern].sum(), count[~pattern].sum()])
            if not n.all():
                continue
            means = np.array([total[pattern].sum(), total[~pattern].sum()]) / n
            variance = max(0.0, float(squares.sum() - (n * means**2).sum())) / n.sum()
            error = float(np.sqrt(variance * (1 / n).sum())) + 1e-9
            difference = float(means[0] - means[1])
            if difference / error >= best_sigma and difference >= -np.log(_CADENCE_RATIO):
                best_sigma, best = difference / error, (np.resize(pattern, len(changes)), float(pattern.mean()))
    return best


@cache
def _patterns() -> dict[int, list[NDArray[np.bool_]]]:
    """By period, which of its frames are new in every cadence: evenly spread, at every phase."""
    patterns: dict[int, set[tuple[bool, ...]]] = {}
    for period in range(2, _CADENCE_FRAMES + 1):
        for new in range(1, period):
            if gcd(new, period) == 1:
                for phase in range(period):
                    place = np.arange(phase, phase + period + 1) * new // period
                    patterns.setdefault(period, set()).add(tuple(bool(step) for step in np.diff(place)))
    return {period: [np.array(pattern) for pattern in sorted(found)] for period, found in patterns.items()}
