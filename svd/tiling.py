"""Large frames in overlapping tiles, blended where they overlap: bounded memory for the autoencoder.

A tile is computed as if it were the whole frame, so its normalisations and its attention see the tile alone: the result
is close to the whole frame's, not equal. Every tile has the same size, and a frame that fits into one tile is not cut.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Side of a tile and least overlap of neighbours, in pixels of what is cut: of frames to encode, of latents to
    decode. Both should be multiples of the autoencoder's factor where frames are cut."""

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= self.size // 2:
            raise ValueError(
                f"overlap should be from 1 to half the tile's size, got {self.overlap} for a size of {self.size}"
            )


def tiled(function: Callable[[Tensor], Tensor], x_FCHW: Tensor, tiling: Tiling | None, *, scale: float) -> Tensor:
    """`function(x_FCHW)`, whose result is `scale` times as high and wide, put together from overlapping tiles.

    Peak memory is the result plus what `function` needs for one tile. Raises ValueError where a tile or an overlap
    would not come out as whole pixels.
    """
    height, width = x_FCHW.shape[-2:]
    if tiling is None or max(height, width) <= tiling.size:
        return function(x_FCHW)
    step = max(1, round(1 / scale))
    if tiling.size % step or tiling.overlap % step:
        raise ValueError(f"tile size {tiling.size} and overlap {tiling.overlap} should be multiples of {step}")

    result: Tensor | None = None
    columns = list(_cuts(width, tiling, step, scale))
    for rows_in, rows_out, weight_H in _cuts(height, tiling, step, scale):
        for columns_in, columns_out, weight_W in columns:
            tile_FCHW = function(x_FCHW[:, :, rows_in, columns_in])
            if result is None:
                result = tile_FCHW.new_zeros(*tile_FCHW.shape[:2], round(height * scale), round(width * scale))
            weight_HW = weight_H[:, None] * weight_W
            result[:, :, rows_out, columns_out] += tile_FCHW * weight_HW.to(result)
    assert result is not None
    return result


def _cuts(length: int, tiling: Tiling, step: int, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles along one axis: where each lies in the input and in the result, and its weight at each pixel of the result.

    Tiles start at multiples of `step`, spread evenly. A weight rises linearly over the overlap; at each pixel the
    weights of all tiles sum to one.
    """
    size = min(tiling.size, length)
    count = math.ceil((length - tiling.overlap) / (tiling.size - tiling.overlap)) if size < length else 1
    starts = [(length - size) // step * i // max(count - 1, 1) * step for i in range(count)]

    pixels = torch.arange(round(length * scale)) + 0.5
    ramp = tiling.overlap * scale
    weights = torch.zeros(count, len(pixels))
    for i, start in enumerate(starts):
        rise = (pixels - start * scale) / ramp if i > 0 else torch.ones_like(pixels)
        fall = ((start + size) * scale - pixels) / ramp if i < count - 1 else torch.ones_like(pixels)
        weights[i] = rise.minimum(fall).clamp(0, 1)
    weights /= weights.sum(0)

    for start, weight in zip(starts, weights, strict=True):
        out = slice(round(start * scale), round((start + size) * scale))
        yield slice(start, start + size), out, weight[out]
