"""The cache of ranges: bounded, shared between processes, whole entries or none."""

import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from clipmill.errors import UserError
from clipmill.range_cache import RangeCache, default_folder

ENTRY = 1000 + 4


def size_of(folder: Path) -> int:
    size = 0
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # removed or renamed by another process
            size += path.stat().st_size
    return size


def test_what_was_put_comes_back_also_to_another_process(tmp_path: Path) -> None:
    RangeCache(tmp_path, 1 << 20).put("a", b"x" * 1000)
    other = RangeCache(tmp_path, 1 << 20)
    assert other.has("a")
    assert other.get("a") == b"x" * 1000
    assert not other.has("b")
    assert other.get("b") is None


def test_the_least_recently_used_ones_make_room(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 20 * ENTRY)
    for i in range(20):
        cache.put(f"{i}", b"x" * 1000)
    for i in range(3):  # used again
        time.sleep(0.01)
        assert cache.get(f"{i}") is not None
    for i in range(20, 30):
        time.sleep(0.01)
        cache.put(f"{i}", b"x" * 1000)
        assert size_of(tmp_path) <= 20 * ENTRY
    assert all(cache.has(f"{i}") for i in (0, 1, 2, 29, 28))
    assert not cache.has("3")
    assert size_of(tmp_path) >= 17 * ENTRY


def put_many(folder: Path, name: int) -> None:
    cache = RangeCache(folder, 40 * ENTRY)
    for i in range(200):
        cache.put(f"{name} {i}", f"{name} {i}".encode().ljust(1000, b"."))
        content = cache.get(f"{(name + 1) % 4} {i}")
        assert content is None or content.startswith(f"{(name + 1) % 4} {i}".encode())


def test_processes_share_the_limit_and_never_see_half_an_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=put_many, args=(tmp_path, name)) for name in range(4)]
    for process in processes:
        process.start()
    largest, running = 0, True
    while running:
        running = any(process.is_alive() for process in processes)
        largest = max(largest, size_of(tmp_path))  # once more after the last has ended
        time.sleep(0.002)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 0 < largest <= 44 * ENTRY  # and those being written
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize("damage", [b"", b"x" * 1004, b"xyz"])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = RangeCache(tmp_path, 1 << 20)
    cache.put("a", b"y" * 1000)
    (path,) = tmp_path.glob("*/*")
    path.write_bytes(damage)
    assert cache.get("a") is None
    assert not cache.has("a")
    cache.put("a", b"y" * 1000)
    assert cache.get("a") == b"y" * 1000


def test_leftovers_of_killed_writers_are_removed_and_a_lost_count_is_made_anew(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 20 * ENTRY)
    for i in range(18):
        cache.put(f"{i}", b"x" * 1000)
    leftover = next(tmp_path.glob("*/*")).with_name(".name.0123456789ab.tmp")
    leftover.write_bytes(b"z")
    os.utime(leftover, (0, 0))
    (tmp_path / "usage").write_bytes(b"?")
    for i in range(18, 24):
        cache.put(f"{i}", b"x" * 1000)
    assert size_of(tmp_path) <= 20 * ENTRY
    assert not leftover.exists()


def test_an_entry_as_large_as_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5000)
    cache.put("a", b"x" * 1000)
    assert not cache.has("a")


def test_a_disk_that_fails_costs_the_cache_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = RangeCache(tmp_path / "cache", 1 << 20)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        cache.put("a", b"x" * 1000)
        cache.put("b", b"x" * 1000)
    assert cache.get("a") is None
    assert [message.endswith("continuing without a cache") for message in caplog.messages] == [True]


def test_a_folder_that_cannot_be_used_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"Choose another folder \(data.cache_folder\)"):
        RangeCache(tmp_path / "file" / "cache", 1 << 20)


def test_it_is_where_caches_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "clipmill" / "ranges"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/clipmill/ranges")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a container's user without an entry
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert default_folder() == tmp_path / f"cache-{os.getuid()}" / "clipmill" / "ranges"
