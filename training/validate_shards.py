"""Validate that shards match a stage, before the first step."""

import json
from collections.abc import Mapping
from pathlib import Path

from clipmill.errors import UserError
from svd.model import Model
from training.latents import LatentShape
from training.sample_error import SampleError
from training.samples import LATENT, Sample, frame_counts, read_sample, sizes_px
from training.shards import Shard, ShardIndex
from training.stages import Stage


def validate_shards(
    index: ShardIndex, stage: Stage, model: Model, digests: Mapping[str, str], *, pictures: bool
) -> None:
    """Raise UserError for image samples in a video network's shards, clips in `pictures`, and cached latents with
    another length, size or encoder than the stage's. `digests` are those of the model's weights.

    Checks the latents of one sample per folder: `clipmill cache-latents` writes a folder with one configuration.
    """
    if stage.model.config().temporal:
        _check_media(index, pictures=pictures)
    for shard in {Path(shard.path).parent: shard for shard in reversed(index.shards) if len(shard)}.values():
        first_latent = _first_latent(shard, stage)
        if first_latent is not None:
            _check_shape(*first_latent, stage, model, digests, pictures=pictures)


def latent_shape(stage: Stage, model: Model) -> LatentShape:
    """Expected latent shape of each sample."""
    autoencoder = model.autoencoder.config
    return LatentShape(
        channels=autoencoder.latent_channels,
        factor=autoencoder.factor,
        context_width=stage.model.config().context_width,
    )


def _check_media(index: ShardIndex, *, pictures: bool) -> None:
    wrong = "mp4" if pictures else "jpg"
    for shard in index.shards:
        if wrong in shard.extensions:
            key = shard.key(int((shard.ranges_NE2[:, shard.extensions.index(wrong), 0] >= 0).argmax()))
            if pictures:
                raise UserError(f"{key} is a clip; image shards for joint training must contain images only")
            raise UserError(
                f"{key} is an image, but this stage trains a video network; pass image shards separately (--images) "
                "and set run.image_share"
            )


def _first_latent(shard: Shard, stage: Stage) -> tuple[Sample, dict[str, str]] | None:
    """The first readable latent sample and the digests of the networks that computed it."""
    for row in range(len(shard) if LATENT in shard.extensions else 0):
        members = shard.read(row)
        if LATENT not in members:
            return None
        try:
            sample = read_sample(shard.key(row), members, stage.data, seed=0)
        except SampleError:
            continue
        return sample, json.loads(members["json"])["latent"].get("models") or {}
    return None


def _check_shape(
    sample: Sample,
    computed_with: Mapping[str, str],
    stage: Stage,
    model: Model,
    digests: Mapping[str, str],
    *,
    pictures: bool,
) -> None:
    assert sample.latent is not None
    mean_TCHW, ends_ECHW = sample.latent["mean"], sample.latent["ends"]
    if stage.model.config().temporal and sample.picture != pictures:
        got, expected = ("image", "video") if sample.picture else ("video", "image")
        raise UserError(f"{sample.key} contains {got} latents; expected {expected} latents")
    config, data = model.autoencoder.config, stage.data
    lengths = frame_counts(data, picture=pictures)
    size_px = (ends_ECHW.shape[-2], ends_ECHW.shape[-1])
    if len(mean_TCHW) not in lengths or size_px not in sizes_px(data):
        sizes = " or ".join(f"{height} x {width}" for height, width in sizes_px(data))
        raise UserError(
            f"{sample.key} has latents of {len(mean_TCHW)} frames of {size_px[0]} x {size_px[1]}; stage "
            f"{stage.name!r} expects {' or '.join(map(str, lengths))} of {sizes}: cache latents for this stage"
        )
    latent = (config.latent_channels, size_px[0] // config.factor, size_px[1] // config.factor)
    networks = {"autoencoder", *(_ENCODERS[name] for name in sample.latent if name in _ENCODERS)}
    common = networks & computed_with.keys() & digests.keys()
    other = sorted(name for name in common if computed_with[name] != digests[name])
    if tuple(mean_TCHW.shape[1:]) != latent or other:
        what = " and ".join(other) or "autoencoder"
        raise UserError(
            f"{sample.key} has latents of a different {what.replace('_', ' ')} than the model's: cache latents with "
            "this model, or train with the one that computed them"
        )


_ENCODERS = {"embeddings": "image_encoder", "tokens": "text_encoder"}
"""Network that computes a part of a latent sample, besides the autoencoder."""
