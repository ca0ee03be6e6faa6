"""Decode one sample of a shard to frames or latents, a caption, and conditioning values (section 4)."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipmill.cropping import NO_MARGINS, Margins
from training.batch import Batch
from training.buckets import bucket_sizes, nearest_size
from training.data_config import DataConfig
from training.frame_choice import Distinct
from training.frames import sample_picture, sample_video
from training.latents import LatentShape, read_latent
from training.metadata import sample_metadata
from training.motion import measure_motion_bucket
from training.sample_error import SampleError

LATENT = "latent.safetensors"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A decoded sample. Holds either `frames_TCHW` or `latent`."""

    key: str
    caption: str
    fps: float
    motion_bucket: float
    elevation: float
    picture: bool
    frames_TCHW: Tensor | None = None
    """uint8 RGB."""
    latent: Mapping[str, Tensor] | None = None
    """mean, logvar (T, C, H, W); ends (2, 3, H, W) uint8; if cached with encoders, embeddings (2, C) and tokens (N, C)
    of the caption.
    """

    @property
    def shape(self) -> tuple[Any, ...]:
        """Samples with equal shapes can be batched."""
        if self.latent is not None:
            return (self.picture, *sorted((name, tuple(value.shape)) for name, value in self.latent.items()))
        assert self.frames_TCHW is not None
        return (self.picture, tuple(self.frames_TCHW.shape))


def read_sample(
    key: str,
    members: Mapping[str, bytes],
    config: DataConfig,
    *,
    seed: int,
    latent_shape: LatentShape | None = None,
) -> Sample:
    """Decode a sample from a shard's files, by extension. Random draws (rate, start, crop, caption) come from `seed`.

    Raises SampleError for unusable samples. Latents are validated against `latent_shape`, and against the frames and
    sizes of `config`, if given.
    """
    rng, metadata = random.Random(seed), sample_metadata(members)
    choice = choose_caption(metadata["captions"], config.captions, rng)
    if choice is None and config.caption_required:
        empty = f"all {len(metadata['captions'])} captions are empty" if metadata["captions"] else "no caption"
        raise SampleError("no_caption", empty)
    caption = metadata["captions"][choice]["text"] if choice is not None else ""
    motion_bucket, elevation = _conditioning(metadata["conditioning"], config)
    make_sample = partial(Sample, key=key, caption=caption, elevation=elevation)
    if LATENT in members:
        latent_metadata = _field(metadata, "latent", dict)
        fps, picture = _number(latent_metadata, "fps", 0, 1e6), _field(latent_metadata, "picture", bool)
        if not fps:
            raise SampleError("missing_field", "expected latent.fps above 0 in its JSON")
        latent = read_latent(members[LATENT], choice, latent_shape)
        if latent_shape is not None:
            _check_size(latent, config, picture=picture)
        if motion_bucket is None:
            motion_bucket = _unmeasured(picture=picture)
        return make_sample(fps=fps, motion_bucket=motion_bucket, picture=picture, latent=latent)
    size_for = partial(nearest_size, sizes_px(config))
    if "jpg" in members:
        frames_TCHW = sample_picture(members["jpg"], size_for=size_for, crop=config.crop, rng=rng)
        fps = 1.0
    else:
        video = sample_video(
            members["mp4"],
            lengths=frame_counts(config),
            rates=config.fps,
            size_for=size_for,
            crop=config.crop,
            rng=rng,
            reader=config.reader,
            distinct=_distinct(metadata),
            margins=_margins(metadata),
        )
        frames_TCHW, fps = video.frames_TCHW, video.fps
    if motion_bucket is None:
        motion_bucket = measure_motion_bucket(frames_TCHW, fps) or 0.0
    return make_sample(
        fps=fps, motion_bucket=motion_bucket, picture="jpg" in members, frames_TCHW=torch.from_numpy(frames_TCHW)
    )


def choose_caption(
    captions: Sequence[Mapping[str, Any]], shares: Mapping[str, float], rng: random.Random
) -> int | None:
    """Index of a non-empty caption, or None. A source is drawn by probability among those present, then one of its
    captions uniformly; the first caption is used if no source is configured or present.

    The paper draws CoCa, V-BLIP and the merged caption with 0.5, 0.25 and 0.25 (section 3.1).
    """
    by_source: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        if caption.get("text"):
            by_source.setdefault(str(caption.get("source", "")).partition(":")[0], []).append(i)
    counting = [source for source in by_source if shares.get(source, 0.0) > 0]
    if counting:
        source = rng.choices(counting, [shares[source] for source in counting])[0]
        return rng.choice(by_source[source])
    return min((indices[0] for indices in by_source.values()), default=None)


