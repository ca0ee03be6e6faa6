"""A decoded frame as it is displayed: upright, square pixels, even size, planar 4:2:0 with 8 bits, for an encoder."""

from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from clipmill.cropping import NO_MARGINS, Cropper, Margins
from clipmill.hdr import ToneMap, is_hdr
from clipmill.video import UPRIGHT, color_range_of
from curation.video.resize import PLANAR_420, turn_upright

if TYPE_CHECKING:
    from curation.video.info import VideoInfo

_SCALING = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class DisplayTransform:
    """Brings the frames of one video into shape. A frame that is in shape already passes untouched; HDR becomes SDR.

    Odd sizes lose their last row or column: 4:2:0 has none, and resampling all for one column would blur all.
    """

    def __init__(self, info: "VideoInfo", bars: Margins = NO_MARGINS) -> None:
        """`bars` are cut off, in pixels of the decoded frame."""
        self._orientation, self._aspect = info.orientation, info.sample_aspect_ratio
        self._crop = Cropper(bars)
        self._reformatter = VideoReformatter()
        self._tone_map = ToneMap(info.bright_nits)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame in shape, with the source's colour tags; RGB and HDR become BT.709, limited range."""
        frame = self._crop(frame)
        # A single row or column is doubled.
        width, height = max(2, round(frame.width * self._aspect)), max(2, frame.height)
        stretched = (width, height) != (frame.width, frame.height)
        if is_hdr(frame):
            frame = self._tone_map.frame(frame, width, height, _SCALING)
        even = width % 2 == 0 and height % 2 == 0
        planar = frame.format.name in PLANAR_420
        if planar and even and not stretched and self._orientation == UPRIGHT:
            return frame
        if not planar or stretched:
            frame = self._converted(frame, width, height)
        planes = [turn_upright(plane, self._orientation) for plane in _even_planes(frame)]
        height, width = planes[0].shape
        shaped = av.VideoFrame.from_ndarray(
            np.concatenate([plane.reshape(-1) for plane in planes]).reshape(height * 3 // 2, width), "yuv420p"
        )
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(shaped, tag, getattr(frame, tag))
        if frame.format.name == "yuvj420p":
            shaped.color_range = ColorRange.JPEG
        return shaped

    def _converted(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        rgb = frame.format.is_rgb
        color_range = ColorRange.MPEG if rgb else color_range_of(frame)
        return self._reformatter.reformat(
            frame,
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709 if rgb else None,
            src_color_range=ColorRange.JPEG if rgb else color_range,
            dst_color_range=color_range,
            interpolation=_SCALING,
            threads=1,
        )


def _even_planes(frame: av.VideoFrame) -> list[NDArray[Any]]:
    """Y, U and V without the last row or column of an odd size."""
    half_width, half_height = frame.width // 2, frame.height // 2
    sizes = ((2 * half_height, 2 * half_width), (half_height, half_width), (half_height, half_width))
    planes = []
    for plane, (height, width) in zip(frame.planes, sizes, strict=True):
        pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        planes.append(pixels[:height, :width])
    return planes
