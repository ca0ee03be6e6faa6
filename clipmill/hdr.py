"""HDR pictures (PQ, HLG) to BT.709 SDR: the one tone map for thumbnails, transcodes and training frames.

In order: the signal to linear light (ITU-R BT.2100), the source's primaries to BT.709, colours outside BT.709 moved
towards their grey of equal luminance, highlights rolled off, and the inverse of the BT.1886 display (gamma 2.4). The
roll-off acts on the largest of R, G and B and scales all three alike, so neutral stays neutral and no hue shifts.

How bright the reference white of a video is, no tag says: graphics put it at 100 nits (the default of zimg, FFmpeg's
`zscale`), cameras and graded films at 203 nits (ITU-R BT.2408) with highlights far above. So the video's own bright
level decides: see `bright_nits`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from clipmill.video import FULL, HDR_TRANSFERS, HLG, PQ, color_of, convertible_matrix

PEAK_NITS = MappingProxyType({PQ: 10000.0, HLG: 1000.0})
"""Luminance of the largest signal. HLG is relative; its nominal display has 1000 nits."""

BRIGHT_NITS_TAG = "clipmill_bright_nits"
"""Metadata key of an MP4 with an HDR clip: `bright_nits` of the source that the clip was cut from."""

SAMPLED_FRAMES = 8
"""Keyframes of a video, spread over it, of which `bright_nits` is measured."""

_BT709_PRIMARIES = 1
_BT2020_PRIMARIES = 9
_CHROMATICITIES = MappingProxyType(
    {
        1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709
        5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),  # BT.601, 625 lines
        6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # BT.601, 525 lines
        9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
        12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
    }
)
"""x, y of red, green and blue by AVColorPrimaries; the white point of all is D65."""
_D65 = (0.3127, 0.3290)

_GAMMA = 2.4
_CODES = 4096
"""Of a channel of the HDR signal: 12 bits, below which the steps of PQ are invisible."""
_STEPS = 4096
"""Of the tables behind the square root, per reference white."""
_STRIP_PIXELS = 1 << 16
"""Pixels mapped at a time, so that the arrays stay in the cache."""

_WHITE_NITS = (100.0, 203.0)
_WHITE_FROM_NITS = (150.0, 190.0)
"""A bright level up to the first means that white is at 100 nits, from the second on at 203 nits; between, between."""
_KNEES = (0.95, 0.75)
"""Signal, of 1, from which highlights are rolled off."""
_KNEE_FROM_NITS = (210.0, 500.0)
"""A bright level up to the first means that there are no highlights, from the second on that there are many."""
_BRIGHT_PERCENTILE = 99.0
_BRIGHT_LONG_SIDE_PX = 160


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether the frame is tagged as PQ or HLG."""
    return int(frame.color_trc) in HDR_TRANSFERS


def linear_nits(signal: NDArray[Any], transfer: int) -> NDArray[Any]:
    """Light of a reference display in nits for a nonlinear signal (0 to 1) of any shape, per channel.

    PQ: the EOTF of ITU-R BT.2100, table 4. HLG: table 5 with the OOTF's gamma of 1.2 on each channel, as zimg and
    every SDR display do it; on greys that is the same as on luminance.
    """
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = np.maximum(signal, 0.0) ** (1 / m2)
        light: NDArray[Any] = 10000 * (np.maximum(root - c1, 0.0) / (c2 - c3 * root)) ** (1 / m1)
        return light
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    display: NDArray[Any] = 1000 * np.maximum(scene, 0.0) ** 1.2
    return display


def roll_off(signal: NDArray[Any], knee: float, largest: float) -> NDArray[Any]:
    """The identity up to `knee`, then a curve that bends from slope 1 towards 1, reached at `largest`.

    Signals are display-referred with gamma 2.4 and 1 for reference white. The curve is Reinhard's (2002, equation 4).
    """
    excess = np.maximum(signal - knee, 0.0) / (1 - knee)
    most = (largest - knee) / (1 - knee)
    excess = np.minimum(excess, most)
    rolled = knee + (1 - knee) * excess * (1 + excess / most**2) / (1 + excess)
    return np.where(signal <= knee, signal, rolled)


