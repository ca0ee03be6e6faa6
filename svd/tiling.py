"""Process large frames in overlapping, blended tiles to bound the autoencoder's memory.

Each tile is processed independently, so normalization and attention are limited to it: the result approximates that of
the whole frame. All tiles have the same size; a frame that fits into one tile is not split.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Tile size and minimum overlap, in input pixels: of frames to encode, of latents to decode. To encode, both must
    be multiples of the autoencoder's factor.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= self.size // 2:
            raise ValueError(
                f"overlap must be between 1 and half the tile size, got {self.overlap} for size {self.size}"
            )


def tiled(function: Callable[[Tensor], Tensor], x_FCHW: Tensor, tiling: Tiling | None, *, scale: float) -> Tensor:
    """Apply `function(x_FCHW)`, whose output is `scale` times as high and wide, tile by tile and blend the results.

    Peak memory is the output plus one tile of `function`. Raises ValueError if a tile or an overlap would not map to
    whole pixels.
    """
    height, width = x_FCHW.shape[-2:]
    if tiling is None or max(height, width) <= tiling.size:
        return function(x_FCHW)
    step = max(1, round(1 / scale))
    if tiling.size % step or tiling.overlap % step:
        raise ValueError(f"tile size and overlap must be multiples of {step}, got {tiling.size} and {tiling.overlap}")

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
    """Tiles along one axis: the input slice, the output slice, and the weight at each output pixel.

    Tiles start at multiples of `step`, evenly spaced. Weights rise linearly over the overlap; at each pixel the weights
    of all tiles sum to one.
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
