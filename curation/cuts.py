"""The cascade of cut detectors: small pictures in, transitions out (paper: appendix on data processing).

As in the paper, three detectors look at three frame rates with three thresholds: every frame for hard cuts, four and
one per second for slow changes. They only propose. Each proposal is then checked against the pictures around it,
which removes flashes, insets and camera motion, and gives exact frames. Fades are found from blank pictures.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from curation.config import Config
from curation.fades import BlankRun, BlankRuns, fade_bounds
from curation.gradual import Sample, changed_share, comes_back, distance, dissolve_bounds, find_gradual, measure, same_scene, thumb, wiped


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A change of shot. Frames are counted in display order from 0."""

    kind: str
    """hard, black (fade through black), white, dissolve (any other gradual change), or damage."""
    start_frame: int
    """First changed frame."""
    end_frame: int
    """First frame that is fully the next shot; equal to start_frame for a hard cut."""
    start_pts: int
    end_pts: int


class CutConfig(Config):
    """Thresholds of the cascade. Content is scenedetect's: mean change of hue, saturation and brightness, 0..255."""

    hard_ratio: float = Field(2.0, gt=1)
    """Every frame: how far a change stands out from the changes of the two frames before and after."""
    hard_content: float = Field(10.0, gt=0)
    """Every frame: the least content change of a hard cut; a change of slide has 14, a change of shot 20 and more."""
    fast_fps: float = Field(4.0, gt=0)
    fast_content: float = Field(15.0, gt=0)
    """Proposes short dissolves and wipes."""
    slow_fps: float = Field(1.0, gt=0)
    slow_content: float = Field(10.0, gt=0)
    """Proposes long dissolves."""
    changed_share: float = Field(0.5, gt=0, lt=1)
    """A new shot changes at least this share of the textured picture; an inset or a jump within one changes less."""
    flash_s: float = Field(0.25, gt=0)
    """What looks as before within this time was a flash."""
    dark_level: int = Field(32, gt=0)
    """A pixel this dark or darker is black (limited range starts at 16)."""
    dark_share: float = Field(0.98, gt=0.5, le=1)
    """A black frame has this share of black pixels; the rest is room for a watermark."""
    flat_texture: float = Field(0.5, gt=0)
    """Mean gradient, in 8-bit levels, below which a bright frame is blank."""
    title_s: float = Field(1.0, gt=0)
    """A title on black that stays this long is a shot of its own."""
    gradual_min_s: float = Field(0.3, gt=0)
    gradual_max_s: float = Field(2.5, gt=0)
    gradual_change: float = Field(12.0, gt=0)
    """Least mean change of brightness across a dissolve or wipe, in 8-bit levels."""


_WINDOW_S = 7.0
_LOOK_AHEAD_S = 2.5
_SAMPLES_PER_S = 12.0
_STILL = 0.5
_STILL_S = 0.2


@dataclass(slots=True)
class _Level:
    """One low-rate detector of the cascade."""

    interval_s: float
    detector: ContentDetector
    next_s: float = -np.inf

    def proposes(self, sample: Sample) -> bool:
        if sample.time_s < self.next_s:
            return False
        self.next_s = sample.time_s + self.interval_s - 1e-3
        return bool(self.detector.process_frame(FrameTimecode(sample.index, 25.0), sample.picture))


@dataclass(frozen=True, slots=True)
class _Span:
    kind: str
    start: int
    end: int


