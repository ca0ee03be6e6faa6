"""Shards in stores: the same samples in the same order as from a disk, whatever the store does meanwhile."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
import torch

from benchmarks.faults.proxy import FaultyProxy
from clipmill import ranges
from clipmill.atomic import is_temporary
from clipmill.errors import UserError
from clipmill.formats import SHARDS
from clipmill.retries import ChangedObject
from clipmill.shard_folder import Members, ShardRecord, index_of, write_index
from tests.processes import end, gone_within
from tests.training.latents import write_latents
from tests.training.shards import sample, video, write_shard
from tests.web_server import WebServer, web_server
from training import remote_shards
from training.batch import Batch
from training.contents import digest
from training.data import Batches, loader
from training.data_config import DataConfig
from training.index_cache import BESIDE
from training.shard_index import index_shards
from training.shards import Shard, ShardIndex

ROOT = Path(__file__).resolve().parents[2]
CONFIG = DataConfig(frames=3, height_px=32, width_px=48, fps=(8.0,), batch_size=2, workers=0, cache_gib=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(params=["s3_url", "gcs_url"])
def bucket(shards: Path, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    upload(shards, url)
    return url


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


def upload(folder: Path, url: str) -> None:
    fs, target = fsspec.url_to_fs(url)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        fs.pipe_file(f"{target}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def store_of(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.url_to_fs(url)[0]


def write_records(folder: Path, url: str, **changes: Any) -> None:
    """index.json with the byte ranges, as the shard writer leaves it."""
    records = []
    for shard in index_shards(folder).shards:
        names = [shard.keys[row] for row in range(len(shard))]
        ranges = {e: tuple(shard.ranges(row).get(e) for row in range(len(shard))) for e in shard.extensions}
        members = Members(keys=tuple(names), ranges=ranges)
        values = {"name": f"{shard.name}.tar", "samples": len(shard), "bytes": shard.size_bytes, "members": members}
        records.append(ShardRecord(**values | changes))
    write_index(url, index_of(SHARDS.describe(), records))


def equal(one: Batch, other: Batch) -> bool:
    assert one.mean_BTCHW is not None
    assert other.mean_BTCHW is not None
    return one.keys == other.keys and torch.equal(one.mean_BTCHW, other.mean_BTCHW)


def first(shards: Any, count: int, config: DataConfig = CONFIG, **place: int) -> list[Batch]:
    return list(islice(iter(loader(shards, config, **place)), count))


def same(one: Shard, other: Shard) -> bool:
    assert one.name == other.name
    rows = range(len(one))
    return [one.key(row) for row in rows] == [other.key(row) for row in rows] and [one.ranges(row) for row in rows] == [
        other.ranges(row) for row in rows
    ]


def cached(folder: Path, count: int) -> int:
    """The number of complete entries of a cache, once it has `count` of them."""
    deadline_s = time.monotonic() + 60
    while True:
        entries = sum(not is_temporary(path.name) for path in folder.glob("*/*"))
        if entries >= count or time.monotonic() > deadline_s:
            return entries
        time.sleep(0.01)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("entry", ["{}", "{}/", "{}/latents-*.tar", "{}/latents-2.tar"])
def test_the_index_is_that_of_the_disk(shards: Path, bucket: str, entry: str, indexed: bool) -> None:
    if indexed:
        write_records(shards, bucket)
    there, here = index_shards(entry.format(bucket)), index_shards(entry.format(shards))
    assert len(there) == len(here)
    assert all(map(same, there.shards, here.shards))
    assert [shard.size_bytes for shard in there.shards] == [shard.size_bytes for shard in here.shards]
    assert there.shards[0].read(0) == here.shards[0].read(0)


def test_with_an_index_no_header_is_read(shards: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(shards, bucket)
    monkeypatch.setattr(remote_shards, "read_range", None)
    assert len(index_shards(bucket)) == 12


def test_damage_is_found_as_on_a_disk(shards: Path, tmp_path: Path, s3_url: str) -> None:
    whole = (shards / "latents-0.tar").read_bytes()
    for name, content in (("cut", whole[:9_000]), ("garbage", b"x" * 2_000), ("zeros", whole[:6_144] + bytes(512))):
        (tmp_path / f"{name}.tar").write_bytes(content)
    upload(tmp_path, s3_url)
    there, here = index_shards(s3_url), index_shards(tmp_path)
    assert [shard.problem for shard in there.shards] == [shard.problem for shard in here.shards]
    assert [len(shard) for shard in there.shards] == [len(shard) for shard in here.shards]


@pytest.mark.parametrize("place", [{}, {"rank": 1, "world_size": 2}])
def test_the_samples_are_those_of_the_disk_over_several_epochs(
    shards: Path, bucket: str, place: dict[str, int]
) -> None:
    assert all(map(equal, first(bucket, 15, **place), first(shards, 15, **place)))


@pytest.mark.parametrize("read_ahead_mib", [1e-6, 0.02, 64])
def test_how_far_is_read_ahead_changes_nothing(shards: Path, bucket: str, read_ahead_mib: float) -> None:
    config = CONFIG.replace(read_ahead_mib=read_ahead_mib)
    assert all(map(equal, first(bucket, 9, config), first(shards, 9)))


def test_disks_and_stores_can_be_mixed(shards: Path, bucket: str) -> None:
    parts = [str(shards / "latents-0.tar"), f"{bucket}/latents-1.tar", f"{bucket}/latents-2.tar"]
    assert all(map(equal, first(index_shards(parts), 9), first(shards, 9)))


def test_a_position_on_a_disk_is_one_in_the_store(shards: Path, bucket: str) -> None:
    whole, interrupted = first(shards, 9), loader(shards, CONFIG)
    for _ in zip(range(4), interrupted, strict=False):
        pass
    again: Batches = loader(bucket, CONFIG)
    again.load_state_dict(interrupted.state_dict())
    assert all(map(equal, islice(iter(again), 5), whole[4:]))
    assert digest(again.contents()) == digest(interrupted.contents())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_from_the_store_too(shards: Path, bucket: str, workers: int, tmp_path: Path) -> None:
    config = CONFIG.replace(workers=workers, cache_gib=1, cache_folder=str(tmp_path))
    with closing(loader(bucket, config)) as batches:  # open to the end: its workers are still writing to the cache
        assert all(map(equal, islice(iter(batches), 12), first(shards, 12, CONFIG.replace(workers=workers))))
        assert cached(tmp_path, 12) == 12  # all samples of the epoch, each once for all workers


def test_what_is_in_the_cache_is_not_asked_for_again(shards: Path, web: WebServer, tmp_path: Path) -> None:
    web.files |= {f"/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
    config = CONFIG.replace(cache_gib=1, cache_folder=str(tmp_path))
    index = index_shards([f"{web.url}/{path.name}" for path in sorted(shards.glob("*.tar"))])
    expected = first(shards, 6)
    assert all(map(equal, first(index, 6, config), expected))
    assert cached(tmp_path, 12) == 12
    web.files.clear()
    assert all(map(equal, first(index, 6, config), expected))


def test_a_home_that_cannot_be_written_costs_the_cache_only(
    shards: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    config = CONFIG.replace(cache_gib=1)
    assert all(map(equal, first(bucket, 6, config), first(shards, 6)))
    with pytest.raises(UserError, match=r"data\.cache_folder"):
        first(bucket, 1, config.replace(cache_folder=str(tmp_path / "file" / "cache")))


def test_videos_come_from_a_web_server_by_their_index(tmp_path: Path, web: WebServer) -> None:
    write_shard(tmp_path / "clips 0.tar", [sample(f"{i}", video(24)) for i in range(3)])
    write_records(tmp_path, str(tmp_path))
    web.files |= {f"/set/{path.name.replace(' ', '%20')}": path.read_bytes() for path in tmp_path.iterdir()}
    config = CONFIG.replace(frames=4, batch_size=1)
    there, here = first(f"{web.url}/set", 6, config), first(tmp_path, 6, config)
    for one, other in zip(there, here, strict=True):
        assert one.keys == other.keys
        assert one.frames_BTCHW is not None
        assert other.frames_BTCHW is not None
        assert torch.equal(one.frames_BTCHW, other.frames_BTCHW)
    tars = [asked for path, asked in web.asked if path.endswith(".tar")]
    assert "" not in tars
    assert len(tars) <= 2 + 3  # the size; then a request for each sample, or fewer


def test_a_signed_address_is_read_with_its_signature_and_shown_without(
    shards: Path, web: WebServer, tmp_path: Path
) -> None:
    web.files["/latents-0.tar"] = (shards / "latents-0.tar").read_bytes()
    url = f"{web.url}/signed/latents-0.tar?X-Amz-Signature=secret"
    index = index_shards(url, cache=tmp_path / "shards.index")
    assert [shard.name for shard in index.shards] == ["latents-0"]
    assert all(map(equal, first(index, 3), first(shards / "latents-0.tar", 3)))
    assert b"secret" not in (tmp_path / "shards.index").read_bytes()
    again = index_shards(url, cache=tmp_path / "shards.index")
    assert all(map(equal, first(again, 3), first(index, 3)))


def test_the_index_is_kept_and_made_again_where_an_object_changed(
    bucket: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "shards.index"
    before = index_shards(bucket, cache=cache)
    store_of(bucket).pipe_file(f"{bucket}/latents-1.tar", (shards / "latents-0.tar").read_bytes())
    assert [len(shard) for shard in index_shards(bucket, cache=cache).shards] == [5, 5, 6]
    monkeypatch.setattr(remote_shards, "read_range", None)
    again = index_shards(bucket, cache=cache)
    assert [len(shard) for shard in again.shards] == [5, 5, 6]
    assert same(again.shards[0], before.shards[0])


def test_the_index_of_tars_without_one_is_kept_beside_them(
    bucket: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, store = tmp_path / "shards.index", store_of(bucket)
    index_shards(bucket, cache=cache)
    assert not cache.exists()
    store.pipe_file(f"{bucket}/latents-1.tar", (shards / "latents-0.tar").read_bytes())
    assert len(index_shards(f"{bucket}/latents-1.tar")) == 5
    monkeypatch.setattr(remote_shards, "read_range", None)
    assert [len(shard) for shard in index_shards(bucket).shards] == [5, 5, 6]
    store.pipe_file(f"{bucket}/{BESIDE}", b"clipmill shard index 5\n{}")
    with pytest.raises(TypeError):  # its headers are read again
        index_shards(bucket)


def test_a_shard_replaced_while_it_is_read_stops_the_run(shards: Path, bucket: str) -> None:
    index = index_shards(bucket)
    for name in ("latents-0", "latents-1", "latents-2"):
        store_of(bucket).pipe_file(f"{bucket}/{name}.tar", bytes(index.shards[0].size_bytes))
    with pytest.raises(ChangedObject, match=r"latents-\d\.tar changed since it was indexed: .* rerun the same command"):
        first(index, 6)


def test_a_tar_of_another_size_than_its_index_says_is_told(shards: Path, bucket: str) -> None:
    write_records(shards, bucket, bytes=77)
    with pytest.raises(
        ChangedObject, match=r"latents-0\.tar changed since its index\.json was written: expected 77 bytes"
    ):
        index_shards(bucket)


@pytest.mark.parametrize("wrong", [{"shards": 3}, {"shards": [{"name": "latents-0.tar"}]}, []])
def test_an_index_of_another_program_is_left_alone(shards: Path, bucket: str, wrong: Any) -> None:
    store_of(bucket).pipe_file(f"{bucket}/index.json", json.dumps(wrong).encode())
    assert all(map(same, index_shards(bucket).shards, index_shards(shards).shards))


def test_ranges_beyond_the_tar_are_not_believed(shards: Path, bucket: str) -> None:
    members = Members(keys=("a",), ranges={"json": ((0, 10),), "mp4": ((1 << 30, 10),)})
    write_records(shards, bucket, members=members)
    assert all(map(same, index_shards(bucket).shards, index_shards(shards).shards))


@pytest.mark.parametrize("entry", ["{}/nothing", "{}/nothing-*.tar", "{}/nothing.tar", "{}-is-no-bucket/x"])
def test_no_shards_there_is_told(bucket: str, entry: str) -> None:
    with pytest.raises(UserError, match="no shards"):
        index_shards(entry.format(bucket))


def test_a_server_without_ranges_is_told(shards: Path, web: WebServer) -> None:
    web.files["/latents-0.tar"] = (shards / "latents-0.tar").read_bytes()
    web.ranges = False
    with pytest.raises(UserError, match="the server does not support range requests"):
        index_shards(f"{web.url}/latents-0.tar")


@pytest.fixture
def faulty(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The store of the other tests behind a proxy with faults."""
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[bucket.partition(":")[0]]
    server = urlsplit(os.environ[variable])
    proxy = FaultyProxy((server.hostname, server.port), seed=3)
    monkeypatch.setenv(variable, proxy.endpoint)
    forget_clients(bucket)
    yield proxy
    forget_clients(bucket)
    proxy.close()


