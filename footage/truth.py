"""Ground-truth records of a rendered video: NAME.truth.json next to NAME.mp4."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TransitionTruth:
    """One transition. `end_frame` is the first frame that is fully the next shot; of a hard cut, `start_frame`."""

    kind: str
    """hard, black, white, or dissolve (any other gradual change)."""
    effect: str
    """As the `Cut` names it: tells a wipe from a dissolve."""
    start_frame: int
    end_frame: int
    start_pts: int
    end_pts: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class ShotTruth:
    """One shot: its clean frames [start_frame, end_frame), and what is true of them."""

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    caption: str
    camera: str
    speed_px_per_frame: float
    """Of the camera, displayed pixels: the exact flow everywhere for a pan, the mean over the frame for a zoom."""
    shape_speed_px_per_frame: float
    """Of the shape, within the frame."""
    speed_percent_per_s: float | None
    """Mean flow in percent of the shorter side per second; None where a shape makes it hard to say."""
    still: bool
    """Nothing moves and nothing flashes."""
    text: str
    text_area: float
    """Share of the frame inside tight boxes around each line of text."""
    text_boxes: tuple[tuple[int, int, int, int], ...]
    """(left, top, right, bottom) in displayed pixels, right and bottom exclusive."""


@dataclass(frozen=True, kw_only=True)
class FlashTruth:
    """A burst of light in frames [frame, frame + frames). No cut."""

    frame: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of a rendered video. Times are exactly those of the file's timestamps."""

    file: str
    frames: int
    fps: float
    """Nominal."""
    variable_fps: bool
    width: int
    height: int
    """Displayed: rotation and pixel aspect applied."""
    codec: str
    pixel_format: str
    rotation: int
    sample_aspect_ratio: str
    time_base: str
    start_s: float
    duration_s: float
    """From the first timestamp to the end of the last frame, which lasts as long as the median frame."""
    transitions: tuple[TransitionTruth, ...]
    shots: tuple[ShotTruth, ...]
    flashes: tuple[FlashTruth, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Read a NAME.truth.json."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["transitions"] = tuple(TransitionTruth(**value) for value in values["transitions"])
        values["flashes"] = tuple(FlashTruth(**value) for value in values["flashes"])
        values["shots"] = tuple(
            ShotTruth(**{**value, "text_boxes": tuple(tuple(box) for box in value["text_boxes"])})
            for value in values["shots"]
        )
        return cls(**values)
