"""Timeline of a rendered video: the frames of each shot and transition, and the image of each frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from clipmill.video_writer import Encoding, coded_size
from footage.scenes import Picture
from footage.shots import Shot, ShotPainter
from footage.truth import FlashTruth

CUTS = ("hard", "dissolve", "black", "white", "wipe")

_VARIABLE_TIME_BASE = Fraction(1, 24000)
_FEWEST_GRADUAL_FRAMES = 3
_FLASH_SHARE = 0.85


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A transition between two shots. `duration_s` is 0 for a hard cut only; raises ValueError otherwise."""

    kind: str = "hard"
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in CUTS:
            raise ValueError(f"unknown cut {self.kind!r}, expected one of {', '.join(CUTS)}")
        if self.duration_s < 0 or (self.kind == "hard") != (self.duration_s == 0):
            raise ValueError(f"a {self.kind} cut cannot last {self.duration_s} s")


@dataclass(frozen=True, kw_only=True)
class VideoSpec(Encoding):
    """A video: its content and (inherited) its encoding. `width` and `height` are as displayed.

    Raises ValueError for parts that do not fit together.
    """

    name: str
    shots: tuple[Shot, ...]
    cuts: tuple[Cut, ...] = ()
    """One between each two shots; empty: all hard."""
    opening: Cut | None = None
    """A fade from black or white into the first shot."""
    ending: Cut | None = None
    width: int = 320
    height: int = 180
    fps: Fraction = Fraction(24)
    """Nominal rate; durations are rounded to whole frames."""
    variable_fps: bool = False
    """Whether frames have uneven durations around the nominal rate; motion follows the timestamps."""
    start_offset_s: float = 0.0
    """First timestamp; rounded to a whole frame at a constant rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots:
            raise ValueError("a video needs at least one shot")
        if self.cuts and len(self.cuts) != len(self.shots) - 1:
            raise ValueError(
                f"expected one cut fewer than shots, got {len(self.cuts)} cuts and {len(self.shots)} shots"
            )
        for edge in (self.opening, self.ending):
            if edge is not None and edge.kind not in ("black", "white"):
                raise ValueError(f"a video cannot open or end with {edge.kind!r}, expected black or white")
        if self.width % 2 or self.height % 2:
            raise ValueError(f"sizes must be even, got {self.width}x{self.height}")
        across = self.height if self.rotation in (90, 270) else self.width
        if coded_size(self.width, self.height, self)[0] * self.sample_aspect_ratio != across:
            raise ValueError(f"{across} px cannot be stored as whole, even pixels {self.sample_aspect_ratio} wide")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Frames [start, end) of the plan: the clean frames of a shot (`cut` is None) or a transition."""

    start: int
    end: int
    before: int | None
    """The shot that is visible or ends; None at an opening."""
    after: int | None
    """The shot that starts; None at an ending."""
    cut: Cut | None = None


def plan(spec: VideoSpec) -> list[Span]:
    """The spans of a video in order. A hard cut is a span without frames."""
    last = len(spec.shots) - 1
    cuts = spec.cuts or (Cut(),) * last
    pieces: list[tuple[float, int | None, int | None, Cut | None]] = []
    if spec.opening:
        pieces.append((spec.opening.duration_s, None, 0, spec.opening))
    for i, shot in enumerate(spec.shots):
        pieces.append((shot.duration_s, i, i, None))
        if i < last:
            pieces.append((cuts[i].duration_s, i, i + 1, cuts[i]))
    if spec.ending:
        pieces.append((spec.ending.duration_s, last, None, spec.ending))
    spans, here = [], 0
    for duration_s, before, after, cut in pieces:
        fewest = 1 if cut is None else 0 if cut.kind == "hard" else _FEWEST_GRADUAL_FRAMES
        end = here + max(fewest, round(duration_s * spec.fps))
        spans.append(Span(start=here, end=end, before=before, after=after, cut=cut))
        here = end
    return spans


def timestamps(spec: VideoSpec, frames: int) -> tuple[Fraction, list[int]]:
    """The time base, and the pts of each frame in it."""
    if not spec.variable_fps:
        offset = round(spec.start_offset_s * spec.fps)
        return 1 / spec.fps, [offset + i for i in range(frames)]
    # Like a phone in changing light: jitter, and occasionally a frame two or three times as long.
    rng = np.random.default_rng([frames, spec.shots[0].seed])
    steps = rng.uniform(0.8, 1.2, frames) * rng.choice([0.7, 1, 2, 3], frames, p=[0.3, 0.55, 0.1, 0.05])
    ticks = np.round(steps / float(spec.fps * _VARIABLE_TIME_BASE)).astype(int)
    offset = round(spec.start_offset_s / _VARIABLE_TIME_BASE)
    return _VARIABLE_TIME_BASE, [offset, *(offset + np.cumsum(ticks)[:-1]).tolist()]