def forget_clients(url: str) -> None:
    type(store_of(url)).clear_instance_cache()
    remote_shards._reader.cache_clear()
    ranges._filesystem.cache_clear()


@pytest.mark.slow
def test_errors_and_slow_answers_change_no_sample(shards: Path, bucket: str, faulty: FaultyProxy) -> None:
    index: ShardIndex = index_shards(bucket)
    with faulty.faulty(0.6):
        there = first(index, 18, CONFIG.replace(read_ahead_mib=0.05))
    assert faulty.faults > 3
    assert all(map(equal, there, first(shards, 18)))


def test_members_of_a_record_are_read_in_the_order_of_the_tar(tmp_path: Path, s3_url: str) -> None:
    """Whatever the order of the record: positions mean the same samples as on a disk."""
    write_shard(tmp_path / "a.tar", [sample(f"{i}", b"video") for i in (3, 1, 2)])
    with tarfile.open(tmp_path / "a.tar") as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    keys = ("1", "2", "3")
    members = Members(keys=keys, ranges={e: tuple(found[f"{key}.{e}"] for key in keys) for e in ("mp4", "txt", "json")})
    record = ShardRecord(name="a.tar", samples=3, bytes=(tmp_path / "a.tar").stat().st_size, members=members)
    upload(tmp_path, s3_url)
    write_index(s3_url, index_of(SHARDS.describe(), [record]))
    assert [index_shards(s3_url).shards[0].key(row) for row in range(3)] == ["a/3", "a/1", "a/2"]


_READER = """
import sys
from training.data import loader
from training.data_config import DataConfig
from training.shard_index import index_shards

config = DataConfig(frames=3, height_px=32, width_px=48, fps=(8.0,), batch_size=1, workers=2, cache_gib=0)
batches = loader(index_shards(sys.argv[1]), config)
print("indexed", flush=True)
sys.stdin.readline()
iterator = iter(batches)
print(*(worker.pid for worker in batches._iterator._workers), flush=True)
next(iterator)
"""


@pytest.mark.slow
def test_workers_of_a_killed_rank_end_while_their_store_does_not_answer(shards: Path, web: WebServer) -> None:
    web.files["/latents-0.tar"] = (shards / "latents-0.tar").read_bytes()
    command = [sys.executable, "-c", _READER, f"{web.url}/latents-0.tar"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        assert rank.stdout.readline() == "indexed\n"
        web.errors += [503] * 1000
        rank.stdin.write("\n")
        rank.stdin.flush()
        workers = [int(pid) for pid in rank.stdout.readline().split()]
        while len(web.errors) == 1000:  # no worker has asked yet
            time.sleep(0.02)
        rank.kill()
        try:
            assert gone_within(20, workers)
        finally:
            end(workers)
