"""Frames brought into shape: what 4:2:0 has no size for is an error with a reason."""

from fractions import Fraction

import av
import numpy as np
import pytest

from clipmill.video import Orientation
from curation.video.display import DisplayTransform
from curation.video.info import VideoInfo


def info(width: int, height: int, *, rotation: int = 0, aspect: Fraction = Fraction(1)) -> VideoInfo:
    return VideoInfo(
        container="matroska,webm",
        stream_index=0,
        other_video_streams=0,
        codec="ffv1",
        pixel_format="yuv420p",
        width=round(width * aspect) or 1,
        height=height,
        coded_width=width,
        coded_height=height,
        orientation=Orientation(rotation=rotation),
        sample_aspect_ratio=aspect,
        fps=None,
        duration_s=None,
        time_base=Fraction(1, 25),
        audio=False,
    )


@pytest.mark.parametrize(
    ("width", "height", "rotation", "aspect"),
    [(5000, 1, 0, 1), (1, 500, 90, 1), (1, 1, 0, 1), (9, 9, 0, Fraction(1, 10))],
)
def test_a_single_row_or_column_is_doubled(width: int, height: int, rotation: int, aspect: Fraction):
    shape = DisplayTransform(info(width, height, rotation=rotation, aspect=Fraction(aspect)))
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 200, np.uint8), "rgb24")
    shaped = shape(frame.reformat(format="yuv444p"))
    assert min(shaped.width, shaped.height) == 2
    assert shaped.to_ndarray()[: shaped.height].min() > 180


def test_odd_sizes_lose_their_last_row_and_column():
    shaped = DisplayTransform(info(5, 3, rotation=90))(av.VideoFrame(5, 3, "yuv420p"))
    assert (shaped.width, shaped.height) == (2, 4)
