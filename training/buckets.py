"""Aspect ratio buckets: several sizes of about the same area; each batch holds samples of one size.

The paper trains at fixed sizes (App. D); with buckets, less of portrait or wide footage is cropped.
"""

import math
from collections.abc import Sequence

from clipmill.errors import UserError


def bucket_sizes(*, area_px: int, aspect_ratios: Sequence[float], multiple_px: int = 64) -> tuple[tuple[int, int], ...]:
    """Return a (height, width) of about `area_px` pixels for each aspect ratio (width / height), in multiples of
    `multiple_px`.

    Picks the multiples closest to the exact size in aspect ratio and area combined. Duplicate sizes are returned once.
    Raises UserError for invalid arguments.
    """
    if area_px < multiple_px**2:
        raise UserError(f"expected an area of at least {multiple_px} x {multiple_px} px, got {area_px} px")
    if not aspect_ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in aspect_ratios):
        raise UserError(f"aspect ratios (width / height) must be above 0, got {tuple(aspect_ratios)}")
    return tuple(dict.fromkeys(_size(area_px, ratio, multiple_px) for ratio in aspect_ratios))


def nearest_size(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) in `sizes` with the nearest aspect ratio by factor; the first one on ties."""
    return min(sizes, key=lambda size: abs(math.log(size[1] * height / (size[0] * width))))


def _size(area_px: int, aspect_ratio: float, multiple_px: int) -> tuple[int, int]:
    exact_height = math.sqrt(area_px / aspect_ratio) / multiple_px
    exact_width = math.sqrt(area_px * aspect_ratio) / multiple_px
    around = [
        (max(1, math.floor(exact_height) + down), max(1, math.floor(exact_width) + right))
        for down in (0, 1)
        for right in (0, 1)
    ]
    # Distance in log height and log width weights aspect ratio and area equally.
    blocks = min(around, key=lambda size: math.hypot(math.log(size[0] / exact_height), math.log(size[1] / exact_width)))
    return blocks[0] * multiple_px, blocks[1] * multiple_px
