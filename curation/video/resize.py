"""Decoded frames made smaller: for cut detection, for optical flow, and for the scorers that look at clips."""

from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from clipmill.hdr import ToneMap, is_hdr
from clipmill.video import Orientation, color_of

if TYPE_CHECKING:
    from curation.video.info import VideoInfo

PLANAR_420 = ("yuv420p", "yuvj420p")
"""Pixel formats whose planes can be read as they are: 8 bits, chroma at half size both ways."""

_MOST_ASPECT = 16
_FILTERED = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

Image = NDArray[Any]
"""uint8 pixels, (height, width) or (height, width, 3); what the three channels are is said where it is made."""


def even_size(width: int, height: int, *, long_side_px: int) -> tuple[int, int]:
    """(width, height) shrunk so that the longer side is at most `long_side_px`; even numbers, never enlarged."""
    scale = min(1.0, long_side_px / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


class FrameResizer:
    """Makes small images out of decoded frames, reading the planes directly where the layout allows.

    8-bit 4:2:0 frames are resized plane by plane (a few times cheaper than a full colour conversion); every other
    pixel format goes through swscale once, at the small size. HDR frames become SDR; `bright_nits` is of their video.
    """

    def __init__(self, bright_nits: float | None = None) -> None:
        self._reformatter = VideoReformatter()
        self._tone_map = ToneMap(bright_nits)

    def i420(self, frame: av.VideoFrame, width: int, height: int) -> list[Image]:
        """Planes Y (height, width), U and V (height / 2, width / 2), uint8, in coded orientation."""
        if frame.format.name not in PLANAR_420:
            frame = self._resized(frame, width, height)
        sizes = ((width, height), (width // 2, height // 2), (width // 2, height // 2))
        return [cv2.resize(_plane(frame, i), size, interpolation=cv2.INTER_LINEAR) for i, size in enumerate(sizes)]

    def small_luma(self, frame: av.VideoFrame, *, long_side_px: int = 80) -> Image:
        """(height, width) uint8 luma in coded orientation, for cut detection: cheap rather than well filtered."""
        scale = min(0.5, long_side_px / max(frame.width, frame.height))
        width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
        if frame.format.name not in PLANAR_420:
            frame = self._resized(frame, 2 * width, 2 * height)
        # Four points for each pixel: interpolating reads only the rows it needs, and halving takes next to nothing.
        luma = cv2.resize(_plane(frame, 0), (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
        return self._sdr(cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA), frame)

    def full_luma(self, frame: av.VideoFrame) -> tuple[Image, int]:
        """(height, width) luma at full size in coded orientation, and its bits: the plane itself where it is one."""
        luma = frame.format.components[0]
        if frame.format.is_rgb or not frame.format.is_planar or (luma.bits > 8 and frame.format.name.startswith("p")):
            frame, bits = self._reformatter.reformat(frame, format="gray", threads=1), 8
        else:
            bits = luma.bits
        return (_plane(frame, 0), 8) if bits == 8 else (_plane(frame, 0, np.uint16), bits)

    def luma(self, frame: av.VideoFrame, info: "VideoInfo", *, short_side_px: int) -> Image:
        """(height, width) uint8 luma with square pixels, in coded orientation, properly filtered: for optical flow.

        The longer side has at most 16 times `short_side_px`: of thinner frames the shorter side has less.
        """
        width, height = max(1, round(frame.width * info.sample_aspect_ratio)), frame.height
        scale = min(short_side_px / min(width, height), _MOST_ASPECT * short_side_px / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if frame.format.name not in PLANAR_420:
            frame = self._resized(frame, 2 * size[0], 2 * size[1])
        luma = _plane(frame, 0)
        # Area averaging by a whole factor is several times cheaper than by a broken one, so go there in two steps.
        factor = 3 if min(luma.shape) >= 3 * short_side_px else 1
        luma = cv2.resize(luma, (size[0] * factor, size[1] * factor), interpolation=cv2.INTER_LINEAR)
        return self._sdr(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), frame)

    def upright_bgr(self, frame: av.VideoFrame, info: "VideoInfo", *, long_side_px: int) -> Image:
        """(height, width, 3) uint8 BGR as displayed: turned upright, square pixels, matrix and range respected."""
        width = max(1, round(frame.width * info.sample_aspect_ratio))
        width, height = even_size(width, frame.height, long_side_px=long_side_px)
        if is_hdr(frame):
            mapped = self._tone_map.frame(frame, width, height, Interpolation.AREA)
            bgr = self._reformatter.reformat(mapped, format="bgr24", threads=1).to_ndarray()
            return turn_upright(bgr, info.orientation)
        if frame.format.is_rgb or frame.format.chroma_width(2) == 2:  # as it is, rather than by way of 4:2:0
            color = {} if frame.format.is_rgb else _color(frame, info)
            bgr = self._reformatter.reformat(
                frame, width, height, "bgr24", interpolation=_FILTERED, threads=1, **color
            ).to_ndarray()
            return turn_upright(bgr, info.orientation)
        small = frame
        if frame.format.name not in PLANAR_420 or (frame.width, frame.height) != (width, height):
            small = av.VideoFrame(width, height, "yuv420p")
            for i, plane in enumerate(self.i420(frame, width, height)):
                np.copyto(_plane(small, i), plane)
        bgr = self._reformatter.reformat(small, format="bgr24", threads=1, **_color(frame, info)).to_ndarray()
        return turn_upright(bgr, info.orientation)

    def _sdr(self, luma: Image, frame: av.VideoFrame) -> Image:
        return self._tone_map.luma(luma, frame) if is_hdr(frame) else luma

    def _resized(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        return self._reformatter.reformat(
            frame, width, height, "yuv420p", interpolation=Interpolation.BILINEAR, threads=1
        )


def _color(frame: av.VideoFrame, info: "VideoInfo") -> dict[str, int]:
    """Matrix and range of YUV, as arguments of `reformat`."""
    matrix, color_range = color_of(frame, min(info.width, info.height))
    return {"src_colorspace": matrix, "src_color_range": color_range}


def turn_upright(image_HWC: Image, orientation: Orientation) -> Image:
    """`Orientation.upright` as contiguous pixels."""
    turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    mirrored = cv2.flip(image_HWC, 1) if orientation.mirrored else image_HWC
    return cv2.rotate(mirrored, turns[orientation.rotation]) if orientation.rotation else mirrored


def _plane(frame: av.VideoFrame, i: int, dtype: type[np.unsignedinteger[Any]] = np.uint8) -> Image:
    plane = frame.planes[i]
    return np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]