class CutDetector:
    """Finds transitions. Push every frame in display order, then call `finish` once.

    Memory: eight bytes per frame, and the small pictures of the last seven seconds.
    """

    def __init__(self, config: CutConfig | None = None) -> None:
        c = self._config = config or CutConfig()
        self._every_frame = AdaptiveDetector(c.hard_ratio, 1, 2, c.hard_content)
        self._levels = [
            _Level(1 / c.fast_fps, ContentDetector(c.fast_content, 0)),
            _Level(1 / c.slow_fps, ContentDetector(c.slow_content, 0)),
        ]
        self._blanks = BlankRuns(dark_share=c.dark_share, flat_texture=c.flat_texture)
        self._pts = array("q")
        self._window: deque[Sample] = deque()
        self._fed: Sample | None = None
        self._proposed: deque[int] = deque()
        self._slow_due_s: float | None = None
        self._cuts: list[int] = []
        self._cut_set: set[int] = set()
        self._fades: list[_Span] = []
        self._dissolves: list[_Span] = []

    def push(self, index: int, pts: int, time_s: float, bgr_HWC: NDArray[np.uint8]) -> None:
        """Take the next frame: its pts, its time in seconds and a small picture of it, (H, W, 3) uint8 BGR."""
        assert index == len(self._pts), "every frame, in display order"
        self._pts.append(pts)
        sample = measure(index, time_s, bgr_HWC, dark_level=self._config.dark_level)
        complete = self._blanks.push(sample, self._window)
        self._window.append(sample)
        while self._window[0].time_s < time_s - _WINDOW_S:
            self._window.popleft()
        self._propose(sample)
        self._check_cuts(time_s - self._config.flash_s)
        if self._slow_due_s is not None and time_s >= self._slow_due_s:
            self._look_for_gradual(time_s - self._config.flash_s)
        for run in complete:
            self._add_fade(run)

    def finish(self) -> list[Transition]:
        """All transitions, in order of time; no two overlap."""
        if not self._pts:
            return []
        last = self._window[-1]
        for _ in range(2):
            self._feed_every_frame(last)
        self._check_cuts(np.inf)
        if self._slow_due_s is not None:
            self._look_for_gradual(np.inf)
        for run in self._blanks.finish():
            self._add_fade(run)
        step = int(np.median(np.diff(self._pts))) if len(self._pts) > 1 else 1
        pts = [*self._pts, self._pts[-1] + max(step, 1)]
        return [
            Transition(
                kind=s.kind, start_frame=s.start, end_frame=s.end, start_pts=pts[s.start], end_pts=pts[s.end]
            )
            for s in self._merged()
        ]

    def _propose(self, sample: Sample) -> None:
        fed = self._fed
        if fed is None:
            for _ in range(2):
                self._feed_every_frame(sample)
        if fed is None or sample.time_s > fed.time_s + _STILL_S or distance(fed.picture, sample.picture) > _STILL:
            self._feed_every_frame(sample)
            self._fed = sample
        if any([level.proposes(sample) for level in self._levels]) and self._slow_due_s is None:
            self._slow_due_s = sample.time_s + _LOOK_AHEAD_S

    def _feed_every_frame(self, sample: Sample) -> None:
        cuts = self._every_frame.process_frame(FrameTimecode(sample.index, 25.0), sample.picture)
        self._proposed.extend(cut.frame_num for cut in cuts)

    def _check_cuts(self, until_s: float) -> None:
        c = self._config
        while self._proposed:
            offset = self._proposed[0] - self._window[0].index
            if offset > 0:
                time_s = self._window[offset].time_s
                if time_s > until_s:
                    return
                samples = list(self._window)
                before = [s.picture for s in samples[:offset] if s.time_s >= time_s - c.flash_s] or [
                    samples[offset - 1].picture
                ]
                after = [s.picture for s in samples[offset:] if s.time_s <= time_s + c.flash_s]
                if (
                    changed_share(before[-1], after[0]) >= c.changed_share
                    and not comes_back(before, after, distance(before[-1], after[0]))
                    and not same_scene(before[-1], after[0])
                ):
                    self._cuts.append(self._proposed[0])
                    self._cut_set.add(self._proposed[0])
            self._proposed.popleft()

    def _look_for_gradual(self, until_s: float) -> None:
        """Search the window up to `until_s`, stretch by stretch between hard cuts and blank pictures."""
        self._slow_due_s = None
        stretch: list[Sample] = []
        for sample in self._window:
            blank = self._blanks.kind(sample) is not None
            if blank or sample.index in self._cut_set or sample.time_s > until_s:
                self._search(stretch)
                stretch = []
            if sample.time_s > until_s:
                break
            if not blank:
                stretch.append(sample)
        self._search(stretch)

    def _search(self, stretch: list[Sample]) -> None:
        c = self._config
        if len(stretch) < 6 or stretch[-1].time_s - stretch[0].time_s < c.gradual_min_s:
            return
        times = np.array([s.time_s for s in stretch])
        detail = np.array([s.detail for s in stretch]).T
        picks = np.unique(np.searchsorted(times, np.arange(times[0], times[-1], 1 / _SAMPLES_PER_S)).clip(0, len(times) - 1))
        found = find_gradual(
            np.stack([thumb(stretch[i].picture) for i in picks]),
            times[picks],
            detail[:, picks],
            min_s=c.gradual_min_s,
            max_s=c.gradual_max_s,
            min_change=c.gradual_change,
        )
        pictures = [s.picture for s in stretch]
        step = int(picks[1] - picks[0])
        failed: list[tuple[int, int]] = []
        for candidate in found:
            old, new = int(picks[candidate.old]), int(picks[candidate.new])
            if any(stretch[old].index < s.end and s.start < stretch[new].index for s in self._dissolves):
                continue
            if any(abs(old - a) <= 2 * step and abs(new - b) <= 2 * step for a, b in failed):
                continue
            if not (
                (candidate.dips or wiped(pictures[old], pictures[(old + new) // 2], pictures[new]))
                and changed_share(pictures[old], pictures[new]) >= c.changed_share
                and not same_scene(pictures[old], pictures[new])
            ):
                failed.append((old, new))
                continue
            if candidate.dips:
                old, new = dissolve_bounds(stretch, old, new, reach=2 * step)
            margin = 1 + (new - old) // 10
            old, new = max(old + 1 - margin, 0), min(new + margin, len(stretch) - 1)
            self._dissolves.append(_Span("dissolve", stretch[old].index, stretch[new].index))

    def _add_fade(self, run: BlankRun) -> None:
        bounds = fade_bounds(run, self._cut_set.__contains__, flash_s=self._config.flash_s)
        if bounds is not None:
            self._fades.append(_Span(run.kind, *bounds))

    def _merged(self) -> list[_Span]:
        spans: list[_Span] = []
        for span in sorted(self._fades, key=lambda s: s.start):
            if spans and span.start <= spans[-1].end:
                spans[-1] = _Span(spans[-1].kind, spans[-1].start, max(span.end, spans[-1].end))
            else:
                spans.append(span)
        for span in self._dissolves:
            if all(span.end < s.start or span.start > s.end for s in spans):
                spans.append(span)
        for cut in self._cuts:
            if all(cut < s.start or cut > s.end for s in spans):
                spans.append(_Span("hard", cut, cut))
        return sorted(spans, key=lambda s: s.start)
