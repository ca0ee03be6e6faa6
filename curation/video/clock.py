"""One strictly rising time line from what containers and decoders say about time.

A frame that the decoder outputs is never dropped because of its timestamp: missing, repeated and unordered timestamps
are rebuilt from decoding times, durations and the order of output. Where recordings are joined end to end, or the clock
is set anew, time continues from the last frame. A pure function of the stamps in their order.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise

_JOINT_S = 1
"""A larger step back is the clock of another recording; a smaller one is a single wrong timestamp."""
_LONGEST_GAP_S = 3600
"""A larger step ahead is the clock of another recording; a smaller one is a still or a gap."""
_REGULAR_STEPS = 3
"""A step ahead of more frame durations than this counts only if the next frame confirms it."""
LARGEST_PTS = 3 << 61
"""Headroom for sums and differences in 64 bits."""
MAX_LOOK_AHEAD = 8
"""Stamps held back at most."""
_RECENT_INTERVALS = 9
_DISORDERED, _DISORDERED_AT_FIRST, _RECENT = 3, 2, 32
"""With so many steps back among the recent frames, or the first ones, timestamps are not presentation times."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is known about the time of one decoded frame, in ticks."""

    pts: int | None
    dts: int | None = None
    """Decoding time of the packet at which the decoder output the frame: rises in order of output."""
    duration: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Place of one frame on the time line."""

    pts: int
    rebuilt: bool = False
    """Whether it differs from the container's timestamp."""
    joint: bool = False
    """Whether another recording starts with this frame."""


