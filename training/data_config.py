"""What is taken from a clip for training: frames, size, rate, caption (section 4, App. D)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from svd.fields import Fields

Crop = Literal["random", "center"]
Reader = Literal["pyav", "decord"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Fields):
    """How samples are made of clips or pictures. Raises ValueError for what cannot be met."""

    frames: int = 14
    """Frames per sample; 1 trains an image network."""
    height_px: int = 576
    """Height of a sample."""
    width_px: int = 1024
    """Width of a sample."""
    fps: tuple[float, ...] = (6.0, 8.0, 12.0)
    """Frame rates to draw from; a rate above the clip's own becomes the clip's own."""
    batch_size: int = 1
    """Samples that go through the network at once, on one rank."""
    captions: Mapping[str, float] = field(default_factory=dict)
    """Source of a caption (what comes before a colon) -> probability, among the sources that a sample has; empty: the
    first caption."""
    caption_required: bool = False
    """Whether a sample without a caption counts as broken; otherwise it is trained on without text."""
    crop: Crop = "center"
    """Which part of a frame with another aspect ratio is taken."""
    aspect_ratios: tuple[float, ...] = ()
    """Width / height of the sizes that a sample may get, all of about one area; empty: `height_px` x `width_px`."""
    lengths: tuple[int, ...] = ()
    """Numbers of frames that a sample may get, the greatest that it is long enough for; empty: `frames`."""
    motion_default: float | None = 127.0
    """Motion bucket of clips whose motion is not known; null: such clips count as broken."""
    elevation: bool = False
    """Whether samples must give the camera's elevation, for multi-view."""
    workers: int = 2
    """Processes per rank that read and decode samples; 0 reads in the training process. Raise it if the metrics show
    steps waiting for data."""
    prefetch: int = 2
    """Batches that each worker keeps ready."""
    reader: Reader = "pyav"
    """Library that decodes clips: `pyav`, or `decord` where it is installed."""
    max_broken_share: float = 0.05
    """Share of broken samples above which the run stops."""
    seed: int = 0
    """Seed of the order of samples and of what is drawn per sample: rate, start, crop, caption."""

    def __post_init__(self) -> None:
        for name in ("frames", "height_px", "width_px", "batch_size", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} should be 1 or more, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"data.workers should be 0 or more, got {self.workers}")
        if not self.fps or min(self.fps) <= 0:
            raise ValueError(f"data.fps should be rates above 0, got {self.fps}")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"data.lengths should be 1 or more, got {self.lengths}")
        if any(share < 0 for share in self.captions.values()) or (self.captions and not sum(self.captions.values())):
            raise ValueError(f"data.captions should be probabilities with a sum above 0, got {dict(self.captions)}")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share should be from 0 to 1, got {self.max_broken_share}")
        for name, known in (("crop", ("random", "center")), ("reader", ("pyav", "decord"))):
            if getattr(self, name) not in known:
                raise ValueError(f"data.{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
