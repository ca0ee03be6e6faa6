"""The cascade of cut detectors: small frames in, transitions out (paper: section 3.1 and appendix on data).

As in the paper, three detectors run at three frame rates with three thresholds: at every frame for hard cuts, at four
and at one frame per second for slow changes. They only propose. Each proposal is verified against the surrounding
frames, which rejects flashes, insets and camera motion, and yields exact frames. Fades are found from the blank frames
in their middle.
"""

import bisect
from array import array
from collections import deque
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipmill.config import Config
from curation.shots.cut_spans import FrameSpan, merged
from curation.shots.fades import BlankRun, BlankRuns, fade_bounds
from curation.shots.gradual import Sample, comes_back, distance, measure, rms_distance, sample_size
from curation.shots.gradual_search import GradualSearch, why_same_shot
from curation.shots.proposals import AdaptiveLuma, ContentLuma, SlowDetector, frame_number
from curation.shots.refused import RefusedCuts


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A change of shot. Frames are counted in display order from 0.

    A fade may open a video (start_frame 0) or end it (end_frame is the number of frames, and end_pts where the next
    frame would have been).
    """

    kind: str
    """hard, black (fade through black), white, dissolve (any other gradual change), or damage."""
    start_frame: int
    """First changed frame."""
    end_frame: int
    """First frame that is fully the next shot; equal to start_frame for a hard cut."""
    start_pts: int
    end_pts: int
    blank: tuple[tuple[int, int], ...] = ()
    """Frame ranges [first, last) within it that show nothing for a second or longer: blank footage, not a passage."""


class CutConfig(Config):
    """Thresholds of the cascade.

    "Content" is scenedetect's measure of the difference between two frames, here computed on brightness only, in 8-bit
    levels: with hue and saturation, black-and-white footage would score only a third.
    """

    hard_ratio: float = Field(2.0, gt=1)
    """Every frame: how far a change must exceed the changes of the two frames before and after."""
    hard_content: float = Field(8.0, gt=0)
    """Every frame: minimum content change of a hard cut. Slide changes score 9 to 16, shot changes mostly over 20."""
    fast_fps: float = Field(4.0, gt=0)
    """Rate at which frames are compared to propose short dissolves and wipes."""
    fast_content: float = Field(15.0, gt=0)
    """Minimum content change between two frames at `fast_fps` that proposes a short dissolve or wipe. Lower it if short
    ones are missed; each proposal is verified frame by frame."""
    slow_fps: float = Field(1.0, gt=0)
    """Rate at which frames are compared to propose long dissolves and wipes."""
    slow_content: float = Field(10.0, gt=0)
    """Minimum content change between two frames at `slow_fps` that proposes a long dissolve or wipe. Lower it if slow
    dissolves between similar shots are missed."""
    changed_share: float = Field(0.5, gt=0, lt=1)
    """Minimum share of the textured frame that a new shot changes; insets and moving objects change less."""
    flash_s: float = Field(0.25, gt=0)
    """If the old frame returns within this time, the change was a flash, not a cut."""
    dark_share: float = Field(0.98, gt=0.5, le=1)
    """Minimum share of black pixels in a black frame; the rest allows for a watermark."""
    flat_texture: float = Field(0.5, gt=0)
    """A bright frame with a mean gradient below this many 8-bit levels is blank."""
    gradual_min_s: float = Field(0.3, gt=0)
    """Minimum duration of a dissolve or wipe; anything shorter can only be detected as a hard cut."""
    gradual_max_s: float = Field(2.5, gt=0, le=3)
    """Maximum duration of a dissolve or wipe. Raise it for footage with slower ones."""
    gradual_change: float = Field(12.0, gt=0)
    """Minimum mean change of brightness across a dissolve or wipe, in 8-bit levels."""


_WINDOW_S = 7.0
_LOOK_AHEAD_S = 3.5
_FLASH_FRAMES = 2
_KEPT_BEFORE = 4
"""Frames before a proposed cut that are kept until it is decided, however long ago they were."""
_HELD_S = 1.0
"""A frame that stands for so long is a slide, not a flash."""
_REPEATED = 0.5
"""Two frames closer than this many levels are one frame shown twice (24 fps in a 60 fps file, a still slide)."""
_REPEATED_S = 0.2


class CutDetector:
    """Finds transitions. Push every frame in display order, then call `finish` once.

    Memory: fourteen bytes per frame, and the frames of the last seven seconds at 80 pixels.
    """

    def __init__(self, config: CutConfig | None = None) -> None:
        c = self._config = config or CutConfig()
        self._every_frame = AdaptiveLuma(
            adaptive_threshold=c.hard_ratio,
            min_scene_len=1,
            window_width=2,
            min_content_val=c.hard_content,
        )
        self._slow = [
            SlowDetector(1 / c.fast_fps, ContentLuma(threshold=c.fast_content, min_scene_len=0)),
            SlowDetector(1 / c.slow_fps, ContentLuma(threshold=c.slow_content, min_scene_len=0)),
        ]
        self._blanks = BlankRuns(dark_share=c.dark_share, flat_texture=c.flat_texture)
        self._size: tuple[int, int] | None = None
        self._pts = array("q")
        self.frame_changes = array("B")
        """Per frame: mean change of brightness from the frame before, in 8-bit levels; 0 for the first."""
        self.frame_brightness = array("B")
        """Per frame: mean brightness, in 8-bit levels."""
        self.frame_rms_changes = array("f")
        """Per frame: root mean square change of brightness from the frame before, in 8-bit levels; 0 for the first."""
        self._window: deque[Sample] = deque()
        self._shown: Sample | None = None
        self._proposed: list[int] = []
        self._search_due_s: float | None = None
        self._cuts: set[int] = set()
        self._fades: list[FrameSpan] = []
        self.refused = RefusedCuts()
        self._gradual = GradualSearch(c, self.refused)

    def push(self, index: int, pts: int, time_s: float, luma_HW: NDArray[np.uint8]) -> None:
        """Take the next frame: its pts, its time in seconds and its brightness as a small frame, (H, W) uint8.

        80 pixels on the long side are enough. Frames of another size than the first are resized to it.
        """
        assert index == len(self._pts), "every frame is pushed, in display order"
        self._pts.append(pts)
        self._size = self._size or sample_size(luma_HW)
        sample = measure(index, time_s, luma_HW, self._size)
        change = distance(self._window[-1].luma, sample.luma) if self._window else 0.0
        self.frame_changes.append(min(255, round(change)))
        self.frame_rms_changes.append(rms_distance(self._window[-1].luma, sample.luma) if self._window else 0.0)
        self.frame_brightness.append(min(255, round(sample.brightness)))
        finished_runs = self._blanks.push(sample, self._window)
        self._window.append(sample)
        needed = min([index - 6, *(place - _KEPT_BEFORE for place in self._proposed[:1])])
        while self._window[0].index < needed and self._window[0].time_s < time_s - _WINDOW_S:
            self._window.popleft()
        self._propose(sample)
        self._check_cuts(time_s - self._config.flash_s)
        if self._search_due_s is not None and time_s >= self._search_due_s:
            self._search(time_s - self._config.flash_s)
        for run in finished_runs:
            self._add_fade(run)

    def finish(self) -> list[Transition]:
        """All transitions in the order of time. No two overlap."""
        if not self._pts:
            return []
        for _ in range(2):
            self._show(self._window[-1])  # lets the detector's window slide over the last two frames
        self._check_cuts(np.inf)
        if self._search_due_s is not None:
            self._search(np.inf)
        for run in self._blanks.finish():
            self._add_fade(run)
        return self._transitions()

    def settled(self) -> tuple[list[Transition], int]:
        """The transitions found so far, and the first frame that they may still change from: earlier ones are final."""
        if not self._pts:
            return [], 0
        waiting = self._blanks.first_open()
        first = self._window[0].index
        return self._transitions(), first if waiting is None else min(first, waiting)

    def _transitions(self) -> list[Transition]:
        step = round(float(np.median(np.diff(self._pts)))) if len(self._pts) > 1 else 1
        end_pts = self._pts[-1] + max(1, step)

        def pts(frame: int) -> int:
            return self._pts[frame] if frame < len(self._pts) else end_pts

        return [
            Transition(
                kind=span.kind,
                start_frame=span.start,
                end_frame=span.end,
                start_pts=pts(span.start),
                end_pts=pts(span.end),
                blank=span.blank,
            )
            for span in merged(self._fades, self._gradual.found, self._cuts)
        ]

    def _propose(self, sample: Sample) -> None:
        shown = self._shown
        if shown is None:
            for _ in range(2):
                self._show(sample)  # so that a cut at the first frames has a past to stand out from
        if shown is None or sample.time_s > shown.time_s + _REPEATED_S or distance(shown.luma, sample.luma) > _REPEATED:
            self._show(sample)
            self._shown = sample
        last = self._window[-2] if len(self._window) > 1 else sample
        held = sample.time_s - last.time_s >= _HELD_S
        if held and distance(last.luma, sample.luma) >= self._config.hard_content:
            self._add_proposal(sample.index)  # among slides each change is like the others, and none stands out
        slow_change = [slow.proposes(sample) for slow in self._slow]
        if any(slow_change) and self._search_due_s is None:
            self._search_due_s = sample.time_s + _LOOK_AHEAD_S

    def _show(self, sample: Sample) -> None:
        for cut in self._every_frame.process_frame(frame_number(sample), sample.luma):
            self._add_proposal(cast(int, cut))

    def _add_proposal(self, index: int) -> None:
        if index not in self._proposed:
            bisect.insort(self._proposed, index)

    def _check_cuts(self, until_s: float) -> None:
        """Decide on the proposed hard cuts up to this time."""
        while self._proposed:
            place = self._proposed[0] - self._window[0].index
            future = len(self._window) - place
            if place > 0 and until_s < np.inf and (self._window[place].time_s > until_s or future <= _FLASH_FRAMES):
                return
            index = self._proposed.pop(0)
            reason = self._why_no_cut(place) if place > 0 else "it is the first frame"
            if reason is None:
                self._cuts.add(index)
            else:
                self.refused.add("hard", index, index, reason)

    def _why_no_cut(self, place: int) -> str | None:
        """Why a proposed hard cut is none; None for a cut."""
        window, flash_s = list(self._window), self._config.flash_s
        time_s = window[place].time_s
        before = [s.luma for s in window[:place] if s.time_s >= time_s - flash_s]
        after = [s.luma for s in window[place:] if s.time_s <= time_s + flash_s]
        if len(before) <= _FLASH_FRAMES:  # at few frames per second a flash of one frame lasts longer
            near = [s for s in window[max(0, place - _FLASH_FRAMES - 1) : place] if s.time_s > time_s - _HELD_S]
            before = [s.luma for s in near or window[place - 1 : place]]
        if len(after) <= _FLASH_FRAMES:
            near = window[place : place + _FLASH_FRAMES + 1]
            after = [s.luma for s in near if s.time_s < time_s + _HELD_S] or [window[place].luma]
        old, new = before[-1], after[0]
        reason = why_same_shot(old, new, self._config.changed_share)
        if reason is None and comes_back(before, after, distance(old, new)):
            return f"a flash: the earlier picture returns within {flash_s:g} s"
        return reason

    def _search(self, until_s: float) -> None:
        """Search the window up to this time for gradual changes, between hard cuts and blank frames."""
        self._search_due_s = None
        self._gradual.begin(self._window[0].index)
        stretch: list[Sample] = []
        for sample in self._window:
            blank = self._blanks.is_blank(sample)
            if sample.time_s > until_s:
                break
            if blank or sample.index in self._cuts:
                self._gradual.search(stretch)
                stretch = []
            if not blank:
                stretch.append(sample)
        due_s = self._gradual.search(stretch, until_s)
        if due_s is not None:
            self._search_due_s = due_s + self._config.flash_s

    def _add_fade(self, run: BlankRun) -> None:
        bounds = fade_bounds(run, self._cuts, flash_s=self._config.flash_s)
        if bounds is not None:
            blank = ((run.first.index, run.last.index + 1),) if run.long_and_empty else ()
            self._fades.append(FrameSpan(run.kind, *bounds, blank))
