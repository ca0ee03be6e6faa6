"""Shards that a stage cannot be trained on are refused before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from svd.model import Model
from tests.training.shards import about, sample, write_shard
from tests.training.world import tiny_model, tiny_stage
from training.cache_latents import weight_digests
from training.latents import latent_members
from training.shard_index import index_shards
from training.stages import Stage, overlay
from training.validate_shards import validate_shards

STAGE = tiny_stage()


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(STAGE)


def latents(folder: Path, model: Model, *, frames: int = 3, size_px: tuple[int, int] = (32, 48)) -> Path:
    """A shard of one sample, as `clipmill cache-latents` would write it."""
    factor = model.autoencoder.config.factor
    latent = torch.zeros(frames, 4, size_px[0] // factor, size_px[1] // factor)
    members = latent_members(
        about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=torch.zeros(2, 3, *size_px, dtype=torch.uint8),
        fps=8.0, picture=frames == 1, made_with={"models": weight_digests(model)},
    )  # fmt: skip
    write_shard(folder / "latents.tar", [{"__key__": "a", **members}])
    return folder


def check(folder: Path, model: Model, stage: Stage = STAGE, *, pictures: bool = False) -> None:
    validate_shards(index_shards(folder), stage, model, weight_digests(model), pictures=pictures)


def test_latents_of_the_stage_pass_those_of_its_buckets_too(model: Model, tmp_path: Path) -> None:
    check(latents(tmp_path / "same", model), model)
    buckets = {"lengths": [2, 3], "aspect_ratios": [0.5, 2.0], "height_px": 128, "width_px": 128}
    tall = latents(tmp_path / "tall", model, frames=2, size_px=(192, 128))
    check(tall, model, overlay(STAGE, {"data": buckets}))
    with pytest.raises(ValueError, match=r"2 frames of 192 x 128; .* expects 3 of 32 x 48"):
        check(tall, model)


@pytest.mark.parametrize(
    ("frames", "message"), [(4, "latents of 4 frames .* expects 3"), (1, "image latents; expected video latents")]
)
def test_latents_of_other_frames_are_refused(model: Model, tmp_path: Path, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(latents(tmp_path, model, frames=frames), model)


def test_latents_by_another_autoencoder_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latents/a has latents of a different autoencoder than the model's"):
        check(latents(tmp_path, model), tiny_model(STAGE, seed=1))


def test_pictures_and_clips_keep_apart(model: Model, tmp_path: Path) -> None:
    def shard(name: str, *suffixes: str) -> Path:
        write_shard(tmp_path / name / "a.tar", [sample(f"{i}", b"x", suffix) for i, suffix in enumerate(suffixes)])
        return tmp_path / name

    mixed: Any = shard("mixed", "mp4", "jpg")
    with pytest.raises(ValueError, match=r"a/1 is an image.*run.image_share"):
        check(mixed, model)
    with pytest.raises(ValueError, match="a/0 is a clip"):
        check(mixed, model, pictures=True)
    check(shard("clips", "mp4"), model)
    image = tiny_stage("tiny-image")
    check(mixed, tiny_model(image), image)
