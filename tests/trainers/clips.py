"""What a trainer makes of a video file, for the readers in this folder."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


@dataclass(frozen=True, kw_only=True)
class TrainedClip:
    """A sample as the model gets it."""

    path: Path
    caption: str
    frames_THWC: NDArray[Any]


def decoded(path: Path) -> tuple[list[Image.Image], Fraction]:
    """All frames as they are stored, without regard to rotation or the shape of pixels; and frames/s of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_image() for frame in container.decode(stream)]
        assert stream.average_rate is not None
        return frames, stream.average_rate


def fitted(frames: list[Image.Image], size: tuple[int, int]) -> NDArray[Any]:
    """Frames resized to cover `size` (width, height), and cut around the middle."""
    return np.stack([np.asarray(ImageOps.fit(frame, size)) for frame in frames])
