"""Shards to batches: exactly once, the same whatever happens in between, and what is broken is left out and named."""

import json
import logging
import multiprocessing
from collections import Counter
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipmill.formats import SHARDS
from tests.training.shards import number_of, sample, video, write_shard
from training.batch import Batch
from training.data import BrokenDataError, Joint, loader
from training.data_config import DataConfig
from training.latents import latent_members
from training.order import Order

CONFIG = DataConfig(frames=4, height_px=32, width_px=48, fps=(12.0,), batch_size=2, workers=0)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video(24)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, clip: bytes) -> Path:
    """Three shards of different size: 5, 1 and 6 samples."""
    folder = tmp_path_factory.mktemp("shards")
    for i, size in enumerate((5, 1, 6)):
        write_shard(folder / f"clips-{i}.tar", [sample(f"{i}-{j}", clip) for j in range(size)])
    return folder


def changed(**changes: Any) -> DataConfig:
    return CONFIG.replace(**changes)


def first(shards: Path, count: int, config: DataConfig = CONFIG, **place: int) -> list[Batch]:
    return list(islice(iter(loader(shards, config, **place)), count))


def equal(one: Batch, other: Batch) -> bool:
    assert one.frames_BTCHW is not None
    assert other.frames_BTCHW is not None
    return one.keys == other.keys and torch.equal(one.frames_BTCHW, other.frames_BTCHW)


def test_a_batch_holds_frames_at_the_rate_and_what_is_known_of_them(shards: Path) -> None:
    batch = first(shards, 1)[0]
    assert batch.frames_BTCHW is not None
    assert batch.frames_BTCHW.shape == (2, 4, 3, 32, 48)
    for frames_TCHW in batch.frames_BTCHW:
        numbers = [number_of(frame.permute(1, 2, 0).numpy()) for frame in frames_TCHW]
        assert [after - before for before, after in pairwise(numbers)] == [2, 2, 2]
    assert batch.captions == ["a bar code"] * 2
    assert batch.fps.tolist() == [12.0, 12.0]
    assert batch.motion_bucket.tolist() == [100.0, 100.0]
    assert not batch.image_only


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any), st.integers(1, 7), st.integers(0, 3))
def test_every_sample_comes_once_per_epoch_over_all_readers(sizes: list[int], readers: int, seed: int) -> None:
    order = Order(sizes, seed=seed)
    seen = [order.at(reader + turn * readers) for turn in range(2 * len(order)) for reader in range(readers)]
    for epoch in range(2):
        positions = [(shard, row) for when, shard, row in seen if when == epoch]
        assert sorted(positions) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 2)])
def test_ranks_and_workers_share_an_epoch_without_doubles(shards: Path, world_size: int, workers: int) -> None:
    config = changed(batch_size=1, workers=workers)
    share = 12 // world_size
    keys = [
        key
        for rank in range(world_size)
        for each in first(shards, share, config, rank=rank, world_size=world_size)
        for key in each.keys
    ]
    assert Counter(keys) == Counter({f"clips-{i}/{i}-{j}": 1 for i, size in enumerate((5, 1, 6)) for j in range(size)})


def test_two_ranks_see_what_one_sees_with_twice_the_batch(shards: Path) -> None:
    one = first(shards, 3, changed(batch_size=4))
    two = [first(shards, 3, rank=rank, world_size=2) for rank in range(2)]
    for step, whole in enumerate(one):
        assert [whole.keys[0::2], whole.keys[1::2]] == [two[0][step].keys, two[1][step].keys]


def test_more_ranks_than_samples_all_get_some(tmp_path: Path, clip: bytes) -> None:
    write_shard(tmp_path / "one.tar", [sample("a", clip), sample("b", clip)])
    for rank in range(5):
        assert len(first(tmp_path, 2, rank=rank, world_size=5)) == 2


def test_epochs_differ_and_another_seed_gives_another_order(shards: Path) -> None:
    keys = [key for batch in first(shards, 12) for key in batch.keys]
    assert keys[:12] != keys[12:]
    assert sorted(keys[:12]) == sorted(keys[12:])
    assert [key for batch in first(shards, 6, changed(seed=1)) for key in batch.keys] != keys[:12]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_was_in_the_middle_of_a_shard(shards: Path, workers: int) -> None:
    config = changed(workers=workers, fps=(6.0, 12.0), crop="random")
    whole = first(shards, 9, config)
    for after in (1, 4):
        interrupted = loader(shards, config)
        batches = iter(interrupted)
        for _ in range(after):
            next(batches)
        again = loader(shards, config)
        again.load_state_dict(interrupted.state_dict())
        assert all(equal(*pair) for pair in zip(islice(iter(again), 9 - after), whole[after:], strict=True))


