"""Data settings of a stage: frames, size, frame rate and captions (section 4, App. D)."""

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
    """How clips or images are turned into samples."""

    frames: Count = 14
    """Frames per sample; 1 for an image network."""
    height_px: Count = 576
    """Sample height."""
    width_px: Count = 1024
    """Sample width."""
    fps: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (6.0, 8.0, 12.0)
    """Frame rates to draw from, capped at the clip's own."""
    batch_size: Count = 1
    """Samples per forward pass on each rank."""
    captions: Mapping[str, Annotated[float, Field(ge=0)]] = {}
    """Caption source (the part before a colon) -> probability, renormalized over the sources a sample has. Empty:
    always use the first caption.
    """
    caption_required: bool = False
    """Whether samples without a caption count as broken. If false, they train without text."""
    crop: Crop = "center"
    """How to crop frames with a different aspect ratio."""
    aspect_ratios: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Aspect ratios (width / height) of the size buckets, all of about the same area; empty: always `height_px` x
    `width_px`.
    """
    lengths: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Numbers of frames to choose from: each sample gets the largest its clip is long enough for. Empty: always
    `frames`.
    """
    motion_default: Annotated[float, Field(ge=0, le=255)] | None = None
    """Motion bucket for samples without one; null: it is measured from the sampled frames, and 0 for a single one."""
    elevation: bool = False
    """Whether samples must have a camera elevation, for multi-view."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Data loading processes per rank; 0 loads in the training process. Increase it if `data_wait_s` in the metrics is
    high.
    """
    prefetch: Count = 2
    """Batches prefetched by each worker."""
    read_ahead_mib: Annotated[float, Field(gt=0)] = 64.0
    """MiB of samples that each worker requests ahead of their use from an object store or web server."""
    cache_gib: Annotated[float, Field(ge=0)] = 10.0
    """GiB of samples from there to keep on the local disk for later epochs and restarts, for all processes of a machine
    together; the least recently used ones are removed. 0: none.
    """
    cache_folder: str | None = None
    """Folder for these samples; null: `clipmill/ranges` in `XDG_CACHE_HOME` or `~/.cache`."""
    retry_s: Annotated[float, Field(ge=0)] = 300.0
    """Seconds to repeat a request that an object store or web server does not answer, with growing pauses, before the
    run stops.
    """
    reader: Reader = "pyav"
    """Library for decoding clips: `pyav`, or `decord` if installed."""
    max_broken_share: Share = 0.05
    """Share of broken samples above which the run stops."""
    seed: int = 0
    """Seed for shuffling and per-sample draws: rate, start, crop, caption."""

    @field_validator("fps", "aspect_ratios", "lengths", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Accept a single value as a list of one."""
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.captions and not sum(self.captions.values()):
            raise ValueError(f"captions: expected probabilities with a sum above 0, got {dict(self.captions)}")
        return self
