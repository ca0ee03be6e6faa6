"""Deterministic video encoding: single-threaded, without dates or versions in the file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

CONTAINERS = MappingProxyType({"h264": "mp4", "hevc": "mp4", "mpeg4": "mp4", "av1": "mkv", "vp9": "webm"})
"""Default container (file name suffix) of each supported codec."""

_ENCODERS = MappingProxyType(
    {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
)
_BT709, _BT601, _LIMITED_RANGE = 1, 6, 1


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Encoding settings. Raises ValueError for unsupported combinations."""

    codec: str = "h264"
    container: str = ""
    """File name suffix: mp4, mov, mkv, webm or ts. Empty: the codec's default."""
    pixel_format: str = "yuv420p"
    crf: int = 20
    """Quality on libx264's CRF scale, lower is better; mapped to about the same quality for other codecs."""
    keyframe_s: float = 2.0
    """Maximum distance between keyframes."""
    keyframes_at_cuts: bool = True
    """Let the encoder (h264, hevc, mpeg4) insert keyframes at scene changes."""
    b_frames: int = 3
    open_gop: bool = False
    """h264, hevc: frames before a keyframe may refer to frames after it."""
    rotation: int = 0
    """Clockwise rotation in degrees that a player applies to the stored frames: 0, 90, 180, 270."""
    mirrored: bool = False
    """Whether a player mirrors the stored frames left to right before it rotates them."""
    sample_aspect_ratio: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.codec not in _ENCODERS:
            raise ValueError(f"unknown codec {self.codec!r}, expected one of {', '.join(_ENCODERS)}")
        formats = [known.name for known in av.codec.Codec(_ENCODERS[self.codec], "w").video_formats or ()]
        if self.pixel_format not in formats:
            raise ValueError(
                f"{self.codec} does not support pixel format {self.pixel_format!r}; use one of {', '.join(formats)}"
            )
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation is {self.rotation}, expected 0, 90, 180 or 270")
        if self.rotation and self.suffix not in ("mp4", "mov", "mkv"):
            raise ValueError(f"a {self.suffix} file cannot store a rotation, expected mp4, mov or mkv")
        if self.mirrored and self.suffix not in ("mp4", "mov"):
            raise ValueError(f"a {self.suffix} file cannot store mirroring, expected mp4 or mov")

    @property
    def suffix(self) -> str:
        return self.container or CONTAINERS[self.codec]


def coded_size(width: int, height: int, encoding: Encoding) -> tuple[int, int]:
    """(width, height) of the stored frames of a video displayed at `width` x `height`; both even."""
    if encoding.rotation in (90, 270):
        width, height = height, width
    return round(width / encoding.sample_aspect_ratio / 2) * 2, round(height / 2) * 2


def write_video(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    pts: Iterable[int],
    *,
    time_base: Fraction,
    fps: Fraction,
    width: int,
    height: int,
    encoding: Encoding,
) -> None:
    """Write upright (height, width, 3) uint8 BGR frames with square pixels, shown at `pts` in units of `time_base`.

    fps: nominal rate, used by the encoder for rate control and keyframe placement.
    """
    stored_width, stored_height = coded_size(width, height, encoding)
    colorspace = Colorspace.ITU709 if min(width, height) >= 720 else Colorspace.ITU601
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = _add_stream(container, encoding, fps)
        context = stream.codec_context
        context.width, context.height, context.time_base = stored_width, stored_height, time_base
        tag = _BT709 if colorspace == Colorspace.ITU709 else _BT601
        context.colorspace = context.color_primaries = context.color_trc = tag
        context.color_range = _LIMITED_RANGE
        reformatter = VideoReformatter()
        for picture, stamp in zip(pictures, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(_as_stored(picture, stored_width, stored_height, encoding), "bgr24")
            stored = reformatter.reformat(
                frame,
                format=encoding.pixel_format,
                dst_colorspace=colorspace,
                threads=1,
            )
            stored.pts, stored.time_base = stamp, time_base
            container.mux(context.encode(stored))
        container.mux(context.encode(None))


def _add_stream(container: Any, encoding: Encoding, fps: Fraction) -> Any:
    if encoding.codec == "av1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder logs to stderr by default
    stream = container.add_stream(_ENCODERS[encoding.codec], rate=fps, options=_options(encoding, fps))
    context = stream.codec_context
    context.pix_fmt, context.thread_count = encoding.pixel_format, 1
    context.gop_size = _keyframe_frames(encoding, fps)
    context.sample_aspect_ratio = encoding.sample_aspect_ratio
    if encoding.codec == "mpeg4":
        context.max_b_frames = encoding.b_frames
        context.qmin = context.qmax = max(2, encoding.crf // 6)
    if encoding.rotation or encoding.mirrored:
        stream.set_display_matrix(_display_matrix(encoding))
    return stream


def _display_matrix(encoding: Encoding) -> list[int]:
    """FFmpeg's AV_PKT_DATA_DISPLAYMATRIX: x' = a x + c y, y' = b x + d y in 16.16 fixed point, y pointing down."""
    one = 1 << 16
    cos, sin = {0: (one, 0), 90: (0, one), 180: (-one, 0), 270: (0, -one)}[encoding.rotation]
    side = -1 if encoding.mirrored else 1
    return [side * cos, side * sin, 0, -sin, cos, 0, 0, 0, 1 << 30]


def _as_stored(picture: NDArray[np.uint8], width: int, height: int, encoding: Encoding) -> NDArray[np.uint8]:
    turns = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
    turned = cv2.rotate(picture, turns[encoding.rotation]) if encoding.rotation else picture
    turned = cv2.flip(turned, 1) if encoding.mirrored else turned
    if turned.shape[:2] != (height, width):
        turned = cv2.resize(turned, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(turned, np.uint8)


def _keyframe_frames(encoding: Encoding, fps: Fraction) -> int:
    return max(1, round(encoding.keyframe_s * fps))


def _options(encoding: Encoding, fps: Fraction) -> dict[str, str]:
    crf, keyframe = str(encoding.crf), _keyframe_frames(encoding, fps)
    looser_crf = str(min(63, encoding.crf + 10))
    scenecut = 40 if encoding.keyframes_at_cuts else 0
    open_gop = int(encoding.open_gop)
    if encoding.codec == "h264":
        # mbtree makes libx264 nondeterministic on flat black frames.
        params = f"scenecut={scenecut}:open-gop={open_gop}:bframes={encoding.b_frames}:keyint={keyframe}:mbtree=0"
        return {"preset": "veryfast", "crf": crf, "x264-params": params}
    if encoding.codec == "hevc":
        params = (
            f"log-level=none:pools=none:frame-threads=1:info=0:scenecut={scenecut}:open-gop={open_gop}:"
            f"bframes={encoding.b_frames}:keyint={keyframe}"
        )
        return {"preset": "ultrafast", "crf": crf, "x265-params": params}
    if encoding.codec == "av1":
        return {"preset": "11", "crf": looser_crf, "svtav1-params": "lp=1"}
    if encoding.codec == "vp9":
        return {"deadline": "realtime", "cpu-used": "8", "crf": looser_crf, "b": "0"}
    return {"sc_threshold": "0" if encoding.keyframes_at_cuts else "1000000000"}
