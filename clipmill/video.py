"""What curation and training have to agree on when they read video: containers, limits, display geometry, colour."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

UNSPECIFIED, BT709, BT601, BT2020 = 2, 1, 5, 9
"""AVColorSpace."""
_CONVERTED = (0, 1, 2, 4, 5, 6, 7, 9)
_BT2020_CONSTANT_LUMINANCE = 10
_DERIVED_FROM_PRIMARIES = (12, 13)
_NOT_CONVERTED = (8, 11, 14, 15, 16, 17)
"""YCgCo, YDzDx, ICtCp, IPT, and YCgCo of two kinds."""
LIMITED, FULL = 1, 2
"""AVColorRange."""
PQ, HLG = 16, 18
"""AVColorTransferCharacteristic of SMPTE ST 2084 and ARIB STD-B67."""
HDR_TRANSFERS = (PQ, HLG)
_HD_LINES = 720


def demuxer_options(containers: tuple[str, ...] = CONTAINERS) -> dict[str, str]:
    """Options for `av.open`: these demuxers alone, and no protocol, so that a file cannot name others to open."""
    return {"format_whitelist": ",".join(containers), "protocol_whitelist": "none"}


def pixel_aspect(stated: Fraction | None) -> Fraction:
    """Width of a pixel over its height; 1 where a stream states none, or one that cannot be meant."""
    aspect = Fraction(stated or 1)
    return aspect if Fraction(1, 10) <= aspect <= 10 else Fraction(1)


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a decoded frame becomes upright: one of the eight orientations, as in EXIF."""

    rotation: int = 0
    """Clockwise rotation in degrees: 0, 90, 180, 270."""
    mirrored: bool = False
    """Whether the frame is mirrored left to right before it is rotated."""

    @property
    def sideways(self) -> bool:
        """Whether width and height change places."""
        return self.rotation in (90, 270)

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an upright frame, from those of a decoded one; it is its own inverse."""
        return (height, width) if self.sideways else (width, height)

    def upright(self, image_HWC: NDArray[Any]) -> NDArray[Any]:
        """A view of a decoded image, (H, W) or (H, W, C), as it is displayed."""
        mirrored = image_HWC[:, ::-1] if self.mirrored else image_HWC
        return np.rot90(mirrored, -self.rotation // 90) if self.rotation else mirrored


UPRIGHT = Orientation()


def orientation_of(frame: Any) -> Orientation:
    """Orientation of an `av.VideoFrame` by its display matrix, from the container or the codec; angles between are
    rounded to a quarter turn, and a matrix that cannot be inverted counts as none."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    # x' = a x + c y, y' = b x + d y with y pointing down, in 16.16 fixed point; the others move and project.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    area = a * d - b * c
    if not area:
        return UPRIGHT
    turn_deg = math.degrees(math.atan2(-b, -a) if area < 0 else math.atan2(b, a))
    return Orientation(rotation=round(turn_deg / 90) * 90 % 360, mirrored=area < 0)


def convertible_matrix(frame: Any) -> int | None:
    """AVColorSpace to set on an `av.VideoFrame` of YUV so that swscale converts it; None if its own is not supported.
    swscale refuses matrices that it does not know."""
    matrix, primaries = int(frame.colorspace), int(frame.color_primaries)
    if matrix in _CONVERTED or frame.format.is_rgb:
        return matrix
    if matrix == _BT2020_CONSTANT_LUMINANCE:  # some levels off, in saturated colours
        return BT2020
    if matrix in _DERIVED_FROM_PRIMARIES:
        return primaries if primaries in _CONVERTED else UNSPECIFIED
    return None if matrix in _NOT_CONVERTED else UNSPECIFIED


def color_of(frame: Any, short_side_px: int) -> tuple[int, int]:
    """AVColorSpace and AVColorRange of an `av.VideoFrame` of YUV. Where the stream is silent: BT.2020 for HDR, else
    BT.709 from 720 lines on and BT.601 below; limited range."""
    matrix = int(frame.colorspace)
    if matrix == UNSPECIFIED and int(frame.color_trc) in HDR_TRANSFERS:
        matrix = BT2020
    elif matrix == UNSPECIFIED:
        matrix = BT709 if short_side_px >= _HD_LINES else BT601
    return matrix, color_range_of(frame)


def color_range_of(frame: Any) -> int:
    """AVColorRange of an `av.VideoFrame`; limited where the stream is silent."""
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL
    return FULL if full else LIMITED


def fps_id(fps: float) -> int:
    """A frame rate as SVD's conditioning takes it: rounded, minus 1, at least 0. The released model was trained so."""
    return max(0, round(fps) - 1)