class ToneMap:
    """Maps frames of one HDR video to BT.709 SDR. `bright_nits` is of the whole video; None if it is unknown."""

    def __init__(self, bright_nits: float | None) -> None:
        self.white_nits = _between(bright_nits, _WHITE_FROM_NITS, _WHITE_NITS)
        """What becomes reference white."""
        self._knee = _between(bright_nits, _KNEE_FROM_NITS, _KNEES)
        self._reformatter = VideoReformatter()
        self._tables: dict[tuple[int, int], _Tables] = {}
        self._luma: dict[tuple[int, int], NDArray[Any]] = {}

    def frame(self, frame: av.VideoFrame, width: int, height: int, interpolation: int) -> av.VideoFrame:
        """The HDR frame scaled to (width, height) and mapped: planar 8-bit RGB (gbrp), tagged BT.709.

        interpolation: swscale's, an `av.video.reformatter.Interpolation`.
        """
        signal = self._signal(frame, width, height, interpolation)
        mapped = av.VideoFrame(width, height, "gbrp")
        sources, targets = (
            [_pixels(plane, np.uint16) for plane in signal.planes],
            [_pixels(plane, np.uint8) for plane in mapped.planes],
        )
        tables = self._tables_of(frame)
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            strip = np.stack([sources[i][top : top + rows] for i in (2, 0, 1)])
            for i, channel in zip((2, 0, 1), self._mapped(strip, tables), strict=True):
                targets[i][top : top + rows] = channel
        mapped.color_primaries = mapped.color_trc = _BT709_PRIMARIES
        mapped.color_range = ColorRange.JPEG
        return mapped

    def sdr(self, signal_CN: NDArray[Any], transfer: int, primaries: int = _BT2020_PRIMARIES) -> NDArray[Any]:
        """The same in closed form, for R, G, B signals (3, N) from 0 to 1; the frames' tables follow it."""
        tables = _Tables(transfer, primaries, self.white_nits, self._knee)
        light = linear_nits(signal_CN, transfer) / self.white_nits
        light = _within_gamut(tables.to_bt709 @ light)
        brightest = np.maximum(light.max(axis=0), 1e-12)
        rolled = roll_off(brightest ** (1 / _GAMMA), self._knee, tables.largest)
        mapped: NDArray[Any] = np.clip(light / brightest, 0.0, 1.0) ** (1 / _GAMMA) * rolled
        return mapped

    def luma(self, luma_HW: NDArray[Any], frame: av.VideoFrame) -> NDArray[Any]:
        """8-bit luma of this HDR frame (any size) as 8-bit luma of the SDR picture, exact for greys."""
        transfer, color_range = int(frame.color_trc), _tags(frame)[1]
        if (transfer, color_range) not in self._luma:
            black, span = (0, 255) if color_range == FULL else (16, 219)
            signal = np.clip((np.arange(256) - black) / span, 0.0, 1.0)
            mapped = self.sdr(np.broadcast_to(signal, (3, 256)), transfer)[1]
            self._luma[transfer, color_range] = np.round(black + span * mapped).astype(np.uint8)
        return self._luma[transfer, color_range][luma_HW]

    def _tables_of(self, frame: av.VideoFrame) -> "_Tables":
        key = int(frame.color_trc), int(frame.color_primaries)
        if key not in self._tables:
            self._tables[key] = _Tables(*key, self.white_nits, self._knee)
        return self._tables[key]

    def _signal(self, frame: av.VideoFrame, width: int, height: int, interpolation: int) -> av.VideoFrame:
        """The frame as nonlinear RGB with 12 bits, full range."""
        return _as_rgb12(self._reformatter, frame, width, height, interpolation)

    def _mapped(self, signal: NDArray[Any], tables: "_Tables") -> NDArray[Any]:
        """uint8 R, G, B (3, rows, W) of 12-bit HDR signals of that shape."""
        light = tables.to_bt709 @ tables.light[signal.reshape(3, -1)]
        light = _within_gamut(light)
        light *= tables.gain[_step(light.max(axis=0), tables.largest_light)]
        mapped: NDArray[Any] = _OUTPUT[_step(light, 1.0)]
        return mapped.reshape(signal.shape)


class _Tables:
    """The closed form, tabulated for one transfer and set of primaries."""

    def __init__(self, transfer: int, primaries: int, white_nits: float, knee: float) -> None:
        self.largest = (PEAK_NITS[transfer] / white_nits) ** (1 / _GAMMA)
        self.largest_light = 2 * PEAK_NITS[transfer] / white_nits
        """Red of BT.2020 is brighter than 1 in BT.709: at most 1.7."""
        self.to_bt709 = _to_bt709(primaries).astype(np.float32)
        nits = linear_nits(np.arange(_CODES) / (_CODES - 1), transfer)
        self.light = (nits / white_nits).astype(np.float32)
        """By code, relative to reference white."""
        brightest = (np.arange(_STEPS * np.ceil(np.sqrt(self.largest_light)) + 1) / _STEPS) ** 2
        brightest[0] = 1e-12
        rolled = roll_off(brightest ** (1 / _GAMMA), knee, self.largest)
        self.gain = (rolled**_GAMMA / brightest).astype(np.float32)
        """Of a pixel, by the square root of its brightest channel."""


