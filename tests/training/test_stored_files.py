"""Samples that lie as files in a store: the same samples as from a disk."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from clipmill.retries import ChangedObject
from tests.training.shards import video
from tests.training.test_file_samples import write
from tests.training.test_foreign_shards import CONFIG, batches
from tests.training.test_remote_shards import store_of, upload
from tests.web_server import WebServer, web_server
from training.data import loader
from training.shard_index import index_shards

LOCAL = CONFIG.replace(max_broken_share=0.5)
REMOTE = LOCAL.replace(cache_gib=0)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video(24)


@pytest.fixture
def folder(tmp_path: Path, clip: bytes) -> Path:
    """Videos with captions and conditioning, and what breaks its own sample or is left alone."""
    folder = tmp_path / "set"
    for name in ("plain", "with space", "ünïcode 雪", "two.dots", "sub/deeper/x"):
        write(folder / f"{name}.mp4", clip)
        write(folder / f"{name}.txt", f"caption of {name}")
    write(folder / "b.webm", clip)
    write(folder / "b.json", '{"caption": "of json", "motion_bucket": 9}')
    write(folder / "damaged.mp4", clip)
    write(folder / "damaged.json", "{")
    write(folder / "large.mp4", clip)
    write(folder / "large.txt", "x" * (2 << 20))
    for ignored in (".hidden.mp4", ".hidden/a.mp4", "notes.pdf"):
        write(folder / ignored, clip)
    return folder


@pytest.fixture(params=["s3_url", "gcs_url"])
def bucket(request: pytest.FixtureRequest, folder: Path) -> str:
    url: str = request.getfixturevalue(request.param)
    upload(folder, f"{url}/set")
    return url


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


def same(there: object, here: object, count: int = 8) -> bool:
    pairs = zip(batches(there, count, REMOTE), batches(here, count, LOCAL), strict=True)  # type: ignore[arg-type]
    return all(
        one.keys == other.keys
        and one.captions == other.captions
        and torch.equal(one.motion_bucket, other.motion_bucket)
        and torch.equal(one.frames_BTCHW, other.frames_BTCHW)  # type: ignore[arg-type]
        for one, other in pairs
    )


def test_a_folder_in_a_store_gives_the_samples_of_the_disk(bucket: str, folder: Path) -> None:
    there, here = index_shards(f"{bucket}/set"), index_shards(folder)
    assert dict(there.broken).keys() == dict(here.broken).keys() == {"set-000000/damaged", "set-000000/large"}
    assert [shard.noted for shard in there.shards] == [shard.noted for shard in here.shards]
    assert there.shards[0].read(0) == here.shards[0].read(0)
    assert same(there, here)


def test_a_run_on_files_moves_between_a_disk_and_a_store(bucket: str, folder: Path) -> None:
    whole, interrupted = batches(folder, 9, LOCAL), loader(folder, LOCAL)
    list(islice(iter(interrupted), 4))
    again = loader(f"{bucket}/set", REMOTE)
    again.load_state_dict(interrupted.state_dict())
    for got, expected in zip(islice(iter(again), 5), whole[4:], strict=True):
        assert (got.keys, got.captions) == (expected.keys, expected.captions)


@pytest.mark.parametrize("name", ["metadata.jsonl", "list.csv"])
def test_lists_in_a_store_and_on_a_web_server(
    tmp_path: Path, clip: bytes, s3_url: str, web: WebServer, name: str
) -> None:
    folder = tmp_path / "listed"
    paths = ["a b.mp4", "deeper/c.mp4"]
    for path in paths:
        write(folder / path, clip)
    rows = [{"file_name": path, "text": f"caption of {path}"} for path in paths]
    lines = ["file_name,text", *(",".join(row.values()) for row in rows)] if name.endswith("csv") else rows
    write(folder / name, lines)
    upload(folder, f"{s3_url}/listed")
    web.files = {
        f"/{quote(path.relative_to(folder).as_posix())}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for there in (f"{s3_url}/listed/{name}", f"{web.url}/{name}"):
        assert same(index_shards(there), folder / name)
    if name == "metadata.jsonl":
        assert same(index_shards(f"{s3_url}/listed"), folder)


def test_what_is_odd_in_a_list_breaks_its_row_alone(clip: bytes, s3_url: str) -> None:
    paths = ["a.mp4", "gone.mp4", "../out.mp4", "/etc/a.mp4", "s3://other/a.mp4", "a.pdf"]
    store = store_of(s3_url)
    store.pipe_file(f"{s3_url}/x/list.jsonl", "".join(json.dumps({"path": path}) + "\n" for path in paths).encode())
    for path in ("x/a.mp4", "out.mp4", "x/a.pdf"):
        store.pipe_file(f"{s3_url}/{path}", clip)
    index = index_shards(f"{s3_url}/x/list.jsonl")
    assert len(index) == 1
    assert {name.partition("/")[2]: reason for name, reason in index.broken} == {
        "gone": "no such file",
        "out": "expected a path below the folder of the list",
        "etc/a": "expected a path below the folder of the list",
        "line 5": "expected a path, got the address s3://other/a.mp4",
        "a_" + index.broken[-1][0].rpartition("_")[2]: "a.pdf has no video or image extension",
    }


def test_a_video_replaced_while_it_is_read_stops_the_run(bucket: str, clip: bytes) -> None:
    index = index_shards(f"{bucket}/set")
    for shard in index.shards:
        for row in range(len(shard)):
            store_of(bucket).pipe_file(shard.urls[row], bytes(len(clip)))  # type: ignore[attr-defined]
    with pytest.raises(ChangedObject, match="changed since it was indexed"):
        batches(index, 1, REMOTE)
