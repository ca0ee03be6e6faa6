"""Index of tar shards: whole ones, broken ones, the cache."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.training.shards import about, sample, write_shard
from training.shard_index import find_shards, index_shard, index_shards


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
    assert set(shard.read(0)) == {"latent.safetensors", "txt", "json"}
    assert {extension: len(content) for extension, content in shard.read(1).items()}["jpg"] == 2
    assert "txt" not in shard.read(1)


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


def test_a_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local"):
        index_shards("s3://bucket/shards")


@pytest.mark.parametrize("cut", range(0, 4 * 5120, 700))
def test_a_truncated_tar_keeps_the_samples_before_the_cut(tmp_path: Path, cut: int) -> None:
    path = _shard(tmp_path / "a.tar")
    whole = index_shard(str(path))
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    shard = index_shard(str(path))
    needed = [whole.extensions.index(extension) for extension in ("mp4", "json")]
    lasting = [i for i in range(4) if whole.places_NE2[i, needed].sum(1).max() <= cut]
    assert shard.keys.tolist() == whole.keys[lasting].tolist()
    for row in range(len(shard)):
        assert {"mp4": bytes([row]) * (3000 + row)}.items() <= shard.read(row).items()
    assert shard.problem


def test_a_damaged_header_ends_a_shard(tmp_path: Path) -> None:
    path = _shard(tmp_path / "a.tar")
    third = index_shard(str(path)).places_NE2[2, :, 0].min() - 512
    content = bytearray(path.read_bytes())
    content[third : third + 64] = os.urandom(64)
    path.write_bytes(bytes(content))
    shard = index_shard(str(path))
    assert len(shard) == 2
    assert f"damaged header at byte {third:,}" in str(shard.problem)


@pytest.mark.parametrize("content", [b"", b"this is no tar" * 100])
def test_what_is_no_tar_is_recorded(tmp_path: Path, content: bytes) -> None:
    _shard(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(content)
    index = index_shards(tmp_path)
    assert len(index) == 4
    ((path, reason),) = index.problems
    assert path.endswith("b.tar")
    assert reason.startswith("no readable tar")


def test_incomplete_samples_are_named(tmp_path: Path) -> None:
    samples = [sample("a", b"1"), {"__key__": "b", "mp4": b"1"}, {"__key__": "c", "json": about()}]
    index = index_shards(write_shard(tmp_path / "x.tar", samples))
    assert index.broken == [("x/b", "no json"), ("x/c", "no mp4, jpg, latent.safetensors")]
    assert len(index) == 1


def test_a_repeated_file_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("k.mp4", b"1"), ("k.json", b"{}"), ("k.mp4", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shard = index_shard(str(tmp_path / "a.tar"))
    assert shard.read(0)["mp4"] == b"1"
    assert "comes twice" in str(shard.problem)


def test_the_cache_is_used_until_a_shard_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "shards", tmp_path / "cache" / "index"
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


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    _shard(tmp_path / "a.tar")
    cache = tmp_path / "index"
    index_shards(tmp_path, cache=cache)
    cache.write_text(cache.read_text()[:-200])
    assert len(index_shards(tmp_path, cache=cache)) == 4
