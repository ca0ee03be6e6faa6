"""Index of tar shards: whole ones, broken ones, the cache."""

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from clipmill.errors import UserError
from clipmill.formats import SHARDS
from tests.training.shards import about, sample, write_shard
from training import shards
from training.shard_index import find_shards, index_shard, index_shards
from training.shards import Shard


def _shard(path: Path, samples: int = 4, size: int = 3000) -> Path:
    return write_shard(path, [sample(f"{path.stem}-{i}", bytes([i]) * (size + i)) for i in range(samples)])


def test_files_are_read_as_tarfile_reads_them(tmp_path: Path) -> None:
    path = _shard(tmp_path / "clips-0.tar")
    index = index_shards(tmp_path)
    (shard,) = index.shards
    with tarfile.open(path) as tar:
        for row in range(4):
            members = shard.read(row)
            assert sorted(members) == ["json", "mp4", "txt"]
            for extension, content in members.items():
                file = tar.extractfile(f"clips-0-{row}.{extension}")
                assert file is not None
                assert content == file.read()
    assert (len(index), index.problems, index.broken) == (4, [], [])
    assert shard.key(2) == "clips-0/clips-0-2"


def test_long_names_of_pax_headers_are_whole(tmp_path: Path) -> None:
    key = "ä" + "x" * 150
    write_shard(tmp_path / "a.tar", [sample(key, b"1")])
    assert index_shards(tmp_path).shards[0].key(0) == f"a/{key}"


def test_extensions_may_have_dots_and_samples_may_differ(tmp_path: Path) -> None:
    samples = [sample("a", b"1", "latent.safetensors"), {"__key__": "b", "jpg": b"22", "json": about()}]
    (shard,) = index_shards(write_shard(tmp_path / "a.tar", samples)).shards
    assert set(shard.read(0)) == {"latent.safetensors", "json", "txt"}
    assert {extension: len(content) for extension, content in shard.read(1).items()}["jpg"] == 2


def test_a_folder_a_list_and_a_pattern_find_the_same(tmp_path: Path) -> None:
    paths = [_shard(tmp_path / f"clips-{i}.tar", 1) for i in range(3)]
    (tmp_path / ".clips-9.tar").write_bytes(b"unfinished")
    (tmp_path / "clips-0.json").write_text("{}")
    expected = [str(path) for path in paths]
    assert find_shards(tmp_path) == expected
    assert find_shards([*paths, paths[0]]) == expected
    assert find_shards(f"{tmp_path}/clips-?.tar") == expected


@pytest.mark.parametrize("wanted", [[], "nowhere", "nowhere/*.tar", "."])
def test_no_shards_is_an_error_that_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no shards") as caught:
        index_shards(wanted)
    assert not wanted or (wanted in str(caught.value) and str(tmp_path) in str(caught.value))


@pytest.mark.parametrize("cut", range(0, 4 * 5120, 700))
def test_a_truncated_tar_keeps_the_samples_before_the_cut(tmp_path: Path, cut: int) -> None:
    path = _shard(tmp_path / "a.tar")
    whole = index_shard(str(path))
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    shard = index_shard(str(path))
    needed = [whole.extensions.index(extension) for extension in ("mp4", "json")]
    lasting = [i for i in range(4) if whole.ranges_NE2[i, needed].sum(1).max() <= cut]
    assert [shard.key(row) for row in range(len(shard))] == [whole.key(row) for row in lasting]
    for row in range(len(shard)):
        assert {"mp4": bytes([row]) * (3000 + row)}.items() <= shard.read(row).items()
    assert shard.problem


def test_a_damaged_header_ends_a_shard(tmp_path: Path) -> None:
    path = _shard(tmp_path / "a.tar")
    third = index_shard(str(path)).ranges_NE2[2, :, 0].min() - 512
    content = bytearray(path.read_bytes())
    content[third : third + 64] = os.urandom(64)
    path.write_bytes(bytes(content))
    shard = index_shard(str(path))
    assert len(shard) == 2
    assert f"damaged header at byte {third:,}" in str(shard.problem)


