"""One shot of rendered footage: its content, its true caption, and its frame at any time."""

from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from footage.scenes import (
    BACKGROUND_TONES,
    BACKGROUNDS,
    LEAST_CONTRAST,
    SHAPE_COLORS,
    SHAPES,
    Field,
    Lettering,
    Picture,
    background,
    contrast,
    lettering,
    shape_sprite,
)

Vector = NDArray[np.float64]
"""(x, y) in pixels."""

CAMERAS = ("still", "pan", "zoom")
PLACES = ("top", "middle", "bottom")
SHAPE_MOTIONS = MappingProxyType(
    {
        "still": ("stands still", (0, 0)),
        "right": ("moves to the right", (1, 0)),
        "left": ("moves to the left", (-1, 0)),
        "up": ("moves up", (0, -1)),
        "down": ("moves down", (0, 1)),
    }
)
"""Words of the caption and direction (x, y) in the frame, by name."""

MAX_ZOOM = 4.0
"""Maximum magnification: more would require too large a texture."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Content of one shot. Raises ValueError for unknown names, and for a shape that would be hard to see."""

    background: str = "striped"
    background_color: str = "green"
    camera: str = "still"
    speed_px: float = 0.0
    """Camera speed in displayed pixels per frame (at the nominal rate). For a zoom: the mean over the frame, negative
    when zooming out.
    """
    heading_deg: float = 0.0
    """Direction of a panning camera: 0 right, 90 down. The image moves the other way."""
    shape: str | None = None
    shape_color: str = "red"
    shape_motion: str = "still"
    shape_size: float = 0.36
    """Width as a share of the frame's short side."""
    text: str | None = None
    text_size: float = 0.11
    text_place: str = "bottom"
    flash_at_s: float | None = None
    """Time of a flash after the first clean frame. A flash is not a cut."""
    flash_frames: int = 1
    duration_s: float = 2.0
    """Duration of the clean frames, without transitions."""
    seed: int = 0

    def __post_init__(self) -> None:
        for what, name, known in (
            ("background", self.background, BACKGROUNDS),
            ("background color", self.background_color, BACKGROUND_TONES),
            ("camera", self.camera, CAMERAS),
            ("shape", self.shape or "circle", SHAPES),
            ("shape color", self.shape_color, SHAPE_COLORS),
            ("shape motion", self.shape_motion, SHAPE_MOTIONS),
            ("text place", self.text_place, PLACES),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}, expected one of {', '.join(known)}")
        if self.shape and contrast(self.shape_color, self.background_color) < LEAST_CONTRAST:
            raise ValueError(f"a {self.shape_color} shape is hard to see on {self.background_color}")
        if self.duration_s <= 0 or not 0.1 <= self.shape_size <= 0.6 or not 1 <= self.flash_frames <= 2:
            raise ValueError("expected duration_s > 0, shape_size from 0.1 to 0.6, flash_frames 1 or 2")
        if (self.camera == "still") != (self.speed_px == 0):
            raise ValueError(f"camera {self.camera!r} does not go with speed_px {self.speed_px}")

    @property
    def caption(self) -> str:
        """A sentence about the shot in a small vocabulary: its shape and how it moves, or else its camera."""
        place = f"{_article(self.background_color)} {self.background} {BACKGROUNDS[self.background][0]}"
        if self.shape:
            thing = f"{_article(self.shape_color)} {self.shape}"
            return f"{thing} {SHAPE_MOTIONS[self.shape_motion][0]} over {place}"
        if self.camera == "still":
            return f"a still view of {place}"
        if self.camera == "pan":
            return f"the camera pans over {place}"
        return f"the camera zooms {'into' if self.speed_px > 0 else 'out of'} {place}"

    @property
    def moving_shape(self) -> bool:
        return self.shape is not None and self.shape_motion != "still"

    @property
    def still(self) -> bool:
        """Whether nothing moves or flashes: all frames are equal."""
        return self.camera == "still" and not self.moving_shape and self.flash_at_s is None


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


