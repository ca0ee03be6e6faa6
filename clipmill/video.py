"""What curation and training have to agree on when they read video: containers, limits, display geometry, colour."""

from fractions import Fraction
from typing import Any

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "ogg",
    "asf",
    "mxf",
)
"""FFmpeg demuxers that may open an input. No playlist, concat, network or image-sequence format is among them."""

MAX_PIXELS = 8192 * 4352
"""Of a frame or picture, width times height: 8K with room for padding."""
MAX_STREAMS = 32
"""Streams in a container: video, audio, subtitles and attachments together."""

UNSPECIFIED, BT709, BT601 = 2, 1, 5
"""AVColorSpace."""
LIMITED, FULL = 1, 2
"""AVColorRange."""
_HD_LINES = 720


def demuxer_options(containers: tuple[str, ...] = CONTAINERS) -> dict[str, str]:
    """Options for `av.open`: these demuxers alone, and no protocol, so that a file cannot name others to open."""
    return {"format_whitelist": ",".join(containers), "protocol_whitelist": "none"}


def pixel_aspect(stated: Fraction | None) -> Fraction:
    """Width of a pixel over its height; 1 where a stream states none, or one that cannot be meant."""
    aspect = Fraction(stated or 1)
    return aspect if Fraction(1, 10) <= aspect <= 10 else Fraction(1)


def upright_rotation(stated_deg: float) -> int:
    """The clockwise turn (0, 90, 180, 270) that makes a decoded frame upright, from `av.VideoFrame.rotation`."""
    return -round(stated_deg / 90) * 90 % 360


def color_of(frame: Any, short_side_px: int) -> tuple[int, int]:
    """AVColorSpace and AVColorRange of an `av.VideoFrame` of YUV. Where the stream is silent: BT.709 from 720 lines on,
    BT.601 below, limited range."""
    matrix = int(frame.colorspace)
    if matrix == UNSPECIFIED:
        matrix = BT709 if short_side_px >= _HD_LINES else BT601
    return matrix, color_range_of(frame)


def color_range_of(frame: Any) -> int:
    """AVColorRange of an `av.VideoFrame`; limited where the stream is silent."""
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL
    return FULL if full else LIMITED


def fps_id(fps: float) -> int:
    """A frame rate as SVD's conditioning takes it: rounded, minus 1, at least 0. The released model was trained so."""
    return max(0, round(fps) - 1)
