"""Elements of rendered footage: textured backgrounds, soft shapes, lettering, and their colors.

Everything is drawn from numbers and a seed, so the ground truth of each frame is known. Images are BGR, as in OpenCV.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Field = NDArray[np.float32]

SHAPE_COLORS = MappingProxyType(
    {
        "red": (222, 62, 66),
        "orange": (246, 140, 40),
        "yellow": (255, 216, 66),
        "green": (46, 168, 92),
        "blue": (44, 108, 220),
        "purple": (138, 70, 190),
        "white": (250, 248, 242),
        "black": (34, 36, 44),
    }
)
"""RGB fill of a shape, by its name in captions."""

BACKGROUND_TONES = MappingProxyType(
    {
        "red": ((140, 54, 62), (222, 136, 126)),
        "orange": ((176, 96, 50), (240, 182, 122)),
        "yellow": ((188, 146, 60), (248, 224, 146)),
        "green": ((44, 98, 78), (148, 194, 128)),
        "blue": ((38, 78, 134), (130, 186, 220)),
        "purple": ((84, 62, 132), (180, 154, 214)),
    }
)
"""RGB of the dark and the light tone of a background, by its name in captions."""

LEAST_CONTRAST = 42.0
"""Minimum distance in CIE Lab between a shape and either tone of its background."""

_LIGHT_DIRECTION = (-0.6, -0.8)
_SUPERSAMPLE = 4


def fractal_noise(height: int, width: int, *, coarse_px: float, fine_px: float, seed: int) -> Field:
    """(height, width) noise with mean 0 and standard deviation 1, with octaves from `coarse_px` to `fine_px`."""
    total = np.zeros((height, width), np.float32)
    cell_px, octave = coarse_px, 0
    while octave == 0 or cell_px >= fine_px:
        rng = np.random.default_rng([seed, octave])
        rows, columns = int(height / cell_px) + 4, int(width / cell_px) + 4
        grid = rng.standard_normal((rows, columns), np.float32)
        to_grid = np.array([[1 / cell_px, 0, 1], [0, 1 / cell_px, 1]], np.float32)
        layer = cv2.warpAffine(grid, to_grid, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        total += layer * np.float32((cell_px / coarse_px) ** 0.6)
        cell_px, octave = cell_px / 2, octave + 1
    return (total - total.mean()) / max(float(total.std()), 1e-6)


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """Coordinates for painting a background: warped, in units of 1/180 of the frame's short side."""

    x: Field
    y: Field
    unit_px: float
    seed: int

    def noise(self, coarse: float, fine: float, salt: int) -> Field:
        height, width = self.x.shape
        coarse_px, fine_px = coarse * self.unit_px, fine * self.unit_px
        return fractal_noise(height, width, coarse_px=coarse_px, fine_px=fine_px, seed=self.seed * 16 + salt)


def _soft(wave: Field, sharpness: float) -> Field:
    return 0.5 + 0.5 * np.tanh(sharpness * wave)


def _turned(ground: _Ground) -> tuple[Field, Field]:
    angle = np.random.default_rng([ground.seed, 99]).uniform(0.15, 1.4)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return ground.x * cos + ground.y * sin, ground.y * cos - ground.x * sin


def _striped(ground: _Ground) -> Field:
    across, _ = _turned(ground)
    return _soft(np.sin(across * (2 * np.pi / 34)), 3.0)


def _checked(ground: _Ground) -> Field:
    across, along = _turned(ground)
    return _soft(np.sin(across * (np.pi / 24)) * np.sin(along * (np.pi / 24)), 5.0)


def _wavy(ground: _Ground) -> Field:
    crest = np.abs(np.sin((ground.y + 5 * np.sin(ground.x / 17)) * (np.pi / 26)))
    return 1 - crest**0.7


def _cloudy(ground: _Ground) -> Field:
    return _soft(ground.noise(70, 6, 4) + 0.35 * ground.noise(16, 4, 6), 0.9)


def _dotted(ground: _Ground) -> Field:
    height, width = ground.x.shape
    pitch, rng = 30 * ground.unit_px, np.random.default_rng([ground.seed, 7])
    field = np.zeros((height, width), np.float32)
    for row in range(int(height / pitch) + 2):
        for column in range(int(width / pitch) + 2):
            x = (column + 0.5 * (row % 2) + rng.uniform(-0.14, 0.14)) * pitch
            y = (row * 0.87 + rng.uniform(-0.14, 0.14)) * pitch
            center, radius = (int(x * 16), int(y * 16)), int(rng.uniform(0.24, 0.36) * pitch * 16)
            cv2.circle(field, center, radius, 1.0, -1, cv2.LINE_8, 4)
    return cv2.GaussianBlur(field, (0, 0), 0.7 * ground.unit_px)  # type: ignore[return-value]


