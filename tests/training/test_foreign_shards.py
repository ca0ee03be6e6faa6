"""Shards that other tools wrote: video2dataset's, webdataset's own, made with tar."""

import io
import json
import logging
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from clipmill.motion_bucket import motion_bucket
from tests.curation.video.test_tracks import inputs, joined
from tests.media import panning
from tests.training.shards import numbered, video
from tests.web_server import web_server
from training.batch import Batch
from training.data import BrokenDataError, loader
from training.data_config import DataConfig
from training.index_cache import BESIDE
from training.shard_index import index_shard, index_shards

CONFIG = DataConfig(frames=4, height_px=32, width_px=48, fps=(12.0,), batch_size=2, workers=0)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video(24)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def batches(data: Any, count: int, config: DataConfig = CONFIG, **place: int) -> list[Batch]:
    return list(islice(iter(loader(data, config, **place)), count))


def captions_of(data: Any, config: DataConfig = CONFIG) -> dict[str, str]:
    """Key -> caption over an epoch."""
    config = config.replace(batch_size=1)
    count = len(index_shards(data))
    return {batch.keys[0]: batch.captions[0] for batch in batches(data, count, config)}


def video2dataset(clip: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """As video2dataset writes: txt and json of every sample, mp4 of those that it could download."""
    for i in range(count):
        key, failed = f"{i:09d}", i % 4 == 3
        meta = {
            "videoid": i, "caption": f"caption {i}", "key": key, "url": "https://example.com/v.mp4",
            "status": "failed_to_download" if failed else "success", "error_message": "404" if failed else None,
            "yt_meta_dict": None,
        }  # fmt: skip
        yield from [] if failed else [(f"{key}.mp4", clip)]
        yield f"{key}.txt", f"caption {i}".encode()
        yield f"{key}.json", json.dumps(meta, indent=4).encode()


def test_shards_of_video2dataset_train(tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard:05d}.tar", video2dataset(clip, 8))
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        found = captions_of(tmp_path)
    expected = {f"{shard:05d}/{i:09d}": f"caption {i}" for shard in range(2) for i in range(8) if i % 4 != 3}
    assert found == expected
    assert caplog.messages == [
        "12 of 12 samples have no motion_bucket: it is measured from their frames, and 0 for pictures",
        "skipped, since their JSON reports a failed download: 4",
    ]


def test_what_samples_lack_is_said_once_per_key(tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    members = [("a.mp4", clip), ("a.txt", b"text"), ("b.mp4", clip), ("c.mp4", clip), ("c.txt", b" \n"),
               ("d.mp4", clip), ("d.json", b'{"prompt": "a prompt", "motion_bucket": 7}'),
               ("README.md", b"readme")]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time from the index beside the tar
        caplog.clear()
        with caplog.at_level(logging.WARNING, "clipmill.data"):
            taken = batches(tmp_path, 20)
        assert caplog.messages == [
            "2 of 4 samples have no caption: they train without text",
            "3 of 4 samples have no motion_bucket: it is measured from their frames, and 0 for pictures",
            "skipped, since they have no video, image, text or JSON: 1",
        ]
    captions = {key: caption for batch in taken for key, caption in zip(batch.keys, batch.captions, strict=True)}
    assert captions == {"a/a": "text", "a/b": "", "a/c": "", "a/d": "a prompt"}
    with pytest.raises(BrokenDataError, match="2 of 4 samples have no caption, which this stage needs"):
        batches(tmp_path, 1, CONFIG.replace(caption_required=True))
    with pytest.raises(BrokenDataError, match="4 of 4 samples have no elevation, which this stage needs"):
        batches(tmp_path, 1, CONFIG.replace(elevation=True))


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"txt": b"one"}, ["one"]),
        ({"txt": b"\xef\xbb\xbfone\r\n"}, ["one"]),
        ({"txt": "zwölf".encode("utf-16")}, ["zwölf"]),
        ({"txt": b"one", "json": b'{"caption": "one", "text": "two"}'}, ["one", "two"]),
        ({"json": b'{"captions": ["one", "two"]}', "txt": b"three"}, ["one", "two"]),
        ({"json": b'{"captions": {"blip": "one", "coca": "two"}}'}, ["one", "two"]),
        ({"json": b'{"captions": null, "title": ["one", 2, null, "two"]}'}, ["one", "two"]),
        ({"json": b'{"captions": [null, ""]}', "txt": b"one"}, ["one"]),
        ({"json": b'{"captions": [{"source": "coca", "text": null}]}', "txt": b""}, [None]),
        ({"json": b"{}"}, []),
    ],
)
def test_captions_are_found_wherever_other_tools_write_them(members: dict[str, bytes], captions: list[str]) -> None:
    from training.metadata import sample_metadata

    assert [caption["text"] for caption in sample_metadata(members)["captions"]] == captions


