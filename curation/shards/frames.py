"""Decode frames of clips from their spans alone, for scorers that need more than the stored pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import numpy as np

from clipmill.cropping import Cropper
from clipmill.errors import SourceError
from curation.inputs.stats import open_source
from curation.scan.thumbnail_spool import compressed
from curation.shards.clip_row import ClipRow, clip_bars, clip_frames
from curation.shards.extract import check_unchanged, decode_failure, decode_passes
from curation.video.decode import Limits, Video
from curation.video.resize import FrameResizer, Image
from curation.video.timed import Frame

_READ_AHEAD_BYTES = 1 << 20
"""Of a source of which only the spans of some clips are read."""
Moments = Sequence[Fraction | int] | None
"""Timestamps in the source's time base, increasing; None: those of all frames."""


_Shown = tuple[list[int], list[Image]]
"""Timestamps and images of frames."""


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """Frames of one clip, in display order."""

    times_s: list[float]
    """From the start of the clip."""
    height: int
    width: int
    pixels: list[bytes]
    """BGR, row by row."""

    def images(self) -> tuple[Image, ...]:
        """(height, width, 3) uint8 BGR each."""
        shape = (self.height, self.width, 3)
        return tuple(np.frombuffer(content, np.uint8).reshape(shape) for content in self.pixels)


def read_frames(
    uri: str, clips: Sequence[ClipRow], count: int | None, long_side_px: int, limits: Limits
) -> list[ClipFrames | SourceError]:
    """Frames of clips of one source, in the order given; a clip that cannot be decoded is a SourceError in its place.

    `count` frames are those shown in the middle of as many equal parts of the clip; None: all. Runs native code on
    untrusted bytes: call it through `curation.scan.isolation.Isolated`.
    """
    found = _decoded(uri, clips, partial(_middles, count=count), long_side_px, limits)
    return [
        each if isinstance(each, SourceError) else _clip_frames(clip, *each)
        for clip, each in zip(clips, found, strict=True)
    ]


def read_thumbnails(
    uri: str, clips: Sequence[ClipRow], long_side_px: int, limits: Limits
) -> list[list[bytes] | SourceError]:
    """The thumbnails of clips as the scan made them, as JPEG: first, middle and last frame. Otherwise as `read_frames`.

    Where the scan cut off bars or combined fields, single pixels may differ.
    """
    found = _decoded(uri, clips, lambda clip: clip["thumbnail_pts"] or [], long_side_px, limits)
    return [each if isinstance(each, SourceError) else [compressed(image) for image in each[1]] for each in found]


def _clip_frames(clip: ClipRow, pts: list[int], images: list[Image]) -> ClipFrames:
    base = Fraction(clip["time_base_num"], clip["time_base_den"])
    return ClipFrames(
        times_s=[float((at - clip["start_pts"]) * base) for at in pts],
        height=images[0].shape[0],
        width=images[0].shape[1],
        pixels=[image.tobytes() for image in images],
    )


def _middles(clip: ClipRow, count: int | None) -> Moments:
    if count is None:
        return None
    length = clip["end_pts"] - clip["start_pts"]
    return [clip["start_pts"] + Fraction((2 * i + 1) * length, 2 * count) for i in range(count)]


def _decoded(
    uri: str, clips: Sequence[ClipRow], moments: Callable[[ClipRow], Moments], long_side_px: int, limits: Limits
) -> list[_Shown | SourceError]:
    """The frames shown at these moments, or why there are none, per clip."""
    shown: dict[str, _Shown | SourceError] = {}
    try:
        check_unchanged(uri, clips[0]["source_id"])
        with (
            open_source(uri, max_copy_bytes=limits.spool_bytes, read_ahead_bytes=_READ_AHEAD_BYTES) as file,
            Video(file, limits) as video,
        ):
            shown |= _decode_all(video, clips, moments, long_side_px)
            again = [
                {**c, "resume": None} for c in clips if c["resume"] and isinstance(shown[c["clip_id"]], SourceError)
            ]
            shown |= _decode_all(video, again, moments, long_side_px)
    except SourceError as error:
        return [shown.get(clip["clip_id"], error) for clip in clips]
    return [shown[clip["clip_id"]] for clip in clips]