def collate(samples: Sequence[Sample]) -> Batch:
    """Collate samples of one shape into a batch."""
    first = samples[0]

    def stacked(name: str) -> Tensor | None:
        if first.latent is None or name not in first.latent:
            return None
        return torch.stack([sample.latent[name] for sample in samples if sample.latent is not None])

    frames = [sample.frames_TCHW for sample in samples if sample.frames_TCHW is not None]
    return Batch(
        keys=[sample.key for sample in samples],
        captions=[sample.caption for sample in samples],
        fps=torch.tensor([sample.fps for sample in samples]),
        motion_bucket=torch.tensor([sample.motion_bucket for sample in samples]),
        elevation=torch.tensor([sample.elevation for sample in samples]),
        image_only=first.picture,
        frames_BTCHW=torch.stack(frames) if frames else None,
        mean_BTCHW=stacked("mean"),
        logvar_BTCHW=stacked("logvar"),
        ends_BECHW=stacked("ends"),
        image_embeddings_BEC=stacked("embeddings"),
        text_tokens_BNC=stacked("tokens"),
    )


def _check_size(latent: Mapping[str, Tensor], config: DataConfig, *, picture: bool) -> None:
    """Raise SampleError if latents have an unexpected number of frames or size: they would never fill a batch."""
    lengths = frame_counts(config, picture=picture)
    frames, (height, width) = len(latent["mean"]), latent["ends"].shape[-2:]
    if frames not in lengths or (height, width) not in sizes_px(config):
        wanted = " or ".join(f"{h} x {w}" for h, w in sizes_px(config))
        raise SampleError(
            "bad_latent",
            f"has {frames} frames of {height} x {width}; expected {' or '.join(map(str, lengths))} of {wanted}",
        )


def _conditioning(conditioning: Mapping[str, Any], config: DataConfig) -> tuple[float | None, float]:
    """Motion bucket (None: to be measured) and elevation."""
    motion = _number(conditioning, "motion_bucket", 0, 255)
    elevation = _number(conditioning, "elevation", -90, 90)
    if elevation is None and config.elevation:
        raise SampleError("missing_field", "missing conditioning.elevation in its JSON")
    return config.motion_default if motion is None else motion, elevation or 0.0


def _unmeasured(*, picture: bool) -> float:
    """The motion bucket of latents that were cached without one."""
    if not picture:
        raise SampleError("missing_field", "no motion bucket: cache the latents again, or set data.motion_default")
    return 0.0


def _distinct(metadata: Mapping[str, Any]) -> Distinct | None:
    """The distinct frames of the clip, if its shard states that the others repeat them."""
    shape = metadata.get("shape")
    if not isinstance(shape, dict) or shape.get("distinct_frames") is None:
        return None
    frames = shape["distinct_frames"]
    if not _are_indices(frames):
        raise SampleError("bad_field", f"distinct_frames must be ascending indices or null, got {frames!r:.200}")
    if len(frames) == shape.get("frames"):
        return None
    fps = _number(shape, "distinct_fps", 0, 1e6)
    if not fps:
        raise SampleError("missing_field", "expected shape.distinct_fps above 0 in its JSON")
    return Distinct(fps=fps, frames=tuple(frames))


def _are_indices(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        and values[0] >= 0
        and all(before < after for before, after in pairwise(values))
    )


def _margins(metadata: Mapping[str, Any]) -> Margins:
    """Margins to crop from each decoded frame: the bars of a remuxed clip. None if the shard does not state any."""
    shape = metadata.get("shape")
    sides = shape.get("crop") if isinstance(shape, dict) else None
    if sides is None:
        return NO_MARGINS
    if not isinstance(sides, list) or len(sides) != 4 or any(type(px) is not int or px < 0 for px in sides):
        raise SampleError("bad_field", f"expected shape.crop as left, top, right, bottom in pixels, got {sides!r:.200}")
    left, top, right, bottom = sides
    return Margins(left=left, top=top, right=right, bottom=bottom)


def _field(values: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise SampleError("missing_field", f"expected {name!r} of type {kind.__name__} in its JSON, got {value!r:.200}")
    return value


def _number(values: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """None if absent or null."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SampleError("bad_field", f"{name} must be a number between {least:g} and {most:g}, got {value!r:.200}")
    return float(value)


def frame_counts(config: DataConfig, *, picture: bool = False) -> Sequence[int]:
    """Possible numbers of frames of samples."""
    return (1,) if picture else config.lengths or (config.frames,)


def sizes_px(config: DataConfig) -> Sequence[tuple[int, int]]:
    """Possible (height, width) of samples."""
    if config.aspect_ratios:
        return bucket_sizes(area_px=config.height_px * config.width_px, aspect_ratios=config.aspect_ratios)
    return ((config.height_px, config.width_px),)
