"""Fades through black, white or another blank picture: each blank run, widened to where both shots stand in full."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from curation.gradual import Picture, Sample, comes_back, distance, fade_length

_FADE_S = 3.0
"""Longest way from a blank picture to the full shot that is followed."""
_RISE = 3.0
"""A bright blank picture is a fade only if the shots beside it have this many times its texture."""


@dataclass(slots=True)
class BlankRun:
    """Successive blank frames with what stood before and after them (`after` fills up later)."""

    kind: str
    before: list[Sample]
    first: Sample
    last: Sample
    blankest: Sample
    after: list[Sample] = field(default_factory=list)


class BlankRuns:
    """Collects runs of blank frames. A run is handed out once it and the time of a fade after it have passed."""

    def __init__(self, *, dark_share: float, flat_texture: float) -> None:
        self._dark_share = dark_share
        self._flat_texture = flat_texture
        self._run: BlankRun | None = None
        self._title_contrast: float | None = None
        self._waiting: list[BlankRun] = []

    def push(self, sample: Sample, recent: Iterable[Sample]) -> list[BlankRun]:
        """Take the next sample; `recent` are those before it. Returns the runs that are now complete."""
        kind = self._blank_kind(sample)
        if self._run is not None and kind != self._run.kind:
            self._waiting.append(self._run)
            self._run = None
        if kind is not None:
            if self._run is None:
                before = [s for s in recent if s.time_s >= sample.time_s - _FADE_S]
                self._run = BlankRun(kind, before, sample, sample, sample)
            self._run.last = sample
            if _content(sample, kind) < _content(self._run.blankest, kind):
                self._run.blankest = sample
        complete = []
        for run in list(self._waiting):
            if sample.time_s > run.last.time_s + _FADE_S:
                complete.append(run)
                self._waiting.remove(run)
            else:
                run.after.append(sample)
        return complete

    def finish(self) -> list[BlankRun]:
        """The runs still open at the end of the video."""
        return [*self._waiting, *([self._run] if self._run else [])]

    def kind(self, sample: Sample) -> str | None:
        """Which kind of fade a sample would be the middle of, or None where it shows something."""
        if sample.dark >= self._dark_share:
            return "black"
        if sample.texture >= self._flat_texture:
            return None
        return "white" if sample.brightness >= 128 * (1 - sample.dark) else "dissolve"

    def _blank_kind(self, sample: Sample) -> str | None:
        """As `kind`, but a title that appears on black is a shot, until it has faded to half its contrast."""
        kind = self.kind(sample)
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
    # A letterbox around a white picture has contrast but little texture; black noise has texture but no contrast.
    return sample.contrast if kind == "black" else sample.texture


def fade_bounds(run: BlankRun, cuts: Set[int], *, flash_s: float) -> tuple[int, int] | None:
    """(first changed frame, first frame that is fully the next shot) of the fade around a blank run, or None.

    None for a flash or a blink after which the same picture returns, and for a plain surface in a shot.
    """
    before, after = run.before[::-1], run.after
    if run.kind != "black" and not (_stands_out(run, before) and _stands_out(run, after)):
        return None
    before = before[: next((i for i, s in enumerate(before) if s.index + 1 in cuts and i > 0), len(before))]
    after = after[: next((i for i, s in enumerate(after) if s.index in cuts and i > 0), len(after))]
    start, stop = run.first.index, run.last.index + 1
    out = _length(run.blankest.picture, before)
    back = _length(run.blankest.picture, after)
    short = run.last.time_s - run.first.time_s < flash_s and out + back < 4
    old, new = _pictures(before[out : out + 4]), _pictures(after[back : back + 4])
    if short and old and new and comes_back(old, new, distance(old[0], run.blankest.picture)):
        return None
    return start - out, stop + back


def _stands_out(run: BlankRun, beside: Sequence[Sample]) -> bool:
    return not beside or max(s.texture for s in beside) >= _RISE * max(run.blankest.texture, 0.5)


def _length(blank: Picture, samples: Sequence[Sample]) -> int:
    length = fade_length(blank, _pictures(samples), [s.time_s for s in samples])
    return min(len(samples), length + 1 + length // 12) if length else 0


def _pictures(samples: Sequence[Sample]) -> list[Picture]:
    return [s.picture for s in samples]
