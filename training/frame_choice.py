"""Which frames of a clip a sample takes: at a rate drawn from the configured ones, and none that repeats another.

The paper conditions on the frame rate of the sampled frames (3.2); `Choice.fps` is that rate.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Indices of the selected frames in display order, and their rate; indices repeat where the video stands still."""

    frame_indices: tuple[int, ...]
    fps: float


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """The different pictures of a clip that has repeats: how many there are per second, and their frames, ascending."""

    fps: float
    frames: tuple[int, ...]


def choose_frames(
    times_s: Sequence[float],
    *,
    lengths: Sequence[int],
    rates: Sequence[float],
    rng: random.Random,
    distinct: Distinct | None = None,
) -> Choice | None:
    """Draw a rate and a first frame, then take the frame with the nearest timestamp at each step.

    `times_s` are the ascending timestamps of all frames, with arbitrary spacing. Uses the largest of `lengths` (frames)
    for which the clip is long enough at any of `rates` (frames/s), and draws a rate among those. Rates are capped at
    the clip's own. Of a clip with repeats only the `distinct` frames are taken, at most at their rate; if it is too
    short for that, all are, and the rate is given as that of the distinct ones. None if it is too short even so.
    """
    if distinct is not None:
        choice = _choose([times_s[i] for i in distinct.frames], lengths, rates, rng, usual_s=1 / distinct.fps)
        if choice is not None:
            return Choice(frame_indices=tuple(distinct.frames[i] for i in choice.frame_indices), fps=choice.fps)
    intervals = [after - before for before, after in pairwise(times_s)]
    choice = _choose(times_s, lengths, rates, rng, usual_s=statistics.median(intervals) if intervals else 0.0)
    if choice is None or distinct is None:
        return choice
    return Choice(frame_indices=choice.frame_indices, fps=min(choice.fps, distinct.fps))


def _choose(
    times_s: Sequence[float], lengths: Sequence[int], rates: Sequence[float], rng: random.Random, *, usual_s: float
) -> Choice | None:
    for length in sorted(lengths, reverse=True):
        steps = [max(1 / rate, usual_s) for rate in rates]
        # Up to half an interval past the last timestamp, the last frame is still the nearest.
        fitting = [s for s in steps if times_s and (length - 1) * s <= times_s[-1] - times_s[0] + usual_s / 2]
        if fitting:
            step_s = rng.choice(fitting)
            last_start_s = times_s[-1] + usual_s / 2 - (length - 1) * step_s
            starts = max(1, int(np.searchsorted(times_s, last_start_s + 1e-9, side="right")))
            return _at_steps(times_s, rng.randrange(starts), length, step_s)
    return None


def _at_steps(times_s: Sequence[float], first: int, length: int, step_s: float) -> Choice:
    known = np.asarray(times_s)
    wanted = known[first] + step_s * np.arange(length)
    after = np.clip(np.searchsorted(known, wanted), 1, max(1, len(known) - 1))
    nearer_before = wanted - known[after - 1] <= known[np.minimum(after, len(known) - 1)] - wanted
    frame_indices = np.where(nearer_before, after - 1, np.minimum(after, len(known) - 1))
    lasting_s = known[frame_indices[-1]] - known[frame_indices[0]]
    distinct = length > 1 and bool(np.all(np.diff(frame_indices) > 0))
    fps = (length - 1) / lasting_s if distinct else 1 / step_s
    return Choice(frame_indices=tuple(frame_indices.tolist()), fps=float(fps))
