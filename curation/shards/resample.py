"""A clip at another frame rate: at each moment k / fps from its start, the frame that is nearest in time.

Frames are neither blended nor interpolated, and the duration stays the same: footage is not slowed down for a trainer
that counts frames.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from clipmill.errors import SourceError
from curation.video.timed import Frame

_ALMOST = Fraction(1, 1_000_000)
"""Tolerance at the end of a clip in seconds: durations are rounded to the time base."""

_SAME_RATE = 0.002
"""Largest relative difference between rates that count as equal: 23.976 frames/s is 24."""


def resampled_frames(duration: Fraction, fps: Fraction) -> int:
    """Number of frames of a clip of this duration in seconds."""
    return max(1, math.ceil((duration - _ALMOST) * fps))


def needs_resampling(clip: Any, fps: Fraction | None) -> bool:
    """Whether a clip's frame rate is variable, unknown or different from `fps`, or so little faster that the clip fills
    its `bucket`, if it has one, with its own frames but not at `fps`.

    diffusion-pipe chooses a bucket by the frames of a file, then resamples them by the mean rate that the file states,
    and fails if one is missing.
    """
    if fps is None:
        return False
    if clip["variable_fps"] or not clip["fps"] or abs(clip["fps"] / float(fps) - 1) > _SAME_RATE:
        return True
    bucket = clip.get("bucket")
    return bucket is not None and (clip_duration(clip) + _ALMOST) * fps < bucket["frames"]


def clip_duration(clip: Any) -> Fraction:
    """Exact seconds of a row of the clips table."""
    return (clip["end_pts"] - clip["start_pts"]) * Fraction(clip["time_base_num"], clip["time_base_den"])


class Resampler:
    """Frames of one clip in, frames at another rate out; their pts count from 0 on the time base 1 / fps."""

    def __init__(self, clip: Any, fps: Fraction) -> None:
        self._clip, self._fps = clip, fps
        self._base = Fraction(clip["time_base_num"], clip["time_base_den"])
        self._frames_in = self._frames_out = 0
        self._before: Frame | None = None
        self.row = {
            **clip,
            "time_base_num": fps.denominator,
            "time_base_den": fps.numerator,
            "start_pts": 0,
            "end_pts": resampled_frames(clip_duration(clip), fps),
            "frames": resampled_frames(clip_duration(clip), fps),
            "fps": float(fps),
        }
        """The row of the resampled clip."""

    def push(self, frame: Frame) -> Iterator[Frame]:
        """The frames for the moments that are nearer to the frame before than to any later one.

        Raises SourceError if the clip does not begin with this frame.
        """
        if self._before is None and frame.pts != self._clip["start_pts"]:
            raise SourceError(
                "decode_error", f"no frame with timestamp {self._clip['start_pts']}: the file differs from the scan"
            )
        self._frames_in += 1
        before, self._before = self._before, frame
        while before is not None and self._moment() < self._seconds(frame):
            is_nearer = self._moment() - self._seconds(before) <= self._seconds(frame) - self._moment()
            yield self._out(before if is_nearer else frame)

    def end(self) -> Iterator[Frame]:
        """The frames for the moments after the last frame. Raises SourceError if the clip had other frames."""
        if self._before is None or self._frames_in != self._clip["frames"]:
            raise SourceError(
                "decode_error",
                f"{self._frames_in} frames decoded, expected {self._clip['frames']}: the file differs from the scan",
            )
        while self._frames_out < self.row["frames"]:
            yield self._out(self._before)

    def _moment(self) -> Fraction:
        return self._frames_out / self._fps

    def _seconds(self, frame: Frame) -> Fraction:
        return (frame.pts - self._clip["start_pts"]) * self._base

    def _out(self, frame: Frame) -> Frame:
        self._frames_out += 1
        return replace(frame, pts=self._frames_out - 1)
