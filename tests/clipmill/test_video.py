"""What curation and training agree on: geometry, colour and rate of what they read."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from clipmill.video import (
    BT601,
    BT709,
    FULL,
    LIMITED,
    UPRIGHT,
    Orientation,
    color_of,
    demuxer_options,
    fps_id,
    orientation_of,
    pixel_aspect,
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
    ("matrix", "orientation", "shown"),
    [
        ((1, 0, 0, 1), UPRIGHT, [[0, 1, 2], [3, 4, 5]]),
        ((0, 1, -1, 0), Orientation(rotation=90), [[3, 0], [4, 1], [5, 2]]),
        ((-1, 0, 0, -1), Orientation(rotation=180), [[5, 4, 3], [2, 1, 0]]),
        ((0, -1, 1, 0), Orientation(rotation=270), [[2, 5], [1, 4], [0, 3]]),
        ((-1, 0, 0, 1), Orientation(mirrored=True), [[2, 1, 0], [5, 4, 3]]),
        ((0, -1, -1, 0), Orientation(rotation=90, mirrored=True), [[5, 2], [4, 1], [3, 0]]),
        ((1, 0, 0, -1), Orientation(rotation=180, mirrored=True), [[3, 4, 5], [0, 1, 2]]),
        ((0, 1, 1, 0), Orientation(rotation=270, mirrored=True), [[0, 3], [1, 4], [2, 5]]),
        ((0.02, 1, -1, 0.02), Orientation(rotation=90), [[3, 0], [4, 1], [5, 2]]),
        ((0, 0, 0, 0), UPRIGHT, [[0, 1, 2], [3, 4, 5]]),
        ((1, 0, 1, 0), UPRIGHT, [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_a_display_matrix_is_one_of_eight_orientations(
    matrix: tuple[float, ...], orientation: Orientation, shown: list[list[int]]
) -> None:
    """x' = a x + c y and y' = b x + d y: where the six pixels of a 3 x 2 frame go."""
    a, b, c, d = (round(value * 65536) for value in matrix)
    frame = SimpleNamespace(side_data={"DISPLAYMATRIX": struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)})
    assert orientation_of(frame) == orientation
    stored = np.arange(6).reshape(2, 3)
    assert orientation.upright(stored).tolist() == shown
    assert orientation.shown_size(3, 2) == (len(shown[0]), len(shown))


def test_a_frame_without_a_display_matrix_is_upright() -> None:
    assert orientation_of(av.VideoFrame(16, 16, "yuv420p")) == UPRIGHT


def test_silent_streams_are_bt709_from_720_lines_on() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    assert color_of(frame, 719) == (BT601, LIMITED)
    assert color_of(frame, 720) == (BT709, LIMITED)
    frame.colorspace, frame.color_range = 1, 2
    assert color_of(frame, 16) == (BT709, FULL)
    assert color_of(av.VideoFrame(16, 16, "yuvj420p"), 16) == (BT601, FULL)
