"""Fades through black, white or another blank frame: each run of blank frames, extended to where both shots are at full
strength.

A dark or flat frame that shows something and keeps showing it is a shot, not part of a fade: a logo on black, a sparse
slide, a night scene.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from curation.shots.gradual import BLACK, Luma, Sample, comes_back, distance, fade_length

_FADE_S = 3.0
"""Maximum time from a blank frame to the shot at full strength."""
_RISE = 3.0
"""A bright blank frame is part of a fade only if the adjacent shots have this many times its texture."""
_EMPTY_CONTRAST = 2.5
"""Standard deviation above which a blank frame shows something."""
_OTHER_LEVEL = 30.0
"""Difference in brightness from which two blank frames count as different."""
_STEADY_S = 2.0
_SHOWN_S = 3.0
"""A dark or flat picture is a shot once it has been unchanged for the first duration, or visible for the second."""
_LONG_S = 1.0
"""Duration from which empty frames are blank footage, whatever surrounds them."""


@dataclass(slots=True)
class BlankRun:
    """Consecutive blank frames, and the samples before and after them (`after` is filled later)."""

    kind: str
    before: list[Sample]
    first: Sample
    last: Sample
    blankest: Sample
    empty: bool = False
    """Whether any of its frames is empty."""
    darkest: float = 255.0
    brightest: float = 0.0
    """Brightness of its darkest and brightest frame."""
    shot_began: bool = False
    """Whether a dark or flat shot follows it."""
    after: list[Sample] = field(default_factory=list)

    @property
    def long_and_empty(self) -> bool:
        """Whether it is blank footage rather than the middle of a fade."""
        steady = self.brightest - self.darkest <= _OTHER_LEVEL
        return self.empty and steady and self.last.time_s - self.first.time_s >= _LONG_S


class BlankRuns:
    """Collects runs of blank frames. A run is returned once the maximum duration of a fade has passed after it."""

    def __init__(self, *, dark_share: float, flat_texture: float) -> None:
        self._dark_share = dark_share
        self._flat_texture = flat_texture
        self._run: BlankRun | None = None
        self._title_contrast: float | None = None
        self._waiting: list[BlankRun] = []
        self._shows_since: Sample | None = None
        self._shot_began = False
        self._shots: list[tuple[int, int]] = []

    def push(self, sample: Sample, recent: Iterable[Sample]) -> list[BlankRun]:
        """Take the next sample; `recent` are the samples before it. Returns the runs that are now complete."""
        kind = self._blank_kind(sample)
        empty = kind is not None and _is_empty(sample, kind)
        if self._run is not None and kind != self._run.kind:
            self._end_run()
        if kind is None or empty:
            self._shows_since, self._shot_began = None, False
        else:
            self._shows_since = self._shows_since or sample
            self._end_if_shot_began(sample, recent)
        if self._shot_began:
            self._shots[-1] = self._shots[-1][0], sample.index
        elif kind is not None:
            if self._run is None:
                before = [s for s in recent if s.time_s >= sample.time_s - _FADE_S]
                self._run = BlankRun(kind, before, sample, sample, sample)
            self._run.last = sample
            self._run.empty |= empty
            self._run.darkest = min(self._run.darkest, sample.brightness)
            self._run.brightest = max(self._run.brightest, sample.brightness)
            if _content(sample, kind) < _content(self._run.blankest, kind):
                self._run.blankest = sample
        return self._complete(sample)

    def finish(self) -> list[BlankRun]:
        """The runs still open at the end of the video."""
        return [*self._waiting, *([self._run] if self._run else [])]

    def is_blank(self, sample: Sample) -> bool:
        """Whether a sample that was pushed earlier may be part of a fade."""
        if self._kind(sample) is None:
            return False
        place = bisect_right(self._shots, sample.index, key=lambda shot: shot[0])
        return place == 0 or sample.index > self._shots[place - 1][1]

    def first_open(self) -> int | None:
        """The earliest frame that an incomplete run may extend to."""
        runs = [*self._waiting, *([self._run] if self._run else [])]
        return min((run.before[0].index if run.before else run.first.index for run in runs), default=None)

    def _end_run(self) -> None:
        if self._run is not None:
            self._waiting.append(self._run)
            self._run = None

    def _complete(self, sample: Sample) -> list[BlankRun]:
        complete = [run for run in self._waiting if sample.time_s > run.last.time_s + _FADE_S]
        if complete:
            self._waiting = [run for run in self._waiting if run not in complete]
        for run in self._waiting:
            run.after.append(sample)
        return complete

    def _end_if_shot_began(self, sample: Sample, recent: Iterable[Sample]) -> None:
        """End the run at the beginning of a dark or flat shot, once it is recognized as one."""
        since = self._shows_since
        if self._shot_began or since is None or sample.time_s - since.time_s < _STEADY_S:
            return
        lately = [s for s in recent if s.index >= since.index]
        steady = [s for s in lately if s.time_s >= sample.time_s - _STEADY_S]
        if not all(_alike(s, sample) for s in steady):
            if sample.time_s - since.time_s < _SHOWN_S:
                return
            steady = lately
        first = steady[0].index if steady else sample.index
        self._shot_began = True
        self._shots.append((first, sample.index))
        if self._run is not None:
            run = self._run
            run.shot_began = True
            run.last = max((s for s in lately if run.first.index <= s.index < first), default=run.first, key=_index)
            run.after = steady
            self._end_run()

    def _kind(self, sample: Sample) -> str | None:
        """The kind of fade whose middle a sample could be; None if it is not blank."""
        if sample.dark >= self._dark_share:
            return "black"
        if sample.texture >= self._flat_texture:
            return None
        return "white" if sample.brightness >= 128 * (1 - sample.dark) else "dissolve"

    def _blank_kind(self, sample: Sample) -> str | None:
        """As `_kind`, except that a title appearing on black is a shot until it has faded to half its contrast."""
        kind = self._kind(sample)
        if kind != "black":
            self._title_contrast = None
            return kind
        if self._title_contrast is None and self._run is not None and self._run.kind == "black":
            if sample.contrast > 2 * self._run.blankest.contrast + 2:
                self._title_contrast = sample.contrast
        elif self._title_contrast is not None:
            self._title_contrast = max(self._title_contrast, sample.contrast)
            if sample.contrast < self._title_contrast / 2:
                self._title_contrast = None
        return "black" if self._title_contrast is None else None


def _content(sample: Sample, kind: str) -> float:
    # A letterbox around a white frame has contrast but little texture; black noise has texture but no contrast.
    return sample.contrast if kind == "black" else sample.texture


def _index(sample: Sample) -> int:
    return sample.index


def _alike(a: Sample, b: Sample) -> bool:
    return abs(a.contrast - b.contrast) <= 0.15 * b.contrast + 0.5 and abs(a.brightness - b.brightness) <= 2


def _is_empty(sample: Sample, kind: str) -> bool:
    luma = sample.luma if kind == "black" else _without_bars(sample.luma)
    return float(luma.std()) <= _EMPTY_CONTRAST


def _without_bars(luma_HW: Luma) -> Luma:
    """The frame without symmetric black bars; the whole frame if there are none."""
    inside = []
    for size, levels in zip(luma_HW.shape, (luma_HW.mean(1), luma_HW.mean(0)), strict=True):
        bright = np.flatnonzero(levels > BLACK)
        if not len(bright):
            return luma_HW
        first, last = int(bright[0]), int(bright[-1]) + 1
        if abs(first - (size - last)) > 0.1 * size or last - first < size // 2:
            return luma_HW
        # The row or column at the border of a bar mixes bar and picture.
        inside.append(slice(first + (first > 0), last - (last < size)))
    return luma_HW[inside[0], inside[1]]


def fade_bounds(run: BlankRun, cuts: Set[int], *, flash_s: float) -> tuple[int, int] | None:
    """(first changed frame, first frame that is fully the next shot) of the fade around a blank run, or None.

    None for a flash or blink after which the same picture returns, for a plain surface within a shot, and for a dark or
    flat shot without a fade.
    """
    before, after = run.before[::-1], run.after
    start, stop = run.first.index, run.last.index + 1
    if not any(_differs(s, run.blankest) for s in (*before, *after)):
        return (start, stop) if run.long_and_empty else None
    surface = run.kind != "black" and not (_stands_out(run, before) and _stands_out(run, after))
    if surface and not run.long_and_empty:
        return None
    before = before[: next((i for i, s in enumerate(before) if s.index + 1 in cuts and i > 0), len(before))]
    after = after[: next((i for i, s in enumerate(after) if s.index in cuts and i > 0), len(after))]
    out = _length(run.blankest.luma, before)
    back = _length(run.blankest.luma, after)
    if run.shot_began and not run.empty and (run.kind != "black" or not out):
        return None
    short = run.last.time_s - run.first.time_s < flash_s and out + back < 4
    old, new = _lumas(before[out : out + 4]), _lumas(after[back : back + 4])
    if short and old and new and comes_back(old, new, distance(old[0], run.blankest.luma)):
        return None
    return start - out, stop + back


def _differs(sample: Sample, blank: Sample) -> bool:
    return sample.contrast > _EMPTY_CONTRAST or abs(sample.brightness - blank.brightness) > _OTHER_LEVEL


def _stands_out(run: BlankRun, neighbours: Sequence[Sample]) -> bool:
    return not neighbours or max(s.texture for s in neighbours) >= _RISE * max(run.blankest.texture, 0.5)


def _length(blank: Luma, samples: Sequence[Sample]) -> int:
    length = fade_length(blank, _lumas(samples), [s.time_s for s in samples])
    return min(len(samples), length + 1 + length // 12) if length else 0


def _lumas(samples: Sequence[Sample]) -> list[Luma]:
    return [s.luma for s in samples]
