"""Measure the motion bucket of sampled frames, for samples without one."""

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.motion import MotionConfig, MotionMeter
from clipmill.motion_bucket import motion_bucket


def measure_motion_bucket(frames_TCHW: NDArray[np.uint8], fps: float) -> int | None:
    """The bucket (0 to 255) of RGB frames, measured and scaled as curation does for whole clips.

    None for a single frame.
    """
    if len(frames_TCHW) < 2:
        return None
    config = MotionConfig()
    config = config.replace(short_baseline_s=min(config.short_baseline_s, (len(frames_TCHW) - 1) / fps))
    meter, short_side_px = MotionMeter(config), config.short_side_px
    for i, frame_CHW in enumerate(frames_TCHW):
        if meter.wants(i / fps):
            luma = cv2.cvtColor(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
            scale = short_side_px / min(luma.shape)
            if scale < 1:
                luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            meter.push(i, i / fps, luma)
    motion, _ = meter.between(0, len(frames_TCHW))
    return motion_bucket(motion)
