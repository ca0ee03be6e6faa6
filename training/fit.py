"""Fit decoded frames to the size of a training sample: remove bars, rotate upright, scale to cover, crop.

Tensor layouts: H, W pixels.
"""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from clipmill.cropping import NO_MARGINS, Cropper, Margins
from clipmill.hdr import ToneMap, is_hdr
from clipmill.video import UPRIGHT, Orientation, color_of, convertible_matrix
from training.data_config import Crop
from training.sample_error import SampleError, check_pixels

Planes = Sequence[NDArray[Any]]
"""An image as red, green and blue planes, each uint8 (H, W)."""
Size = tuple[int, int]
"""(height, width) in pixels."""

# Without FULL_CHR_H_INT swscale halves the horizontal chroma resolution and darkens by one level.
_SHRINK = Interpolation.AREA | Interpolation.FULL_CHR_H_INT
_ENLARGE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

_BLOCK_PX = 16
"""Width of the blocks in which swscale converts."""


class Fit:
    """Scales displayed frames to the target size; size and crop are fixed by the first frame."""

    def __init__(
        self,
        pixel_aspect: Fraction,
        size_for: Callable[[int, int], Size],
        crop: Crop,
        rng: random.Random,
        bright_nits: float | None = None,
        margins: Margins = NO_MARGINS,
    ) -> None:
        self._aspect, self._size_for, self._crop, self._rng = pixel_aspect, size_for, crop, rng
        self._reformatter = VideoReformatter()
        self._tone_map = ToneMap(bright_nits)
        self._cropper = Cropper(margins)
        self._to_last_block: Cropper | None = None
        self.size: Size = (0, 0)
        self._resized: Size = (0, 0)
        self._corner: Size = (0, 0)
        self._shrinks = True

    def _fix_geometry(self, height: int, width: int, *, sideways: bool) -> None:
        """Set up for an upright frame of (height, width) pixels; the pixel aspect is of its stored width, which is the
        height if `sideways`."""
        if self.size != (0, 0):
            return
        aspect_height, aspect_width = (self._aspect, 1) if sideways else (1, self._aspect)
        shown_height, shown_width = max(1, round(height * aspect_height)), max(1, round(width * aspect_width))
        self.size = self._size_for(shown_height, shown_width)
        scale = max(self.size[0] / shown_height, self.size[1] / shown_width)
        self._resized = (
            max(self.size[0], round(shown_height * scale)),
            max(self.size[1], round(shown_width * scale)),
        )
        check_pixels(*self._resized)  # for extreme aspect ratios one side gets very long
        self._shrinks = self._resized[0] <= height and self._resized[1] <= width
        spare = [resized - size for resized, size in zip(self._resized, self.size, strict=True)]
        top, left = (self._rng.randint(0, s) if self._crop == "random" else s // 2 for s in spare)
        self._corner = top, left

    def frame(self, picture: av.VideoFrame, orientation: Orientation) -> Planes:
        """Convert a decoded frame: one swscale pass from the decoder's format to RGB at the target size, then rotate
        and crop.

        Uses planar RGB, since swscale has SIMD code for it but not for interleaved RGB at full chroma resolution.
        """
        matrix = convertible_matrix(picture)
        if matrix is None:
            raise SampleError("decode_error", f"colours of matrix {int(picture.colorspace)} cannot be converted")
        picture.colorspace = matrix
        picture = self._cropper(picture)
        width, height = orientation.shown_size(picture.width, picture.height)
        self._fix_geometry(height, width, sideways=orientation.sideways)
        new_width, new_height = orientation.shown_size(*self._resized[::-1])
        planes = self._rgb(picture, new_width, new_height)
        return self._cropped([orientation.upright(plane) for plane in planes])

    def _rgb(self, picture: av.VideoFrame, width: int, height: int) -> Planes:
        """The frame as red, green and blue, scaled to (width, height)."""
        filters = _SHRINK if self._shrinks else _ENLARGE
        if is_hdr(picture):
            return _planes(self._tone_map.frame(picture, width, height, filters))
        if (width, height) != (picture.width, picture.height) or not 0 < width % _BLOCK_PX <= _BLOCK_PX // 2:
            return self._converted(picture, width, height, filters)
        # Without scaling, swscale converts only whole blocks of such a frame and leaves the right remainder black.
        last = self._last_block(picture)
        if last is None or last.width != _BLOCK_PX:
            return self._converted(picture, width, height, _ENLARGE)
        planes = [plane.copy() for plane in self._converted(picture, width, height, _SHRINK)]
        for plane, right in zip(planes, self._converted(last, _BLOCK_PX, height, _SHRINK), strict=True):
            plane[:, -_BLOCK_PX:] = right
        return planes

    def _last_block(self, picture: av.VideoFrame) -> av.VideoFrame | None:
        """The right-most block of a frame, or slightly more if chroma subsampling requires it."""
        if picture.width < _BLOCK_PX:
            return None
        margins = Margins(left=picture.width - _BLOCK_PX)
        if self._to_last_block is None or self._to_last_block.margins != margins:
            self._to_last_block = Cropper(margins)
        return self._to_last_block(picture)

    def _converted(self, picture: av.VideoFrame, width: int, height: int, filters: Interpolation) -> Planes:
        colour = {} if picture.format.is_rgb else _colour(picture)
        return _planes(
            self._reformatter.reformat(picture, width, height, "gbrp", interpolation=filters, threads=1, **colour)
        )

    def array(self, image: NDArray[Any], orientation: Orientation = UPRIGHT) -> Planes:
        """Resize an upright RGB array (H, W, 3) that was decoded in this orientation."""
        left, top, right, bottom = self._cropper.margins.of_upright(orientation).sides
        inside = image[top : max(0, image.shape[0] - bottom), left : max(0, image.shape[1] - right)]
        image = np.ascontiguousarray(inside if inside.size else image)
        self._fix_geometry(image.shape[0], image.shape[1], sideways=orientation.sideways)
        filters = cv2.INTER_AREA if self._shrinks else cv2.INTER_CUBIC
        if image.shape[:2] != self._resized:
            image = cv2.resize(image, self._resized[::-1], interpolation=filters)
        return self._cropped(cv2.split(image))

    def _cropped(self, planes: Planes) -> Planes:
        (top, left), (height, width) = self._corner, self.size
        return [plane[top : top + height, left : left + width] for plane in planes]


def _planes(gbr: av.VideoFrame) -> Planes:
    """Red, green and blue of a frame in the format gbrp."""
    pixels = [np.frombuffer(memoryview(gbr.planes[i]), np.uint8).reshape(gbr.height, -1) for i in (2, 0, 1)]
    return [plane[:, : gbr.width] for plane in pixels]


def _colour(picture: av.VideoFrame) -> dict[str, int]:
    matrix, color_range = color_of(picture, min(picture.width, picture.height))
    return {"src_colorspace": matrix, "src_color_range": color_range}