@pytest.mark.parametrize("content", [b"", b"not a tar file." * 100])
def test_a_file_that_is_not_a_tar_is_recorded(tmp_path: Path, content: bytes) -> None:
    _shard(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(content)
    index = index_shards(tmp_path)
    assert len(index) == 4
    ((path, reason),) = index.problems
    assert path.endswith("b.tar")
    assert reason.startswith("no readable tar")


def test_incomplete_samples_are_named(tmp_path: Path) -> None:
    samples = [sample("a", b"1"), {"__key__": "b", "mp4": b"1"}, {"__key__": "c", "json": about()}]
    tar = write_shard(tmp_path / "x.tar", [*samples, {"__key__": "d", "latent.safetensors": b"1"}])
    index = index_shards(tar)
    assert index.broken == [("x/c", "missing mp4, jpg, latent.safetensors"), ("x/d", "missing json")]
    assert len(index) == 2
    (tmp_path / "plan.json").write_text(json.dumps(SHARDS.describe()))  # clipmill's own always have a JSON
    ours = index_shards(tar)
    assert [name for name, reason in ours.broken if reason == "missing json"] == ["x/b", "x/d"]
    assert len(ours) == 1
    assert "txt" not in ours.shards[0].extensions  # its captions are in the JSON


def test_a_repeated_file_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("k.mp4", b"1"), ("k.json", b"{}"), ("k.mp4", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shard = index_shard(str(tmp_path / "a.tar"))
    assert shard.read(0)["mp4"] == b"1"
    assert "is duplicated" in str(shard.problem)


def test_the_cache_is_used_until_a_shard_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "shards", tmp_path / "cache" / "index"
    _by_clipmill(folder)
    first, second = _shard(folder / "a.tar"), _shard(folder / "b.tar")
    before = index_shards(folder, cache=cache)
    cache.write_text(cache.read_text().replace("a-0", "A-0"))
    again = index_shards(folder, cache=cache)
    assert again.shards[0].key(0) == "a/A-0"  # taken from the cache, not from the tar
    assert again.shards[1].read(3) == before.shards[1].read(3)
    _shard(first, 5)
    assert [len(shard) for shard in index_shards(folder, cache=cache).shards] == [5, 4]
    second.write_bytes(b"")
    assert len(index_shards(folder, cache=cache).problems) == 1
    assert len(index_shards(folder, cache=cache).problems) == 1  # from the cache, too


def test_shards_of_another_format_are_rejected_before_they_are_read(tmp_path: Path) -> None:
    tar = _shard(tmp_path / "a.tar")
    (tmp_path / "plan.json").write_text('{"format": "clipmill latents", "format_version": 1}')
    for wanted in (tmp_path, tar, tmp_path / "*.tar"):
        with pytest.raises(UserError, match=r"latents format 1, .* rerun `clipmill cache-latents`"):
            index_shards(wanted)


def test_the_cache_knows_every_sample_again(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff %20"))
    _by_clipmill(folder)
    samples = [sample("a", b"1"), sample("ü\u2028", b"1"), {"__key__": "b", "jpg": b"1", "json": about()}]
    write_shard(folder / "a.tar", [*samples, {"__key__": "c", "json": about()}])
    (before,) = index_shards(folder, cache=tmp_path / "index").shards
    written = (tmp_path / "index").stat().st_mtime_ns
    (again,) = index_shards(folder, cache=tmp_path / "index").shards
    assert (tmp_path / "index").stat().st_mtime_ns == written
    for field in fields(Shard):
        assert np.array_equal(getattr(again, field.name), getattr(before, field.name)) or field.name == "keys"
    assert _keys(again) == _keys(before)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    _by_clipmill(tmp_path)
    _shard(tmp_path / "a.tar")
    cache = tmp_path / "index"
    index_shards(tmp_path, cache=cache)
    cache.write_text(cache.read_text()[:-200])
    assert len(index_shards(tmp_path, cache=cache)) == 4


def _by_clipmill(folder: Path) -> None:
    """Its index is kept in the cache of a run, not beside the tars."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(SHARDS.describe()))


def _tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of files with any name."""
    with tarfile.open(path, "w", format=kind, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _keys(shard: Shard) -> list[str]:
    return [shard.keys[row] for row in range(len(shard))]


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("where", ["first", "last"])
def test_members_that_are_no_files_are_no_damage(tmp_path: Path, kind: bytes, where: str) -> None:
    """As `tar cf` writes of a folder."""
    other = tarfile.TarInfo("folder")
    other.type, other.linkname = kind, "k.mp4"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        if where == "first":
            tar.addfile(other)
        for name in ("k.mp4", "k.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        if where == "last":
            tar.addfile(other)
    shard = index_shard(str(tmp_path / "a.tar"))
    assert (len(shard), shard.problem) == (1, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 256, "name has 256 bytes, more than 255"),
        ("folder/" + "x" * 249, "name has 256 bytes"),
        ("x" * 100_000, "name has 100,000 bytes"),
        ("\udcff\udcfe", "name is not UTF-8"),
    ],
)
def test_a_name_that_cannot_be_a_key_breaks_its_sample_alone(tmp_path: Path, name: str, reason: str) -> None:
    good = [("good.mp4", b"1"), ("good.json", b"{}"), ("x" * 255 + ".mp4", b"1"), ("x" * 255 + ".json", b"{}")]
    path = _tar(tmp_path / "a.tar", [(f"{name}.mp4", b"1"), (f"{name}.json", b"{}"), *good], tarfile.GNU_FORMAT)
    shard = index_shard(str(path))
    assert _keys(shard) == ["good", "x" * 255]
    assert shard.problem is None
    ((key, got),) = shard.broken
    assert got.startswith(reason)
    assert len(key) < 300
    assert key.encode()


def test_an_index_grows_with_the_samples_alone(tmp_path: Path) -> None:
    """One name of a megabyte, and an extension of its own per sample."""
    count = 1000
    plain = [(f"{i}.{extension}", b"") for i in range(count) for extension in ("mp4", "json")]
    large = [("y" * 1_000_000 + ".mp4", b""), *((f"{i}.e{i}", b"") for i in range(count))]
    held = []
    for name, members in (("plain", plain), ("hostile", [*plain, *large])):
        path = _tar(tmp_path / f"{name}.tar", members, tarfile.GNU_FORMAT)
        tracemalloc.start()
        shard = index_shard(str(path))
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(shard) == count
        assert shard.extensions == ("json", "mp4")
        assert shard.ranges_NE2.shape == (count, 2, 2)
    assert held[1] < 2 * held[0] + 4_000_000


@pytest.mark.parametrize("chain", ["x", "L", "K", "S"])
def test_headers_without_end_stop_a_shard_before_they_are_in_memory(tmp_path: Path, chain: str) -> None:
    """3 GiB of a pax header, of a GNU name, of the map of a sparse file; the file is sparse itself."""
    path = _shard(tmp_path / "a.tar", 2)
    with path.open("r+b") as file:
        end = index_shard(str(path)).ranges_NE2[-1, :, 0].max() + 512 * 8
        header = tarfile.TarInfo("huge")
        header.type, header.size = chain.encode(), 3 << 30
        block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
        if chain == "S":
            block[482] = 1  # the map goes on in the next block
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
        file.truncate(end := -(-int(end) // 512) * 512)
        position = int(index_shard(str(path)).ranges_NE2[-1].sum(-1).max())
        file.seek(-(-position // 512) * 512)
        file.write(block)
        if chain == "S":
            file.write((b"\0" * 504 + b"\1" + b"\0" * 7) * 5000)
        file.truncate(file.tell() + (4 << 30))
    tracemalloc.start()
    shard = index_shard(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(shard) >= 1
    assert "headers exceed" in str(shard.problem)
    assert peak < 16 << 20


def test_headers_that_nest_without_end_stop_a_shard(tmp_path: Path) -> None:
    good = _tar(tmp_path / "good.tar", [("k.mp4", b"1"), ("k.json", b"{}")], tarfile.USTAR_FORMAT).read_bytes()[:2048]
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 9
    nested = pax.tobuf(tarfile.USTAR_FORMAT) + b"9 a=bcde\n".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(good + nested * 1000)
    shard = index_shard(str(tmp_path / "a.tar"))
    assert len(shard) == 1
    assert str(shard.problem).startswith("damaged header at byte 2,048")


def test_a_sparse_file_breaks_its_sample(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("s.mp4").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    block[483:495] = b"%011o\0" % (1 << 30)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    rest = _tar(tmp_path / "rest.tar", [("s.json", b"{}"), ("k.mp4", b"1"), ("k.json", b"{}")], tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(bytes(block) + rest.read_bytes())
    shard = index_shard(str(tmp_path / "a.tar"))
    assert (_keys(shard), shard.problem) == (["k"], None)
    assert shard.broken == (("s", "mp4 is a sparse file, which is not supported"),)


def test_a_file_that_is_too_large_breaks_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shards.MAX_FILE_BYTES, "json", 10)
    path = _tar(tmp_path / "a.tar", [("a.mp4", b""), ("a.json", b"{" * 11), ("b.mp4", b""), ("b.json", b"{" * 10)])
    shard = index_shard(str(path))
    assert _keys(shard) == ["b"]
    assert shard.broken == (("a", "its json has 11 bytes, more than 10"),)


@pytest.mark.parametrize("line", ["[]", "5", "null", '{"path": 5}', '{"path": "a", "keys": 5}', "[" * 100_000])
def test_a_cache_of_any_content_is_made_again(tmp_path: Path, line: str) -> None:
    _by_clipmill(tmp_path)
    _shard(tmp_path / "a.tar")
    (tmp_path / "index").write_text(f"clipmill shard index 5\n{line}\n")
    assert len(index_shards(tmp_path, cache=tmp_path / "index")) == 4
