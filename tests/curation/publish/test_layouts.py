"""Buckets: by length first, then by aspect ratio."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.publish.layouts import Bucket, bucket_of, folder_of, trainer_files
from curation.publish.plan import PublishConfig

LENGTHS = (17, 33, 81)


@given(st.integers(1, 500), st.integers(16, 4000), st.integers(16, 4000), st.sampled_from([128, 512, 960]))
def test_a_clip_fills_its_bucket(frames: int, width: int, height: int, resolution: int) -> None:
    bucket = bucket_of(frames, width, height, lengths=LENGTHS, resolution_px=resolution)
    if frames < 17:
        assert bucket is None
        return
    assert bucket is not None
    assert bucket.frames == max(length for length in LENGTHS if length <= frames)
    assert bucket.width_px % 32 == bucket.height_px % 32 == 0
    assert 0.6 < bucket.width_px * bucket.height_px / resolution**2 < 1.5
    turned = bucket_of(frames, height, width, lengths=LENGTHS, resolution_px=resolution)
    if width != height:
        assert turned is not None
        assert (turned.width_px, turned.height_px) == (bucket.height_px, bucket.width_px)


def test_known_sizes() -> None:
    assert bucket_of(40, 1920, 1080, lengths=LENGTHS, resolution_px=512) == Bucket(
        frames=33, width_px=672, height_px=384
    )
    assert bucket_of(17, 1080, 1920, lengths=LENGTHS, resolution_px=512) == Bucket(
        frames=17, width_px=384, height_px=672
    )
    square = Bucket(frames=17, width_px=512, height_px=512)
    assert bucket_of(17, 700, 700, lengths=LENGTHS, resolution_px=512) == square
    assert [folder_of(to, square) for to in ("files", "finetrainers", "diffusion-pipe", "musubi")] == [
        *("", "", "512x512x17", "17"),
    ]


def test_a_folder_per_bucket_is_named_once() -> None:
    buckets = {Bucket(frames=f, width_px=w, height_px=512): 3 for f in (17, 33) for w in (512, 640)}
    toml = tomllib.loads(trainer_files("diffusion-pipe", buckets, {}, 512)["dataset.toml"])
    assert len({each["path"] for each in toml["directory"]}) == 4
    musubi = tomllib.loads(trainer_files("musubi", buckets, {}, 512)["dataset.toml"])
    assert [each["target_frames"] for each in musubi["datasets"]] == [[17], [33]]


def test_lengths_are_at_least_two_frames() -> None:
    with pytest.raises(ValueError, match="at least 2 frames"):
        PublishConfig(lengths=(1, 17))