def _stony(ground: _Ground) -> Field:
    height, width = ground.x.shape
    rng, pitch = np.random.default_rng([ground.seed, 8]), 26 * ground.unit_px
    rows, columns = np.mgrid[-1 : height / pitch + 1, -1 : width / pitch + 1]
    jitter = rng.uniform(0.08, 0.92, (2, *rows.shape))
    y = ((rows + jitter[0]) * pitch).astype(int).clip(0, height - 1)
    x = ((columns + jitter[1]) * pitch).astype(int).clip(0, width - 1)
    seeds = np.full((height, width), 255, np.uint8)
    seeds[y, x] = 0
    _, stone = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    tone = rng.uniform(0.25, 1.0, int(stone.max()) + 1).astype(np.float32)[stone]
    gap = cv2.morphologyEx(stone.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    to_gap = cv2.distanceTransform((~gap).astype(np.uint8), cv2.DIST_L2, 5) / ground.unit_px
    return tone * np.clip(to_gap / 4.5, 0, 1).astype(np.float32) ** 0.6


BACKGROUNDS: MappingProxyType[str, tuple[str, Callable[[_Ground], Field]]] = MappingProxyType(
    {
        "striped": ("field", _striped),
        "checked": ("floor", _checked),
        "wavy": ("sea", _wavy),
        "cloudy": ("sky", _cloudy),
        "dotted": ("wall", _dotted),
        "stony": ("ground", _stony),
    }
)
"""Adjective in captions -> its noun and the function that paints the pattern (0 dark to 1 light)."""


def background(kind: str, color: str, *, width: int, height: int, unit_px: float, seed: int) -> Picture:
    """(height, width, 3) uint8 BGR: a lit, uneven pattern with detail everywhere and at every scale, without
    repetition.

    unit_px: 1/180 of the short side of the frame that it fills, in pixels of this image.
    """
    rows = np.arange(height, dtype=np.float32)[:, None] / np.float32(unit_px)
    columns = np.arange(width, dtype=np.float32)[None, :] / np.float32(unit_px)
    flat = _Ground(x=np.broadcast_to(columns, (height, width)), y=rows + 0 * columns, unit_px=unit_px, seed=seed)
    ground = _Ground(
        x=flat.x + 4.5 * flat.noise(80, 20, 1),
        y=flat.y + 4.5 * flat.noise(80, 20, 2),
        unit_px=unit_px,
        seed=seed,
    )
    pattern = BACKGROUNDS[kind][1](ground)
    grain = flat.noise(24, 2 / unit_px, 3)
    relief = cv2.GaussianBlur(pattern, (0, 0), unit_px) * 5 + grain * 0.55
    light_x, light_y = _LIGHT_DIRECTION
    slope = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * light_x + cv2.Sobel(relief, cv2.CV_32F, 0, 1) * light_y
    tone = 0.12 + 0.7 * pattern + 0.065 * grain + 0.09 * flat.noise(150, 70, 5)
    # A little past the two tones is allowed: flat clipped areas would have no detail to follow.
    tone = np.clip(tone - np.tanh(slope * 0.35 * unit_px**0.5) * 0.17, -0.12, 1.1)
    deep, light = (np.array(rgb[::-1], np.float32) for rgb in BACKGROUND_TONES[color])
    return np.clip(deep + (light - deep) * tone[:, :, None] + 0.5, 0, 255).astype(np.uint8)


def contrast(shape_color: str, background_color: str) -> float:
    """Distance in CIE Lab between a shape's color and the nearer tone of a background."""
    colors = [SHAPE_COLORS[shape_color], *BACKGROUND_TONES[background_color]]
    fill, *tones = cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    return float(min(np.linalg.norm(fill - tone) for tone in tones))


def _regular(corners: int, radii: tuple[float, ...], turn_deg: float, *, drop: float = 0.0) -> NDArray[np.float64]:
    angles = np.deg2rad(turn_deg) + np.arange(corners) * (2 * np.pi / corners)
    radius = np.resize(radii, corners)
    return np.stack([np.cos(angles) * radius, np.sin(angles) * radius + drop], 1)


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 16.5


SHAPES: MappingProxyType[str, NDArray[np.float64]] = MappingProxyType(
    {
        "circle": _regular(180, (0.95,), 0),
        "square": _regular(4, (1.18,), 45),
        "triangle": _regular(3, (1.12,), -90, drop=0.2),
        "star": _regular(10, (1.05, 0.46), -90, drop=0.05),
        "heart": _heart(),
    }
)
"""Outlines in a box from -1 to 1, by their name in captions."""


def shape_sprite(shape: str, color: str, *, size_px: float) -> Field:
    """(side, side, 4) float32: premultiplied BGR (0 to 255) and alpha (0 to 1) of a shaded shape with its shadow.

    The shape is centered and `size_px` wide; the side is about 1.4 times that.
    """
    radius, side = size_px * _SUPERSAMPLE / 2, int(size_px * 0.7 + 2) * 2 * _SUPERSAMPLE
    outline = SHAPES[shape] * radius * 0.94 + side / 2
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    # A thin stroke of the same colour rounds the corners off.
    cv2.polylines(mask, [np.round(outline).astype(np.int32)], True, 255, max(1, int(radius * 0.1)), cv2.LINE_AA)
    alpha = mask.astype(np.float32) / 255
    bevel = cv2.GaussianBlur(alpha, (0, 0), radius * 0.09)
    light_x, light_y = _LIGHT_DIRECTION
    slope = cv2.Sobel(bevel, cv2.CV_32F, 1, 0) * -light_x + cv2.Sobel(bevel, cv2.CV_32F, 0, 1) * -light_y
    ramp = np.linspace(1.1, 0.86, side, dtype=np.float32)
    shade = (ramp[:, None] + ramp[None, :]) / 2 + slope * (radius * 0.01)
    fill = np.array(SHAPE_COLORS[color][::-1], np.float32)
    lit = np.clip(fill * shade[:, :, None] + np.clip(shade - 1.05, 0, 1)[:, :, None] * 140, 0, 255)
    fallen = np.array([[1, 0, radius * 0.06], [0, 1, radius * 0.12]])
    shadow = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), radius * 0.08), fallen, (side, side)) * 0.42
    cover = alpha + shadow * (1 - alpha)
    sprite = np.dstack([lit * alpha[:, :, None], cover]).astype(np.float32)
    size = side // _SUPERSAMPLE
    return cv2.resize(sprite, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Lettering:
    """Text drawn for one frame size."""

    layer: Field
    """(rows, width, 4) float32, as in `shape_sprite`: the strip of the frame that contains the text."""
    top_px: int
    """First row of the strip in the frame."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """(left, top, right, bottom) in pixels, right and bottom exclusive: tight around the letters of each line."""


def lettering(text: str, *, width: int, height: int, size: float, place: str) -> Lettering:
    """White letters with a dark outline, centered.

    size: letter height as a share of the frame's, less if too wide. place: "top", "middle" or "bottom".
    """
    lines = text.split("\n")
    font_px = max(6.0, size * height)
    widest = max(ImageFont.load_default(font_px).getlength(line) for line in lines)
    font_px = min(font_px, font_px * 0.9 * width / widest)
    font, pitch = ImageFont.load_default(font_px), font_px * 1.25
    room = height - pitch * len(lines)
    top = room * {"top": 0.08, "middle": 0.5, "bottom": 0.92}[place]
    ink, rim = (np.zeros((height, width), np.uint8) for _ in range(2))
    boxes = []
    for i, line in enumerate(lines):
        middle = (width / 2, top + (i + 0.5) * pitch)
        letters = _drawn(line, font, middle, (width, height), stroke_px=0)
        left, upper, across, down = cv2.boundingRect((letters > 96).astype(np.uint8))
        boxes.append((left, upper, left + across, upper + down))
        np.maximum(ink, letters, out=ink)
        np.maximum(rim, _drawn(line, font, middle, (width, height), max(1, round(font_px / 16))), out=rim)
    layer = _rimmed(ink, rim, glow_px=max(1.0, font_px / 7))
    rows = np.flatnonzero(layer[:, :, 3].max(axis=1) > 0.004)
    strip = layer[rows[0] : rows[-1] + 1]
    return Lettering(layer=strip, top_px=int(rows[0]), boxes=tuple(boxes))


def _drawn(
    line: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    middle: tuple[float, float],
    size: tuple[int, int],
    stroke_px: int,
) -> Picture:
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).text(middle, line, 255, font, anchor="mm", stroke_width=stroke_px)
    return np.asarray(canvas)


def _rimmed(letters: Picture, outline: Picture, *, glow_px: float) -> Field:
    ink, rim = (mask.astype(np.float32) / np.float32(255) for mask in (letters, outline))
    edge = np.maximum(rim * 0.85, cv2.GaussianBlur(rim, (0, 0), glow_px) * 0.55)
    white, navy = (np.array(bgr, np.float32) for bgr in ((250, 252, 255), (34, 24, 20)))
    color = ink[:, :, None] * white + ((1 - ink) * edge)[:, :, None] * navy
    return np.dstack([color, ink + edge * (1 - ink)]).astype(np.float32)