def bright_nits(frames: Iterable[av.VideoFrame]) -> float | None:
    """The bright level of a video from some of its HDR frames: the 99th percentile over their pixels of the largest of
    R, G and B. None without frames. It says where reference white is, as peaks do not: a lamp is brighter than paper.
    """
    reformatter, levels = VideoReformatter(), []
    for frame in frames:
        matrix = convertible_matrix(frame)
        if not is_hdr(frame) or matrix is None:
            continue
        frame.colorspace = matrix
        scale = min(1.0, _BRIGHT_LONG_SIDE_PX / max(frame.width, frame.height))
        width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        small = _as_rgb12(reformatter, frame, width, height, Interpolation.AREA)
        signal = np.stack([_pixels(plane, np.uint16).reshape(-1) for plane in small.planes]).max(axis=0)
        levels.append(linear_nits(signal / (_CODES - 1), int(frame.color_trc)))
    return float(np.percentile(np.concatenate(levels), _BRIGHT_PERCENTILE)) if levels else None


def stated_bright_nits(metadata: Mapping[str, str]) -> float | None:
    """`bright_nits` from the metadata of an MP4 of ours."""
    try:
        stated = float(metadata.get(BRIGHT_NITS_TAG, "nan"))
    except ValueError:
        return None
    return stated if math.isfinite(stated) and stated > 0 else None


def bright_nits_of_packets(context: Any, packets: Sequence[av.Packet]) -> float | None:
    """`bright_nits` of keyframes spread over the packets (decode order); `context` decodes them."""
    keys = [packet for packet in packets if packet.is_keyframe and not packet.is_discard]
    frames: list[av.VideoFrame] = []
    for i in sorted({len(keys) * i // SAMPLED_FRAMES for i in range(SAMPLED_FRAMES)}) if keys else ():
        with suppress(av.FFmpegError):
            frames += [*context.decode(keys[i]), *context.decode(None)][:1]
        context.flush_buffers()
    return bright_nits(frames)


_OUTPUT = np.round(255 * (np.arange(_STEPS + 1) / _STEPS) ** (2 / _GAMMA)).astype(np.uint8)
"""8-bit signal by the square root of the light."""


def _between(bright_nits: float | None, levels: tuple[float, float], values: tuple[float, float]) -> float:
    """Geometric interpolation by the bright level; the second value where that is unknown."""
    if bright_nits is None:
        return values[1]
    share = np.clip(math.log(max(bright_nits, 1e-3) / levels[0]) / math.log(levels[1] / levels[0]), 0, 1)
    return float(values[0] * (values[1] / values[0]) ** share)


def _step(light: NDArray[Any], largest: float) -> NDArray[Any]:
    """Index into a table over the square root of light."""
    return (np.sqrt(np.clip(light, 0.0, largest)) * _STEPS + 0.5).astype(np.int32)


def _within_gamut(light_CN: NDArray[Any]) -> NDArray[Any]:
    """Linear BT.709 without negative channels: mixed with the grey of the same luminance, as little as it takes."""
    lowest = light_CN.min(axis=0)
    if not lowest.min() < 0:
        return light_CN
    luminance = np.array([0.2126, 0.7152, 0.0722], light_CN.dtype) @ light_CN
    outside = lowest < 0
    kept = np.where(outside, luminance / np.maximum(luminance - lowest, 1e-9), 1).astype(light_CN.dtype)
    within: NDArray[Any] = np.maximum(luminance + (light_CN - luminance) * kept, 0)
    return within


def _to_bt709(primaries: int) -> NDArray[Any]:
    """3x3 matrix from linear RGB of `primaries` (BT.2020 where they are not known) to linear BT.709."""
    source = _CHROMATICITIES.get(primaries, _CHROMATICITIES[_BT2020_PRIMARIES])
    matrix: NDArray[Any] = np.linalg.inv(_to_xyz(_CHROMATICITIES[_BT709_PRIMARIES])) @ _to_xyz(source)
    return matrix


def _to_xyz(chromaticities: Iterable[tuple[float, float]]) -> NDArray[Any]:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in chromaticities]).T
    white = np.array([_D65[0] / _D65[1], 1.0, (1 - _D65[0] - _D65[1]) / _D65[1]])
    scaled: NDArray[Any] = columns * np.linalg.solve(columns, white)
    return scaled


def _tags(frame: av.VideoFrame) -> tuple[int, int]:
    return color_of(frame, min(frame.width, frame.height))


def _as_rgb12(
    reformatter: VideoReformatter, frame: av.VideoFrame, width: int, height: int, interpolation: int
) -> av.VideoFrame:
    matrix, color_range = _tags(frame)
    colour = {} if frame.format.is_rgb else {"src_colorspace": matrix, "src_color_range": color_range}
    return reformatter.reformat(
        frame,
        width,
        height,
        "gbrp12le",
        dst_color_range=ColorRange.JPEG,
        interpolation=interpolation | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND,
        threads=1,
        **colour,
    )


def _pixels(plane: Any, dtype: type) -> NDArray[Any]:
    """(height, width) view of a plane."""
    row = plane.line_size // np.dtype(dtype).itemsize
    return np.frombuffer(memoryview(plane), dtype).reshape(plane.height, row)[:, : plane.width]
