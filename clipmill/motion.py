"""Optical flow -> motion score: mean Farneback flow magnitude at 2 samples per second (paper 3.1, App. C).

The unit is percent of the frame's shorter side per second, so a 360p and a 1080p copy, and a 24 and a 60 fps copy,
score the same. Flow between frames half a second apart loses anything faster than about 20 %/s, so speed is first
measured over a short baseline of 1/12 s; only where it turns out slow is the long baseline to the next sample used,
which is six times less sensitive to compression noise.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipmill.config import Config

Image = NDArray[Any]
"""uint8 luma (H, W)."""


class MotionConfig(Config):
    """Settings of the motion score."""

    samples_per_s: float = Field(2.0, gt=0, le=60)
    """Sampling rate of the motion measurement. The paper uses two samples per second."""
    short_baseline_s: float = Field(1 / 12, gt=0, le=1)
    """Time between the two frames of the first optical-flow measurement. A shorter baseline follows faster motion but
    is more sensitive to compression noise."""
    slow_percent_per_s: float = Field(6.0, ge=0)
    """Speed, in percent of the frame's shorter side per second, below which the flow to the next sampling instant (the
    long baseline) is used instead."""
    surely_slow_percent_per_s: float = Field(1.2, ge=0)
    """If a cheap upper bound on the speed is below this, flow over the short baseline is skipped. Mainly affects CPU
    time; scores barely change."""
    still_percent_per_s: float = Field(0.03, ge=0)
    """If the cheap bound on the speed is below this, no flow is computed and the frame counts as still."""
    short_side_px: int = Field(64, ge=16, le=1080)
    """Shorter side of the luma images between which flow is computed. Larger images show finer motion and cost more
    CPU time."""


@dataclass(slots=True)
class _Sample:
    """One sampling instant: a frame, the speed measured from it over the short and over the long baseline."""

    pts: int
    time_s: float
    luma: Image | None
    region_px: tuple[int, int]
    short_end_pts: int | None = None
    short_speed: float = float("nan")
    long_end_pts: int | None = None
    long_speed: float = float("nan")


class MotionMeter:
    """Measures frames in display order; afterwards, returns the speed between any two timestamps."""

    def __init__(self, config: MotionConfig | None = None) -> None:
        self._config = config or MotionConfig()
        self._samples: list[_Sample] = []
        self._next_sample_s = float("-inf")

    def wants(self, time_s: float) -> bool:
        """Whether the frame at `time_s` (seconds) is needed."""
        return time_s >= self._next_sample_s or self._short_due(time_s)

    def push(self, pts: int, time_s: float, luma_HW: Image, region_px: tuple[int, int] | None = None) -> None:
        """Take a wanted frame: uint8 luma, square pixels, shorter side `short_side_px`, of a region of the frame with
        this width and height; outside of it nothing moves. None: the frame has the size of the luma."""
        frame = _Sample(pts, time_s, luma_HW, region_px or luma_HW.shape[::-1])
        if self._short_due(time_s):
            last = self._samples[-1]
            last.short_end_pts = pts
            last.short_speed = self._speed(last, frame, self._config.surely_slow_percent_per_s)
        if time_s >= self._next_sample_s:
            self._finish_interval(frame)
            self._samples.append(frame)
            self._next_sample_s = time_s + 1 / self._config.samples_per_s - 1e-6

    def between(
        self, start_pts: int, end_pts: int, region_px: tuple[int, int] | None = None
    ) -> tuple[float | None, str | None]:
        """Mean speed over a clip's frames (start_pts <= pts < end_pts) and over a region of this width and height, in
        percent of its shorter side per second. None: the region that was measured.

        Returns (motion, None), or (None, reason) for a clip too short to hold two measured frames.
        """
        first, last = (bisect_left(self._samples, pts, key=_pts) for pts in (start_pts, end_pts))
        inside = self._samples[first:last]
        # A speed counts only if both of its frames lie within the clip: none is measured across a cut.
        speeds = [
            _over(region_px, s, s.long_speed) for s in inside if s.long_end_pts is not None and s.long_end_pts < end_pts
        ]
        if not speeds:
            speeds = [
                _over(region_px, s, s.short_speed)
                for s in inside
                if s.short_end_pts is not None and s.short_end_pts < end_pts
            ]
        speeds = [speed for speed in speeds if not math.isnan(speed)]  # NaN: the frame size changed, or no time passed
        if not speeds:
            return None, "no two measured frames lie within the clip"
        return float(np.mean(speeds)), None

    def _short_due(self, time_s: float) -> bool:
        if not self._samples or self._samples[-1].short_end_pts is not None:
            return False
        return time_s - self._samples[-1].time_s >= 0.75 * self._config.short_baseline_s

    def _finish_interval(self, frame: _Sample) -> None:
        if not self._samples:
            return
        last = self._samples[-1]
        last.long_end_pts = frame.pts
        slow = not last.short_speed >= self._config.slow_percent_per_s
        still = self._config.still_percent_per_s
        last.long_speed = self._speed(last, frame, still) if slow else last.short_speed
        last.luma = None

    def _speed(self, since: _Sample, frame: _Sample, estimate_up_to: float) -> float:
        """Percent of the shorter side per second since a sample: by estimate if that is this low, else by flow."""
        assert since.luma is not None
        assert frame.luma is not None
        if since.region_px != frame.region_px or since.luma.shape != frame.luma.shape or frame.time_s <= since.time_s:
            return float("nan")
        percent_per_px = 100 / min(frame.luma.shape) / (frame.time_s - since.time_s)
        estimate = percent_per_px * _normal_flow(since.luma, frame.luma)
        return estimate if estimate <= estimate_up_to else percent_per_px * _flow(since.luma, frame.luma)


def _pts(sample: _Sample) -> int:
    return sample.pts


def _over(region_px: tuple[int, int] | None, sample: _Sample, speed: float) -> float:
    """Convert a speed measured over one region to another region that contains the same motion."""
    if region_px is None or region_px == sample.region_px:
        return speed
    (width, height), (new_width, new_height) = sample.region_px, region_px
    return speed * (width * height * min(width, height)) / (new_width * new_height * min(new_width, new_height))


def _normal_flow(first_HW: Image, second_HW: Image) -> float:
    """Change over gradient: two thirds or so of the shift in pixels while that is small, and no less than 0.2 else."""
    gradient = cv2.norm(first_HW[:, 1:], first_HW[:, :-1], cv2.NORM_L1) + cv2.norm(
        first_HW[1:], first_HW[:-1], cv2.NORM_L1
    )
    return cv2.norm(first_HW, second_HW, cv2.NORM_L1) / max(gradient, 1.0)


def _flow(first_HW: Image, second_HW: Image) -> float:
    """Mean magnitude of the Farneback flow in pixels."""
    flow_HW2 = np.zeros((*first_HW.shape, 2), np.float32)
    cv2.calcOpticalFlowFarneback(
        first_HW,
        second_HW,
        flow_HW2,
        pyr_scale=0.5,
        levels=4,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return float(np.linalg.norm(flow_HW2, axis=2).mean())