@pytest.mark.parametrize("fps", [6, 12, 24])
@pytest.mark.parametrize("percent_per_s", [0.0, 10.0, 40.0])
def test_the_motion_bucket_is_measured_as_curation_does(tmp_path: Path, fps: int, percent_per_s: float) -> None:
    pictures = panning(height=120, pixels_per_frame=percent_per_s / 100 * 120 / 24, frames=60)
    content = video([np.ascontiguousarray(frame[..., :3]) for frame in pictures], fps=24)
    write_tar(tmp_path / "a.tar", [("a.mp4", content)])
    config = CONFIG.replace(frames=14, height_px=60, width_px=80, fps=(float(fps),), batch_size=1)
    expected = motion_bucket(percent_per_s)
    assert expected is not None
    for batch in batches(tmp_path, 2, config):
        assert batch.motion_bucket.item() == pytest.approx(expected, abs=12)
    assert batches(tmp_path, 1, config.replace(motion_default=99))[0].motion_bucket.item() == 99


@pytest.mark.parametrize("suffix", ["mp4", "MP4", "webm", "mkv", "mov", "avi", "png", "jpeg"])
def test_other_containers_and_formats_are_read_by_their_content(tmp_path: Path, clip: bytes, suffix: str) -> None:
    is_picture = suffix in ("png", "jpeg")
    content = cv2.imencode(".png", numbered(3))[1].tobytes() if is_picture else clip
    write_tar(tmp_path / "a.tar", [(f"a.{suffix}", content), ("a.txt", b"one")])
    (batch,) = batches(tmp_path, 1)
    assert (batch.image_only, batch.captions) == (is_picture, ["one", "one"])


def test_a_thumbnail_beside_a_video_and_a_second_video_are_not_read(
    tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    picture = cv2.imencode(".jpg", numbered(3))[1].tobytes()
    members = [("a.jpg", picture), ("a.mp4", clip), ("b.webm", b"broken"), ("b.mp4", clip), ("c.left.mp4", clip)]
    write_tar(tmp_path / "a.tar", [*members, *((f"x{i}.mp4", clip) for i in range(98))])
    index = index_shards(tmp_path)
    assert index.shards[0].extensions == ("mp4",)
    assert index.shards[0].noted["several"] == 1
    assert index.shards[0].noted["other"] == 1
    assert len(index) == 100


def test_a_compressed_tar_is_refused_with_the_reason(tmp_path: Path, clip: bytes) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", clip)])
    subprocess.run(["gzip", str(tar)], check=True)
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed.*gunzip"):
        batches(tmp_path, 1)
    (tmp_path / "a.tar.gz").rename(tar)
    with pytest.raises(ValueError, match=r"no usable samples; first: .*a\.tar: compressed with gzip.*decompress"):
        batches(tmp_path, 1)


@pytest.mark.parametrize("first", [True, False])
def test_the_moving_stream_is_read(tmp_path: Path, first: bool) -> None:
    """The stream with slides is the default, and larger; three of its frames are not enough."""
    made = inputs(tmp_path)
    tracks = [(made["slides"], "default"), (made["movie"], "0")]
    path = joined(tmp_path / "both.mp4", tracks if first else tracks[::-1])
    write_tar(tmp_path / "both.tar", [("a.mp4", path.read_bytes())])
    write_tar(tmp_path / "one" / "both.tar", [("a.mp4", made["movie"].read_bytes())])
    both, one = batches(tmp_path, 1)[0], batches(tmp_path / "one", 1)[0]
    assert torch.equal(both.frames_BTCHW, one.frames_BTCHW)  # type: ignore[arg-type]
    with pytest.raises(BrokenDataError, match="decord may read another"):
        batches(tmp_path, 1, CONFIG.replace(reader="decord"))


def test_links_in_a_tar_are_not_followed(tmp_path: Path, clip: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"{kind.decode()}.txt")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
            info = tarfile.TarInfo(f"{kind.decode()}.mp4")
            info.size = len(clip)
            tar.addfile(info, io.BytesIO(clip))
    assert set(captions_of(tmp_path).values()) == {""}


@pytest.mark.parametrize("order", [("mp4", "txt"), ("txt", "mp4"), ("json", "mp4"), ("mp4", "json")])
def test_no_sample_of_a_truncated_tar_loses_its_caption(tmp_path: Path, order: tuple[str, str]) -> None:
    files = {"mp4": bytes(3000), "txt": b"one", "json": b'{"caption": "one"}'}
    members = [(f"{i}.{suffix}", files[suffix]) for i in range(4) for suffix in order]
    content = write_tar(tmp_path / "a.tar", members).read_bytes()
    for cut in range(0, len(content) - 10_240, 700):
        (tmp_path / "a.tar").write_bytes(content[:cut])
        shard = index_shard(str(tmp_path / "a.tar"))
        assert shard.problem
        if len(shard) > 1:
            assert all(set(shard.read(row)) == set(order) for row in range(len(shard)))


def test_broken_samples_of_a_small_tar_are_counted_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i}.mp4", b"no video") for i in range(4)])
    with pytest.raises(BrokenDataError, match=r"20 of 20 reads of 4 samples were unreadable"):
        batches(tmp_path, 1)


