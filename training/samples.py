"""One sample: what a shard holds of it -> frames or latents, a caption, and what the network is told (section 4)."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from training.batch import Batch
from training.buckets import bucket_sizes, nearest_size
from training.data_config import DataConfig
from training.frames import SampleError, sample_picture, sample_video
from training.latents import LatentShape, read_latent

LATENT = "latent.safetensors"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample that is ready to go into a batch. Either `frames_TCHW` is there, or `latent`."""

    key: str
    caption: str
    fps: float
    motion_bucket: float
    elevation: float
    picture: bool
    frames_TCHW: Tensor | None = None
    """uint8 RGB."""
    latent: Mapping[str, Tensor] | None = None
    """mean, logvar (T, C, H, W); ends (2, 3, H, W) uint8; where there were encoders, embeddings (2, C) and tokens
    (N, C) of the caption."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Samples of one shape fit into a batch."""
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
    """The sample of a shard's files, by extension. What is drawn (rate, start, crop, caption) comes from `seed`.

    Raises SampleError for what cannot be trained on. Latents are held against `latent_shape`, and against the frames
    and sizes of `config`, where it is given.
    """
    rng, metadata = random.Random(seed), _metadata(members["json"])
    choice = choose_caption(metadata["captions"], config.captions, rng)
    if choice is None and config.caption_required:
        raise SampleError("no_caption", f"none of its {len(metadata['captions'])} captions has a text")
    caption = metadata["captions"][choice]["text"] if choice is not None else ""
    motion_bucket, elevation = _conditioning(metadata["conditioning"], config)
    make_sample = partial(Sample, key=key, caption=caption, motion_bucket=motion_bucket, elevation=elevation)
    if LATENT in members:
        latent_metadata = _field(metadata, "latent", dict)
        fps, picture = _number(latent_metadata, "fps", 0, 1e6), _field(latent_metadata, "picture", bool)
        if not fps:
            raise SampleError("missing_field", "its JSON has no latent.fps above 0")
        latent = read_latent(members[LATENT], choice, latent_shape)
        if latent_shape is not None:
            _check_size(latent, config, picture=picture)
        return make_sample(fps=fps, picture=picture, latent=latent)
    size_for = partial(nearest_size, sizes_px(config))
    if "jpg" in members:
        frames_TCHW = sample_picture(members["jpg"], size_for=size_for, crop=config.crop, rng=rng)
        fps = 1.0
    else:
        lengths = config.lengths or (config.frames,)
        video = sample_video(
            members["mp4"],
            lengths=lengths,
            rates=config.fps,
            size_for=size_for,
            crop=config.crop,
            rng=rng,
            reader=config.reader,
        )
        frames_TCHW, fps = video.frames_TCHW, video.fps
    return make_sample(fps=fps, picture="jpg" in members, frames_TCHW=torch.from_numpy(frames_TCHW))


def choose_caption(
    captions: Sequence[Mapping[str, Any]], shares: Mapping[str, float], rng: random.Random
) -> int | None:
    """Index of a caption that has a text. A source is drawn with its share, among the sources that are there, then one
    of its captions, all alike; the first caption where no source counts, or none that counts is there. None without
    any text.

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
    """A batch of samples of one shape."""
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
    """Raise SampleError where a sample has other frames than all the others: there would be no batch for it."""
    lengths = (1,) if picture else config.lengths or (config.frames,)
    frames, (height, width) = len(latent["mean"]), latent["ends"].shape[-2:]
    if frames not in lengths or (height, width) not in sizes_px(config):
        wanted = " or ".join(f"{h} x {w}" for h, w in sizes_px(config))
        raise SampleError(
            "bad_latent",
            f"it holds {frames} frames of {height} x {width}; expected {' or '.join(map(str, lengths))} of {wanted}",
        )


def _metadata(content: bytes) -> dict[str, Any]:
    """The sample's JSON. Raises SampleError for one that is none, or lacks what training needs."""
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", str(error)) from error
    for caption in _field(metadata, "captions", list):
        if not isinstance(caption, dict) or not isinstance(caption.get("text"), str | None):
            raise SampleError("bad_field", f"a caption has a text, or null where there is none; got {caption!r:.200}")
    _field(metadata, "conditioning", dict)
    return cast("dict[str, Any]", metadata)


def _conditioning(conditioning: Mapping[str, Any], config: DataConfig) -> tuple[float, float]:
    """Motion bucket and elevation."""
    motion = _number(conditioning, "motion_bucket", 0, 255)
    motion = config.motion_default if motion is None else motion
    if motion is None:
        raise SampleError("missing_field", "its motion bucket is not known, and data.motion_default is none")
    elevation = _number(conditioning, "elevation", -90, 90)
    if elevation is None and config.elevation:
        raise SampleError("missing_field", "its JSON has no conditioning.elevation, in degrees")
    return motion, elevation or 0.0


def _field(values: Any, name: str, kind: type[_T]) -> _T:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind):
        raise SampleError("missing_field", f"its JSON has no {name!r}, or not as {kind.__name__}: {value!r:.200}")
    return value


def _number(values: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """None where it is absent or null."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SampleError("bad_field", f"its {name} should be a number from {least:g} to {most:g}, got {value!r:.200}")
    return float(value)


def sizes_px(config: DataConfig) -> Sequence[tuple[int, int]]:
    """(height, width) that samples may get."""
    if config.aspect_ratios:
        return bucket_sizes(area_px=config.height_px * config.width_px, aspect_ratios=config.aspect_ratios)
    return ((config.height_px, config.width_px),)
