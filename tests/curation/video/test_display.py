"""Frames brought into shape: what 4:2:0 has no size for is an error with a reason."""

from fractions import Fraction

import av
import pytest

from clipmill.errors import SourceError
from clipmill.video import Orientation
from curation.video.decode import VideoInfo
from curation.video.display import DisplayTransform


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
def test_a_frame_of_one_row_or_column_has_no_even_size(width: int, height: int, rotation: int, aspect: Fraction):
    shape = DisplayTransform(info(width, height, rotation=rotation, aspect=Fraction(aspect)))
    with pytest.raises(SourceError, match="at least 2x2"):
        shape(av.VideoFrame(width, height, "yuv420p"))


def test_odd_sizes_lose_their_last_row_and_column():
    shaped = DisplayTransform(info(5, 3, rotation=90))(av.VideoFrame(5, 3, "yuv420p"))
    assert (shaped.width, shaped.height) == (2, 4)