def flashes(spec: VideoSpec, spans: list[Span]) -> list[FlashTruth]:
    """The flashes. Raises ValueError for one outside the clean frames of its shot."""
    truths = []
    for span in spans:
        if span.cut is not None or span.before is None or spec.shots[span.before].flash_at_s is None:
            continue
        shot = spec.shots[span.before]
        frame = span.start + round((shot.flash_at_s or 0.0) * spec.fps)
        if not span.start < frame < span.end - shot.flash_frames:
            raise ValueError(f"a flash at {shot.flash_at_s} s is not well within a shot of {shot.duration_s} s")
        truths.append(FlashTruth(frame=frame, frames=shot.flash_frames))
    return truths


class Timeline:
    """The frames of a video. `times_s`: time of each frame, relative to the first."""

    def __init__(self, spec: VideoSpec, spans: list[Span], times_s: list[float]) -> None:
        self._spans, self._times_s = spans, times_s
        self._lit = {flash.frame + i for flash in flashes(spec, spans) for i in range(flash.frames)}
        self._seen_from_s: list[float] = []
        self.painters: list[ShotPainter] = []
        for i, shot in enumerate(spec.shots):
            seen = [span for span in spans if i in (span.before, span.after) and span.end > span.start]
            start_s, end_s = times_s[seen[0].start], times_s[seen[-1].end - 1] + float(1 / spec.fps)
            self._seen_from_s.append(start_s)
            self.painters.append(
                ShotPainter(shot, width=spec.width, height=spec.height, fps=float(spec.fps), seconds=end_s - start_s)
            )

    def pictures(self) -> Iterator[Picture]:
        """Yield every frame, (height, width, 3) uint8 BGR, in order. Read-only."""
        for span in self._spans:
            for frame in range(span.start, span.end):
                if span.cut is not None:
                    yield self._blend(span, frame)
                elif frame in self._lit:
                    yield _toward(self._shot(span.before, frame), 255, _FLASH_SHARE)
                else:
                    yield self._shot(span.before, frame)
            if span.before is not None and span.before != span.after:
                self.painters[span.before].release()

    def _shot(self, shot: int | None, frame: int) -> Picture:
        assert shot is not None
        return self.painters[shot].frame(self._times_s[frame] - self._seen_from_s[shot])

    def _blend(self, span: Span, frame: int) -> Picture:
        """One frame of a gradual transition, never entirely the old or the new shot."""
        cut, frames, place = span.cut, span.end - span.start, frame - span.start
        assert cut is not None
        if cut.kind in ("black", "white"):
            return self._faded(span, frame, 255 if cut.kind == "white" else 0)
        progress = (place + 1) / (frames + 1)
        old, new = self._shot(span.before, frame), self._shot(span.after, frame)
        if cut.kind == "dissolve":
            return cv2.addWeighted(old, 1 - progress, new, progress, 0)  # type: ignore[return-value]
        return _wiped(old, new, progress)

    def _faded(self, span: Span, frame: int, level: int) -> Picture:
        frames, place = span.end - span.start, frame - span.start
        if span.before is None:
            return _toward(self._shot(span.after, frame), level, 1 - place / frames)
        if span.after is None:
            return _toward(self._shot(span.before, frame), level, (place + 1) / frames)
        progress = (place + 1) / (frames + 1)
        shot = span.before if progress < 0.5 else span.after
        # A fifth beyond the edge, so that the middle frames are entirely of the plain color.
        return _toward(self._shot(shot, frame), level, min(1.0, 1.2 * (1 - abs(2 * progress - 1))))


def _toward(picture: Picture, level: int, share: float) -> Picture:
    return cv2.convertScaleAbs(picture, alpha=1 - share, beta=level * share)  # type: ignore[return-value]


def _wiped(old: Picture, new: Picture, progress: float) -> Picture:
    """`new` enters from the left behind a soft edge."""
    width = old.shape[1]
    edge_px = progress * width - np.arange(width, dtype=np.float32)
    share = np.clip(edge_px / (0.04 * width) + 0.5, 0, 1)[None, :, None]
    return (old * (1 - share) + new * share + 0.5).astype(np.uint8)
