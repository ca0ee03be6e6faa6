"""Fit decoded frames to the size of a training sample: crop, turn upright, scale to cover, cut out.

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
        filters = _SHRINK if self._shrinks else _ENLARGE
        if self._shrinks and (new_width, new_height) == (picture.width, picture.height) and 0 < new_width % 16 <= 8:
            filters = _ENLARGE  # without ACCURATE_RND, swscale leaves the right-most pixels of such an image black
        if is_hdr(picture):
            gbr = self._tone_map.frame(picture, new_width, new_height, filters).planes
        else:
            colour = {} if picture.format.is_rgb else _colour(picture)
            gbr = self._reformatter.reformat(
                picture, new_width, new_height, "gbrp", interpolation=filters, threads=1, **colour
            ).planes
        planes = [np.frombuffer(memoryview(gbr[i]), np.uint8).reshape(new_height, -1)[:, :new_width] for i in (2, 0, 1)]
        return self._cropped([orientation.upright(plane) for plane in planes])

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


def _colour(picture: av.VideoFrame) -> dict[str, int]:
    matrix, color_range = color_of(picture, min(picture.width, picture.height))
    return {"src_colorspace": matrix, "src_color_range": color_range}