@pytest.mark.slow
def test_workers_end_when_their_loader_is_closed(shards: Path) -> None:
    """Also those that were asked for batches which nobody takes, and whatever still holds the iterator."""
    before = set(multiprocessing.active_children())
    held = []
    with closing(loader(shards, changed(workers=2))) as batches:
        held.append(iter(batches))
        next(held[0])
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert set(multiprocessing.active_children()) <= before


def test_another_number_of_ranks_goes_on_after_what_was_seen(shards: Path) -> None:
    line = [key for batch in first(shards, 12, changed(batch_size=1)) for key in batch.keys]
    for rank in range(2):
        data = loader(shards, changed(batch_size=1), rank=rank, world_size=2)
        data.skip(5)
        assert [batch.keys[0] for batch in islice(iter(data), 2)] == line[5 + rank : 9 : 2]
        again = loader(shards, changed(batch_size=1), rank=rank, world_size=2)
        again.load_state_dict(data.state_dict())
        assert next(iter(again)).keys[0] == line[9 + rank]


def test_samples_of_other_shapes_wait_for_their_like_across_a_resumption(tmp_path: Path, clip: bytes) -> None:
    tall = video(_tall(24))
    write_shard(tmp_path / "mixed.tar", [sample(f"{i}", clip if i % 3 else tall) for i in range(9)])
    config = changed(height_px=128, width_px=128, aspect_ratios=(0.5, 2.0))
    whole = first(tmp_path, 12, config)
    assert {tuple(batch.frames_BTCHW.shape[-2:]) for batch in whole if batch.frames_BTCHW is not None} == {
        (192, 128), (128, 192)
    }  # fmt: skip
    interrupted = loader(tmp_path, config)
    list(islice(iter(interrupted), 3))
    again = loader(tmp_path, config)
    again.load_state_dict(interrupted.state_dict())
    assert all(equal(*pair) for pair in zip(islice(iter(again), 9), whole[3:], strict=True))


def _tall(frames: int) -> list[Any]:
    from tests.training.shards import numbered

    return [numbered(i, height=96, width=48) for i in range(frames)]


def test_captions_are_drawn_by_source(tmp_path: Path, clip: bytes) -> None:
    captions = [
        {"source": "metadata", "text": "m"},
        {"source": "coca:b", "text": "c"},
        {"source": "blip", "text": None, "error": "no"},
        {"source": "merged", "text": "s"},
    ]
    write_shard(tmp_path / "one.tar", [sample("a", clip, captions=captions)])
    config = changed(captions={"coca": 0.5, "blip": 0.25, "merged": 0.25}, batch_size=50, frames=1)
    counts = Counter(first(tmp_path, 4, config)[3].captions + first(tmp_path, 1, config)[0].captions)
    assert set(counts) == {"c", "s"}
    assert 50 < counts["c"] < 85
    assert set(first(tmp_path, 1)[0].captions) == {"m"}


def test_names_with_control_characters_are_escaped_in_the_log(
    tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "one.tar", [sample("good", clip), sample("\x1b[31mred\nINFO: ä all well", b"none")])
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        first(tmp_path, 2, changed(max_broken_share=1.0))
    message = caplog.messages[0]
    assert message.startswith(r"skipped: one/\x1b[31mred\nINFO: ä all well: decode_error")
    assert message.isprintable()


