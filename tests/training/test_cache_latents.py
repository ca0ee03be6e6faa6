"""Latents of a shard: made once, made again where the clips have changed, told of what is missing."""

from pathlib import Path

import pytest
import torch

from svd.model import Model
from tests.training.shards import sample, video, write_shard
from tests.training.world import tiny_model, tiny_stage
from training.cache_latents import cache_shard, cached, check_names, weight_digests
from training.samples import read_sample
from training.seeds import seed_of
from training.shard_index import index_shard, index_shards

STAGE = tiny_stage()


@pytest.fixture(scope="module")
def model() -> Model:
    network = tiny_model(STAGE)
    network.text_encoder = None
    return network


def test_a_damaged_shard_is_told_and_encoded_again_once_it_is_whole(model: Model, tmp_path: Path) -> None:
    clips, out = write_shard(tmp_path / "a.tar", [sample(f"{i}", video(24)) for i in range(2)]), tmp_path / "out"
    whole, middle_of_last = clips.read_bytes(), int(index_shard(str(clips)).ranges_NE2[-1, 0].sum()) - 100
    clips.write_bytes(whole[:middle_of_last])
    damaged = cache_shard(index_shard(str(clips)), out, model, STAGE.data)
    assert damaged.samples == 1
    assert "truncated" in str(damaged.problem)
    assert cached(out, index_shard(str(clips))) == damaged
    clips.write_bytes(whole)
    assert cached(out, index_shard(str(clips))) is None
    again = cache_shard(index_shard(str(clips)), out, model, STAGE.data)
    assert (again.samples, again.problem) == (2, None)


def test_latents_of_files_have_their_names_captions_and_measured_motion(model: Model, tmp_path: Path) -> None:
    names = ["plain", "sub/two.dots", "ünï " + "x" * 120]
    for name in names:
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video(24))
        path.with_suffix(".txt").write_text(f"caption of {name}")
    (files,) = index_shards(tmp_path / "videos").shards
    record = cache_shard(files, tmp_path / "out", model, STAGE.data)
    assert (record.samples, record.failed) == (3, ())
    assert cached(tmp_path / "out", files) == record
    (latents,) = index_shards(tmp_path / "out").shards
    assert [latents.keys[i] for i in range(3)] == ["plain", "sub/two%2Edots", names[2]]
    for row, name in enumerate(names):
        sample = read_sample("a", latents.read(row), STAGE.data, seed=0)
        pixels = read_sample("a", files.read(row), STAGE.data, seed=seed_of(STAGE.data.seed, 0, files.key(row)))
        assert (sample.caption, sample.motion_bucket) == (f"caption of {name}", pixels.motion_bucket)
    path = tmp_path / "videos" / "plain.txt"
    path.write_text("another caption")
    (changed,) = index_shards(tmp_path / "videos").shards
    assert cached(tmp_path / "out", changed) is None


def test_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_shard(tmp_path / folder / "a.tar", [sample("0", b"x")])
    with pytest.raises(ValueError, match="duplicate shard name"):
        check_names(index_shards([tmp_path / "one", tmp_path / "two"]))


def test_a_digest_tells_weights_apart_whose_sums_are_equal() -> None:
    model = tiny_model(STAGE)
    before = weight_digests(model)
    bias = model.autoencoder.decoder.conv_in.bias
    with torch.no_grad():
        bias.copy_(bias.flip(0))
    assert weight_digests(model) != before
