"""What is taken from a clip for training: frames, size, rate, caption (section 4, App. D)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from clipmill.config import StrictConfig

Crop = Literal["random", "center"]
Reader = Literal["pyav", "decord"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(StrictConfig):
    """How samples are made of clips or pictures."""

    frames: Count = 14
    """Frames per sample; 1 trains an image network."""
    height_px: Count = 576
    """Height of a sample."""
    width_px: Count = 1024
    """Width of a sample."""
    fps: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (6.0, 8.0, 12.0)
    """Frame rates to draw from; a rate above the clip's own becomes the clip's own."""
    batch_size: Count = 1
    """Samples that go through the network at once, on one rank."""
    captions: Mapping[str, Annotated[float, Field(ge=0)]] = {}
    """Source of a caption (what comes before a colon) -> probability, among the sources that a sample has; empty: the
    first caption."""
    caption_required: bool = False
    """Whether a sample without a caption counts as broken; otherwise it is trained on without text."""
    crop: Crop = "center"
    """Which part of a frame with another aspect ratio is taken."""
    aspect_ratios: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Width / height of the sizes that a sample may get, all of about one area; empty: `height_px` x `width_px`."""
    lengths: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Numbers of frames that a sample may get, the greatest that it is long enough for; empty: `frames`."""
    motion_default: float | None = 127.0
    """Motion bucket of clips whose motion is not known; null: such clips count as broken."""
    elevation: bool = False
    """Whether samples must give the camera's elevation, for multi-view."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes per rank that read and decode samples; 0 reads in the training process. Raise it if the metrics show
    steps waiting for data."""
    prefetch: Count = 2
    """Batches that each worker keeps ready."""
    reader: Reader = "pyav"
    """Library that decodes clips: `pyav`, or `decord` where it is installed."""
    max_broken_share: Share = 0.05
    """Share of broken samples above which the run stops."""
    seed: int = 0
    """Seed of the order of samples and of what is drawn per sample: rate, start, crop, caption."""

    @field_validator("fps", "aspect_ratios", "lengths", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """One value is a list of it."""
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.captions and not sum(self.captions.values()):
            raise ValueError(f"captions: expected probabilities with a sum above 0, got {dict(self.captions)}")
        return self
