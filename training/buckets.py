"""Sizes for samples of different shape: one area, several aspect ratios; a batch holds samples of one size.

The paper trains at fixed sizes (App. D); buckets lose less of what is portrait or wide to the crop.
"""

import math
from collections.abc import Sequence

from clipmill.errors import UserError


def bucket_sizes(*, area_px: int, aspect_ratios: Sequence[float], multiple_px: int = 64) -> tuple[tuple[int, int], ...]:
    """(height, width) for each aspect ratio (width / height), multiples of `multiple_px`, of about `area_px` pixels.

    Among the multiples around the exact size, the pair counts that is closest in aspect and area together. Ratios that
    lead to the same size give it once. Raises UserError for what cannot be met.
    """
    if area_px < multiple_px**2:
        raise UserError(f"an area of {area_px} px is less than one block of {multiple_px} x {multiple_px} px")
    if not aspect_ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in aspect_ratios):
        raise UserError(f"aspect ratios are width / height, above 0; got {tuple(aspect_ratios)}")
    return tuple(dict.fromkeys(_size(area_px, ratio, multiple_px) for ratio in aspect_ratios))


def nearest_size(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Of `sizes` (height, width) the one whose aspect ratio is nearest, as a factor; of equals the first."""
    return min(sizes, key=lambda size: abs(math.log(size[1] * height / (size[0] * width))))


def _size(area_px: int, aspect_ratio: float, multiple_px: int) -> tuple[int, int]:
    exact_height = math.sqrt(area_px / aspect_ratio) / multiple_px
    exact_width = math.sqrt(area_px * aspect_ratio) / multiple_px
    around = [
        (max(1, math.floor(exact_height) + down), max(1, math.floor(exact_width) + right))
        for down in (0, 1)
        for right in (0, 1)
    ]
    # The distance in log height and log width: equal parts of aspect and area.
    blocks = min(around, key=lambda size: math.hypot(math.log(size[0] / exact_height), math.log(size[1] / exact_width)))
    return blocks[0] * multiple_px, blocks[1] * multiple_px