class Clock:
    """Takes stamps in the decoder's order of output and gives one tick for each, strictly rising.

    `usual_duration` replaces missing durations. `stores_pts` is False for containers whose only timestamps are decoding
    times; `first_dts` is that of the first packet. At most `look_ahead` stamps are held back: at the start, to see
    whether the timestamps are in order, and later where a frame must be placed by those after it.
    """

    def __init__(
        self,
        time_base: Fraction,
        *,
        usual_duration: int = 0,
        stores_pts: bool = True,
        first_dts: int | None = None,
        look_ahead: int = MAX_LOOK_AHEAD,
    ) -> None:
        self._joint, self._longest_gap = (max(1, int(limit_s / time_base)) for limit_s in (_JOINT_S, _LONGEST_GAP_S))
        self._usual_duration, self._first_dts, self._look_ahead = usual_duration, first_dts, max(2, look_ahead)
        self._by_dts = not stores_pts
        self._held: deque[Stamp] = deque()
        self._previous: Stamp | None = None
        self._last = 0
        """Time of the last tick."""
        self._offset = 0
        """Added to timestamps since the last joint."""
        self._delay: int | None = None
        """Decoding time minus presentation time."""
        self._steps_back: deque[bool] = deque(maxlen=_RECENT)
        self._intervals: deque[int] = deque(maxlen=_RECENT_INTERVALS)

    def push(self, stamp: Stamp) -> list[Tick]:
        """Ticks of the oldest stamps without one, as far as they are certain now."""
        self._held.append(stamp)
        if self._previous is None and len(self._held) < self._look_ahead:
            return []
        return list(self._settle(final=False))

    def finish(self) -> list[Tick]:
        """Ticks of all stamps that are still held back."""
        return list(self._settle(final=True))

    def _settle(self, *, final: bool) -> Iterator[Tick]:
        while self._held:
            full = final or len(self._held) >= self._look_ahead
            tick = self._first() if self._previous is None else self._next(self._held[0], full=full)
            if tick is None:
                return
            stamp = self._held.popleft()
            self._learn(stamp, tick)
            if self._previous is not None:
                self._intervals.append(tick.pts - self._last)
            self._previous, self._last = stamp, tick.pts
            yield tick

    def _learn(self, stamp: Stamp, tick: Tick) -> None:
        """The delay of decoding, from frames placed by their pts; and whether pts keep stepping back."""
        if self._by_dts and self._delay is not None:
            return
        if self._previous is not None:
            steps_back = _steps_back(self._previous, stamp, self._joint)
            self._steps_back.append(steps_back)
            if steps_back:
                self._by_dts |= sum(self._steps_back) >= _DISORDERED
        as_claimed = stamp.pts is not None and tick.pts == stamp.pts + self._offset
        if _is_usable(stamp.dts) and (as_claimed or self._by_dts):
            self._delay = stamp.dts + self._offset - tick.pts  # type: ignore[operator]

    def _first(self) -> Tick:
        """The first frame keeps its timestamp unless those after it show that the timestamps are out of order."""
        stamps = list(self._held)
        back = sum(_steps_back(before, after, self._joint) for before, after in pairwise(stamps))
        known = [(place, s.pts) for place, s in enumerate(stamps) if s.pts is not None and _is_usable(s.pts)]
        start: int | None = None
        if self._by_dts and back:
            start = self._first_dts
        elif back >= _DISORDERED_AT_FIRST:
            self._by_dts, start = True, min(pts for _, pts in known)
        elif known:
            start = known[0][1] - known[0][0] * self._step(stamps[0])
        start = start if start is not None and _is_usable(start) else 0
        return Tick(start, rebuilt=start != stamps[0].pts)

    def _next(self, stamp: Stamp, *, full: bool) -> Tick | None:
        """The tick of the oldest stamp held back; None if it takes further stamps to decide."""
        assert self._previous is not None
        step, claimed = self._step(self._previous), self._claimed(stamp)
        if claimed is not None and 0 < claimed - self._last <= _REGULAR_STEPS * step:
            return self._at(claimed)
        following = [self._claimed(later) for later in islice(self._held, 1, None)]
        if claimed is not None and not self._last - self._joint <= claimed <= self._last:
            confirming = next((later for later in following if later is not None), None)
            if confirming is None and not full:
                return None
            if self._is_confirmed(claimed, confirming):
                return self._leap(claimed, step)
        near = next((i for i, later in enumerate(following, 1) if later is not None and later > self._last), None)
        if near is None and not full:
            return None
        if near is None and claimed is not None and _is_rising([claimed, *following]):
            return self._leap(claimed, step)
        if near is not None:  # evenly on the way to the next frame that is later
            step = max(1, min(step, (following[near - 1] - self._last) // (near + 1)))  # type: ignore[operator]
        return self._at(self._last + step)

    def _is_confirmed(self, claimed: int, confirming: int | None) -> bool:
        """Whether the next frame goes on from a step ahead or back, rather than from before it."""
        if confirming is None:
            return self._last < claimed <= self._last + self._longest_gap
        return confirming > claimed and (claimed > self._last or confirming - claimed < abs(confirming - self._last))

    def _leap(self, claimed: int, step: int) -> Tick:
        if self._last < claimed <= self._last + self._longest_gap:
            return self._at(claimed)
        self._offset += self._last + step - claimed
        return Tick(self._last + step, rebuilt=True, joint=True)

    def _at(self, pts: int) -> Tick:
        return Tick(pts, rebuilt=pts != self._held[0].pts)

    def _claimed(self, stamp: Stamp) -> int | None:
        """Time of a stamp by its own account."""
        if not self._by_dts and _is_usable(stamp.pts):
            return stamp.pts + self._offset  # type: ignore[operator]
        if _is_usable(stamp.dts) and self._delay is not None:
            return stamp.dts - self._delay + self._offset  # type: ignore[operator]
        return None

    def _step(self, stamp: Stamp) -> int:
        """Duration of a frame: as stated, unless frames have been much further apart than that."""
        duration = stamp.duration if stamp.duration > 0 else self._usual_duration
        usual = sorted(self._intervals)[len(self._intervals) // 2] if self._intervals else 0
        return min(max(1, usual if 2 * duration < usual else duration), self._longest_gap)


def _is_usable(ticks: int | None) -> bool:
    return ticks is not None and abs(ticks) <= LARGEST_PTS


def _steps_back(before: Stamp | None, after: Stamp, joint: int) -> bool:
    if before is None or before.pts is None or after.pts is None:
        return False
    return 0 < before.pts - after.pts <= joint


def _is_rising(times: Sequence[int | None]) -> bool:
    """Whether there are several, all known and rising."""
    return len(times) > 1 and all(a is not None and b is not None and a < b for a, b in pairwise(times))