def _decode_all(
    video: Video, clips: Sequence[ClipRow], moments: Callable[[ClipRow], Moments], long_side_px: int
) -> dict[str, _Shown | SourceError]:
    shown: dict[str, _Shown | SourceError] = {}
    for group in decode_passes(video, clips):
        try:
            for clip, taken in _decode_together(video, group, moments, long_side_px):
                shown[clip["clip_id"]] = taken.result()
        except av.FFmpegError as error:
            failure = decode_failure(error)
            shown |= {clip["clip_id"]: failure for clip in group if clip["clip_id"] not in shown}
    return shown


def _decode_together(
    video: Video, group: Sequence[ClipRow], moments: Callable[[ClipRow], Moments], long_side_px: int
) -> Iterator[tuple[ClipRow, "_Taken"]]:
    resizer = FrameResizer(video.info.bright_nits)
    pairs = _with_next(clip_frames(video, group[0], group[0]["start_pts"], group[-1]["end_pts"]))
    pair = next(pairs, None)
    for clip in group:
        taken, crop = _Taken(clip, moments(clip)), None
        while pair is not None and pair[0].pts < clip["end_pts"]:
            frame, next_pts = pair
            if frame.pts >= clip["start_pts"] and taken.wants(frame, next_pts):
                crop = crop or Cropper(clip_bars(clip, frame.info))
                taken.add(frame, resizer.upright_bgr(crop(frame.av_frame), frame.info, long_side_px=long_side_px))
            pair = None if taken.complete and clip is group[-1] else next(pairs, None)
        yield clip, taken


def _with_next(frames: Iterator[Frame]) -> Iterator[tuple[Frame, int | None]]:
    """Each frame with the timestamp of the next one; None for the last."""
    frame = next(frames, None)
    while frame is not None:
        following = next(frames, None)
        yield frame, following.pts if following else None
        frame = following


class _Taken:
    """The frames of a clip that are shown at its moments. A frame is shown until the next one."""

    def __init__(self, clip: ClipRow, moments: Moments) -> None:
        self._clip, self._moments = clip, moments
        self._decoded = self._times = 0
        self._failure: str | None = None
        self._shown: _Shown = ([], [])

    @property
    def complete(self) -> bool:
        """Whether no further frame is needed."""
        return self._moments is not None and len(self._shown[0]) == len(self._moments)

    def wants(self, frame: Frame, next_pts: int | None) -> bool:
        """Register the next frame; return whether it is shown at one of the moments."""
        clip, end_pts = self._clip, self._clip["end_pts"]
        self._decoded += 1
        is_last = next_pts is None or next_pts >= end_pts
        if self._decoded == 1 and frame.pts != clip["start_pts"]:
            self._failure = f"no frame with timestamp {clip['start_pts']}"
        elif is_last and self._decoded != clip["frames"]:
            self._failure = self._failure or f"{self._decoded} frames decoded, expected {clip['frames']}"
        until_pts = end_pts if next_pts is None or is_last else next_pts
        later = self._moments[len(self._shown[0]) :] if self._moments is not None else [frame.pts]
        self._times = sum(frame.pts <= moment < until_pts for moment in later)
        return self._failure is None and self._times > 0

    def add(self, frame: Frame, image: Image) -> None:
        """Add the registered frame once for each moment at which it is shown."""
        self._shown[0].extend([frame.pts] * self._times)
        self._shown[1].extend([image] * self._times)

    def result(self) -> "_Shown | SourceError":
        missing = self._moments is not None and not self.complete
        if self._failure is None and (missing or not self._decoded):
            self._failure = f"{self._decoded} frames decoded, expected {self._clip['frames']}"
        if self._failure is not None:
            return SourceError("decode_error", f"{self._failure}: the file differs from the scan")
        return self._shown
