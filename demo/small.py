"""Rendered shots at the size of the demo's video model, generated directly as training samples without files."""

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.parts import FRAMES, HEIGHT_PX, WIDTH_PX
from footage.shots import Shot, ShotPainter
from footage.timeline import VideoSpec


def small_frames(
    spec: VideoSpec, shot: Shot, *, rate_fps: float, start: float = 0.0, count: int = FRAMES
) -> NDArray[np.uint8]:
    """(T, H, W, 3) BGR frames of a shot of `spec`, center-cropped to the model's size.

    start: position of the first frame between its earliest (0) and latest (1) possible one.
    """
    lasting_s = (count - 1) / rate_fps
    seconds = max(shot.duration_s, lasting_s)
    painter = ShotPainter(shot, width=spec.width, height=spec.height, fps=float(spec.fps), seconds=seconds)
    first_s = start * (seconds - lasting_s)
    return np.stack([_fitted(painter.frame(first_s + i / rate_fps)) for i in range(count)])


def _fitted(picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture_HWC.shape[:2]
    scale = max(HEIGHT_PX / height, WIDTH_PX / width)
    size = max(WIDTH_PX, round(width * scale)), max(HEIGHT_PX, round(height * scale))
    resized = cv2.resize(picture_HWC, size, interpolation=cv2.INTER_AREA)
    left, top = (size[0] - WIDTH_PX) // 2, (size[1] - HEIGHT_PX) // 2
    return resized[top : top + HEIGHT_PX, left : left + WIDTH_PX]  # type: ignore[return-value]