def test_training_resumes_with_the_same_batches(tmp_path: Path, clip: bytes) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", video2dataset(clip, 8))
    config = CONFIG.replace(fps=(6.0, 12.0), crop="random", captions={"txt": 0.5, "caption": 0.5})
    whole = batches(tmp_path, 9, config)
    interrupted = loader(tmp_path, config)
    list(islice(iter(interrupted), 4))
    again = loader(tmp_path, config)
    again.load_state_dict(interrupted.state_dict())
    for got, expected in zip(islice(iter(again), 5), whole[4:], strict=True):
        assert (got.keys, got.captions) == (expected.keys, expected.captions)
        assert torch.equal(got.motion_bucket, expected.motion_bucket)
        assert torch.equal(got.frames_BTCHW, expected.frames_BTCHW)  # type: ignore[arg-type]
    seen = Counter(key for batch in whole[:6] for key in batch.keys)
    assert set(seen.values()) == {1}


def test_the_index_is_kept_beside_the_tars_until_they_change(tmp_path: Path, clip: bytes) -> None:
    folder, cache = tmp_path / "tars", tmp_path / "run" / "shards.index"
    first = write_tar(folder / "a.tar", [("a.mp4", clip), ("a.txt", b"one")])
    write_tar(folder / "b.tar", [("b.mp4", clip), ("b.txt", b"one")])
    index_shards(folder, cache=cache)
    beside = folder / BESIDE
    assert not cache.exists()
    beside.write_text(beside.read_text().replace('"a"', '"A"'))
    assert index_shards(folder).shards[0].key(0) == "a/A"  # taken from the index, not from the tar
    moved = folder.rename(tmp_path / "moved")
    assert index_shards(moved).shards[0].key(0) == "a/A"
    write_tar(moved / first.name, [("c.mp4", clip), ("d.mp4", clip)])
    assert [index_shards(moved).shards[i].key(0) for i in range(2)] == ["a/c", "b/b"]
    index_shards(moved / "a.tar")
    assert len((moved / BESIDE).read_bytes().splitlines()) == 3  # that of the other tar is kept


def test_the_index_goes_to_the_run_where_the_folder_cannot_be_written(
    tmp_path: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "tars", tmp_path / "run" / "shards.index"
    write_tar(folder / "a.tar", [("a.mp4", clip)])
    (folder / BESIDE).mkdir()  # root could write into any folder, but not rename a file over one
    index_shards(folder, cache=cache)
    assert cache.is_file()
    cache.write_text(cache.read_text().replace('"a"', '"A"'))
    assert index_shards(folder, cache=cache).shards[0].key(0) == "a/A"
    assert sorted(os.listdir(folder)) == ["a.tar", BESIDE]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"mp4":[[512,', '"mp4":[[99999999,'),
        ('"mp4":[[512,', f'"mp4":[[{2**63 - 1},'),  # plus its size, it is negative in 64 bits
        ('"mp4":', '"passwd":'),
        ('"name":"a.tar"', '"name":"../a.tar"'),
        ('"keys":["a"]', f'"keys":["{"a" * 300}"]'),
        ("clipmill shard index 5", "clipmill shard index 4"),
    ],
)
def test_an_index_that_lies_is_made_again(tmp_path: Path, clip: bytes, old: str, new: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.mp4", clip), ("a.txt", b"one")])
    expected = index_shards(tmp_path).shards[0]
    beside = tmp_path / BESIDE
    text = beside.read_text()
    assert old in text
    beside.write_text(text.replace(old, new))
    got = index_shards(tmp_path).shards[0]
    assert (got.path, got.key(0), got.read(0)) == (expected.path, expected.key(0), expected.read(0))


def test_shards_of_other_tools_train_from_a_web_server(tmp_path: Path, clip: bytes) -> None:
    tars = [write_tar(tmp_path / f"{shard:05d}.tar", video2dataset(clip, 8)) for shard in range(2)]
    config = CONFIG.replace(fps=(6.0, 12.0), crop="random", cache_gib=0)
    with web_server() as web:
        web.files = {f"/{tar.name}": tar.read_bytes() for tar in tars}
        urls, cache = [f"{web.url}/{tar.name}" for tar in tars], tmp_path / "run" / "shards.index"
        remote = [shard.noted for shard in index_shards(urls, cache=cache).shards]
        headers = len(web.asked)
        index = index_shards(urls, cache=cache)
        assert {asked for _, asked in web.asked[headers:]} == {"bytes=0-0"}  # indexed once: this asks for sizes
        served = batches(index, 8, config)
    local = index_shards(tmp_path)
    assert remote == [shard.noted for shard in local.shards] == [shard.noted for shard in index.shards]
    for got, expected in zip(served, batches(local, 8, config), strict=True):
        assert (got.keys, got.captions) == (expected.keys, expected.captions)
        assert torch.equal(got.frames_BTCHW, expected.frames_BTCHW)  # type: ignore[arg-type]