def test_broken_samples_are_left_out_counted_and_named(
    tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [
        sample("short", video(3)),
        sample("field", clip, conditioning={"motion_bucket": "high"}),
        sample("noise", b"nothing of a video"),
    ]
    write_shard(tmp_path / "one.tar", [sample("good", clip), *broken])
    data = loader(tmp_path, changed(max_broken_share=1.0))
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        batches = list(islice(iter(data), 2))
    assert {key for batch in batches for key in batch.keys} == {"one/good"}
    for key, reason in (("short", "too_short"), ("field", "bad_field"), ("noise", "decode_error")):
        assert any(f"one/{key}: {reason}" in message for message in caplog.messages)
    with pytest.raises(BrokenDataError, match=r"of 20 reads of 4 samples were unreadable .*max_broken_share=0.05"):
        first(tmp_path, 10)


def test_the_broken_share_is_judged_beyond_chance(tmp_path: Path, clip: bytes) -> None:
    """6 of 96 are more than 5 %, but no more than may come together; with nothing to read even a share of 1 stops."""
    whole = [sample(f"{i}", clip) for i in range(90)]
    write_shard(tmp_path / "some" / "a.tar", [*whole, *(sample(f"x{i}", b"") for i in range(6))])
    config = changed(batch_size=10, frames=1)
    assert len(first(tmp_path / "some", 9, config)) == 9
    write_shard(tmp_path / "none" / "a.tar", [sample("x", b"")])
    with pytest.raises(BrokenDataError, match=r"of 103 reads of 1 samples were unreadable .*103 in a row"):
        first(tmp_path / "none", 1, changed(max_broken_share=1.0))


def test_a_missing_caption_is_broken_only_where_one_is_needed(tmp_path: Path, clip: bytes) -> None:
    failed = sample("a", clip, captions=[{"source": "coca", "text": None, "error": "x"}])
    write_shard(tmp_path / "one.tar", [failed | {"txt": b""}])
    assert first(tmp_path, 1)[0].captions == ["", ""]
    with pytest.raises(BrokenDataError, match="1 of 1 samples have no caption, which this stage needs"):
        first(tmp_path, 1, changed(caption_required=True))
    (tmp_path / "plan.json").write_text(json.dumps(SHARDS.describe()))  # whose captions are not looked at before
    with pytest.raises(BrokenDataError, match="no_caption"):
        first(tmp_path, 1, changed(caption_required=True))


def test_a_truncated_tar_gives_what_is_whole_and_is_named(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (shards / "clips-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) * 2 // 3])
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        batches = first(tmp_path, 6, changed(max_broken_share=0.5))
    assert {"cut/0-0", "cut/0-1"} <= {key for batch in batches for key in batch.keys} < {f"cut/0-{i}" for i in range(5)}
    assert any("cut.tar" in message for message in caplog.messages)


def test_no_shards_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*.tar in the folder"):
        loader(tmp_path, CONFIG)
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match="contain no usable samples"):
        loader(tmp_path, CONFIG)


def test_pictures_among_videos(tmp_path: Path, shards: Path) -> None:
    import cv2

    from tests.training.shards import numbered

    jpg = cv2.imencode(".jpg", numbered(77))[1].tobytes()
    write_shard(tmp_path / "images.tar", [sample(f"{i}", jpg, "jpg") for i in range(4)])

    def joint() -> Joint:
        return Joint(loader(shards, CONFIG), loader(tmp_path, CONFIG), share=0.4)

    mixed = joint()
    batches = list(islice(iter(mixed), 10))
    assert [batch.image_only for batch in batches].count(True) == 4
    picture = next(batch for batch in batches if batch.image_only)
    assert picture.frames_BTCHW is not None
    assert picture.frames_BTCHW.shape == (2, 1, 3, 32, 48)
    assert number_of(picture.frames_BTCHW[0, 0].permute(1, 2, 0).numpy()) == 77
    interrupted = joint()
    list(islice(iter(interrupted), 3))
    again = joint()
    again.load_state_dict(interrupted.state_dict())
    assert all(equal(*pair) for pair in zip(islice(iter(again), 7), batches[3:], strict=True))


def test_latent_shards_give_back_what_was_computed(tmp_path: Path) -> None:
    from tests.training.shards import about

    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 4, 4, 8, 12, generator=generator)
    ends = torch.randint(256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    embeddings, tokens = torch.randn(2, 16, generator=generator), torch.randn(3, 16, generator=generator)
    members = latent_members(
        about(), mean_TCHW=mean, logvar_TCHW=logvar, ends_ECHW=ends, fps=12.0, picture=False,
        embeddings_EC=embeddings, tokens={0: tokens},
    )  # fmt: skip
    write_shard(tmp_path / "latents.tar", [{"__key__": "a", **members}])
    batch = first(tmp_path, 1)[0]
    assert batch.frames_BTCHW is None
    assert batch.fps.tolist() == [12.0, 12.0]
    for ours, expected in (
        (batch.mean_BTCHW, mean),
        (batch.logvar_BTCHW, logvar),
        (batch.ends_BECHW, ends),
        (batch.image_embeddings_BEC, embeddings),
        (batch.text_tokens_BNC, tokens),
    ):
        assert ours is not None
        torch.testing.assert_close(ours[1], expected, atol=2e-3, rtol=1e-3)
