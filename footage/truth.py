"""Ground-truth records of a rendered video: NAME.truth.json next to NAME.mp4."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TransitionTruth:
    """One transition. `end_frame` is the first frame that is entirely the next shot; for a hard cut, `start_frame`."""

    kind: str
    """hard, black, white, or dissolve (any other gradual change)."""
    effect: str
    """Effect of the `Cut`, which distinguishes a wipe from a dissolve."""
    start_frame: int
    end_frame: int
    start_pts: int
    end_pts: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class ShotTruth:
    """One shot: its clean frames [start_frame, end_frame), and their ground truth."""

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    caption: str
    camera: str
    speed_px_per_frame: float
    """Speed of the camera in displayed pixels: the exact flow for a pan, the mean over the frame for a zoom."""
    shape_speed_px_per_frame: float
    """Speed of the shape within the frame."""
    speed_percent_per_s: float | None
    """Mean flow in percent of the shorter side per second; None for shots with a shape, whose mean flow is not exact.
    """
    still: bool
    """Whether nothing moves or flashes."""
    text: str
    text_area: float
    """Share of the frame inside tight boxes around each line of text."""
    text_boxes: tuple[tuple[int, int, int, int], ...]
    """(left, top, right, bottom) in displayed pixels, right and bottom exclusive."""


@dataclass(frozen=True, kw_only=True)
class FlashTruth:
    """A flash in frames [frame, frame + frames); not a cut."""

    frame: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of a rendered video. Times are exactly the file's timestamps."""

    file: str
    frames: int
    fps: float
    """Nominal frame rate."""
    variable_fps: bool
    width: int
    height: int
    """As displayed: rotation and pixel aspect ratio applied."""
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
