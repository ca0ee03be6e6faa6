"""What curation and training agree on: geometry, colour and rate of what they read."""

from fractions import Fraction

import av
import pytest

from clipmill.video import (
    BT601,
    BT709,
    FULL,
    LIMITED,
    color_of,
    demuxer_options,
    fps_id,
    pixel_aspect,
    upright_rotation,
)


def test_no_playlist_and_no_protocol_is_opened() -> None:
    options = demuxer_options()
    assert options["protocol_whitelist"] == "none"
    assert not {"hls", "concat", "dash", "image2", "rtsp"} & set(options["format_whitelist"].split(","))


@pytest.mark.parametrize(
    ("fps", "expected"), [(24, 23), (24000 / 1001, 23), (29.97, 29), (7, 6), (25, 24), (1, 0), (0.4, 0)]
)
def test_the_frame_rate_id_is_the_released_model_s(fps: float, expected: int) -> None:
    assert fps_id(fps) == expected


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, 1),
        (Fraction(0), 1),
        (Fraction(4, 3), Fraction(4, 3)),
        (Fraction(1, 10), Fraction(1, 10)),
        (Fraction(11), 1),
    ],
)
def test_a_pixel_aspect_that_cannot_be_meant_is_square(stated: Fraction | None, expected: Fraction) -> None:
    assert pixel_aspect(stated) == expected


@pytest.mark.parametrize(
    ("stated_deg", "clockwise"), [(0, 0), (-90, 90), (90, 270), (180, 180), (-180, 180), (89.6, 270)]
)
def test_rotation_is_a_clockwise_quarter_turn(stated_deg: float, clockwise: int) -> None:
    assert upright_rotation(stated_deg) == clockwise


def test_silent_streams_are_bt709_from_720_lines_on() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    assert color_of(frame, 719) == (BT601, LIMITED)
    assert color_of(frame, 720) == (BT709, LIMITED)
    frame.colorspace, frame.color_range = 1, 2
    assert color_of(frame, 16) == (BT709, FULL)
    assert color_of(av.VideoFrame(16, 16, "yuvj420p"), 16) == (BT601, FULL)
