"""scenedetect's detectors on luma frames. They propose cuts; `curation.shots.cuts` verifies them."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from curation.shots.gradual import Luma, Sample, distance


class _LumaScore:
    """Has a scenedetect detector compare luma frames as they are, without a detour over colour."""

    _last: Luma | None = None

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: Luma) -> float:
        last, self._last = self._last, frame_img
        return 0.0 if last is None else distance(last, frame_img)


class AdaptiveLuma(_LumaScore, AdaptiveDetector):
    """Proposes hard cuts: changes that stand out from those of the frames around them."""


class ContentLuma(_LumaScore, ContentDetector):
    """Proposes gradual changes, by the difference of frames that are some time apart."""


@dataclass(slots=True)
class SlowDetector:
    """A detector of the cascade that sees only some frames."""

    interval_s: float
    detector: ContentDetector
    next_s: float = -np.inf

    def proposes(self, sample: Sample) -> bool:
        """Whether the picture changed since the last frame that it saw."""
        if sample.time_s < self.next_s:
            return False
        self.next_s = sample.time_s + self.interval_s - 1e-3
        return bool(self.detector.process_frame(frame_number(sample), sample.luma))


def frame_number(sample: Sample) -> FrameTimecode:
    """The frame's number in place of a timecode: the detectors only subtract these, and return them.

    With timecodes at a nominal frame rate, the arithmetic of fractions took longer than the detection.
    """
    return cast(FrameTimecode, sample.index)