class ShotPainter:
    """Paints the frames of one shot at one size. `seconds`: visible duration, transitions included.

    Raises ValueError if the shot would zoom too far, or its shape has no room to move.
    """

    def __init__(self, shot: Shot, *, width: int, height: int, fps: float, seconds: float) -> None:
        self._shot, self._size, self._seconds = shot, (width, height), seconds
        self._plan_camera(shot.speed_px * fps)
        self._levels: list[Picture] = []
        self._kept: Picture | None = None
        self.lettering: Lettering | None = None
        if shot.text:
            self.lettering = lettering(
                shot.text, width=width, height=height, size=shot.text_size, place=shot.text_place
            )
        self._sprite: Field | None = None
        self.shape_speed_px_per_frame = 0.0
        if shot.shape:
            size_px = shot.shape_size * min(width, height)
            self._sprite = shape_sprite(shot.shape, shot.shape_color, size_px=size_px)
            self._start, self._path = self._plan_shape(size_px)
            self.shape_speed_px_per_frame = float(np.abs(self._path).sum() / (seconds * fps))

    @property
    def text_area(self) -> float:
        """Share of the frame inside the tight boxes around the lines of text."""
        if self.lettering is None:
            return 0.0
        width, height = self._size
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in self.lettering.boxes)
        return area / (width * height)

    def frame(self, time_s: float) -> Picture:
        """(height, width, 3) uint8 BGR, `time_s` after the shot is first visible. Read-only."""
        if self._kept is not None:
            return self._kept
        picture = self._view(time_s)
        if self._sprite is not None:
            _lay_sprite(picture, self._sprite, self._start + self._path * min(1.0, time_s / self._seconds))
        if self.lettering is not None:
            _lay(picture, self.lettering.layer, left=0, top=self.lettering.top_px)
        if self._shot.camera == "still" and not self._shot.moving_shape:
            self._kept = picture
        return picture

    def release(self) -> None:
        """Free cached images; they are painted again when needed."""
        self._levels, self._kept = [], None

    def _plan_camera(self, speed_px_per_s: float) -> None:
        shot, (width, height) = self._shot, self._size
        heading = np.deg2rad(shot.heading_deg)
        pans = shot.camera == "pan"
        self._travel = np.array([np.cos(heading), np.sin(heading)]) * (speed_px_per_s * self._seconds * pans)
        self._zoom_rate = abs(speed_px_per_s) / mean_distance_px(width, height) * (shot.camera == "zoom")
        self._zoom = float(np.exp(self._zoom_rate * self._seconds))
        if self._zoom > MAX_ZOOM:
            raise ValueError(
                f"speed_px {shot.speed_px} zooms {self._zoom:.1f} times within {self._seconds:.1f} s, "
                f"at most {MAX_ZOOM:.0f} are drawn: lower the speed or the duration"
            )

    def _plan_shape(self, size_px: float) -> tuple[Vector, Vector]:
        """Start of the shape's center, and its path: from edge to edge, clear of the text."""
        size = np.array(self._size, float)
        low, high = np.full(2, 0.56 * size_px), size - 0.56 * size_px
        if self.lettering is not None and self._shot.text_place == "top":
            low[1] += self.lettering.boxes[-1][3]
        if self.lettering is not None and self._shot.text_place == "bottom":
            high[1] -= size[1] - self.lettering.boxes[0][1]
        direction = np.array(SHAPE_MOTIONS[self._shot.shape_motion][1], float)
        path = direction * (high - low)
        if np.any(high < low) or (direction.any() and np.abs(path).max() < 0.1 * size.min()):
            raise ValueError(f"a shape of size {self._shot.shape_size} has no room to move: make it smaller")
        middle = low + (high - low) * np.random.default_rng([self._shot.seed, 2]).uniform(0.25, 0.75, 2)
        return np.where(direction > 0, low, np.where(direction < 0, high, middle)), path

    def _paint_levels(self) -> list[Picture]:
        """The background and, for a zoom, half-size copies, so that every magnification has matching detail."""
        width, height = self._size
        across, down = np.ceil(np.array(self._size) * self._zoom + np.abs(self._travel)).astype(int) + 4
        levels = [
            background(
                self._shot.background,
                self._shot.background_color,
                width=int(across),
                height=int(down),
                unit_px=min(width, height) / 180 * self._zoom**0.5,
                seed=self._shot.seed,
            )
        ]
        while self._zoom > 1 and levels[-1].shape[1] > width:
            levels.append(cv2.pyrDown(levels[-1]))  # type: ignore[arg-type]
        return levels

    def _view(self, time_s: float) -> Picture:
        if not self._levels:
            self._levels = self._paint_levels()
        shot = self._shot
        if shot.camera == "still":
            width, height = self._size
            return self._levels[0][:height, :width].copy()
        if shot.camera == "pan":
            corner = self._travel * (time_s / self._seconds) - np.minimum(self._travel, 0) + 1
            return _window(self._levels[0], 1.0, corner, self._size)
        time_left_s = time_s if shot.speed_px < 0 else self._seconds - time_s
        return self._zoomed(float(np.exp(self._zoom_rate * time_left_s)))

    def _zoomed(self, texels: float) -> Picture:
        """The view with `texels` pixels of the full texture per pixel, blended from the two nearest levels."""
        depth = float(np.log2(max(1.0, texels)))
        views = []
        deepest = len(self._levels) - 1
        for level in (min(int(depth), deepest), min(int(depth) + 1, deepest)):
            step = texels / 2**level
            middle = (np.array(self._levels[0].shape[1::-1]) - 1) / 2 / 2**level
            views.append(_window(self._levels[level], step, middle - step * (np.array(self._size) - 1) / 2, self._size))
        return cv2.addWeighted(views[0], 1 - depth % 1, views[1], depth % 1, 0)  # type: ignore[return-value]


def mean_distance_px(width: int, height: int) -> float:
    """Mean distance of a frame's pixels from its center: a zoom's mean flow divided by its rate."""
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height) - (height - 1) / 2
    return float(np.hypot(x[None, :], y[:, None]).mean())


def _window(texture: Picture, step: float, corner: Vector, size: tuple[int, int]) -> Picture:
    """`size` pixels of a texture from `corner` (x, y), `step` texels apart."""
    to_texture = np.array([[step, 0, corner[0]], [0, step, corner[1]]])
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REFLECT
    return cv2.warpAffine(texture, to_texture, size, flags=flags, borderMode=border)  # type: ignore[return-value]


def _lay_sprite(picture: Picture, sprite: Field, center: Vector) -> None:
    side = sprite.shape[0]
    corner = center - (side - 1) / 2
    left, top = np.floor(corner).astype(int)
    by = np.array([[1, 0, corner[0] - left], [0, 1, corner[1] - top]])
    moved = cv2.warpAffine(sprite, by, (side + 1, side + 1))
    height, width = picture.shape[:2]
    rows = slice(max(0, -top), min(side + 1, height - top))
    columns = slice(max(0, -left), min(side + 1, width - left))
    _lay(picture, moved[rows, columns], left=max(0, left), top=max(0, top))  # type: ignore[arg-type]


def _lay(picture: Picture, layer: Field, *, left: int, top: int) -> None:
    height, width = layer.shape[:2]
    under = picture[top : top + height, left : left + width]
    under[:] = (under * (1 - layer[:, :, 3:]) + layer[:, :, :3] + 0.5).astype(np.uint8)
