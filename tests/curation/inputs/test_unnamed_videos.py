"""Files in a folder whose names do not say that they are videos."""

from pathlib import Path

import pytest

from curation.inputs import folders
from curation.inputs.captions import read_supplied
from curation.inputs.sources import list_sources

VIDEO = b"\0\0\0\x20ftypisom" + bytes(100)
GIF = b"GIF89a" + bytes(100)


def names(folder: Path) -> list[str]:
    return [str(Path(source.uri).relative_to(folder)) for source in list_sources([str(folder)])]


def put(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_files_without_a_suffix_are_taken_by_their_content(tmp_path: Path):
    put(
        tmp_path, **{"a.mp4": VIDEO, "clip": VIDEO, "clip.txt": b"a cat", "x.bin": VIDEO, "README": b"x", "b.bin": b"y"}
    )
    put(tmp_path, **{"c.webp": b"RIFF\0\0\0\0WEBPVP8 ", "thumbnail.jpg": VIDEO, "deep/e": b"\0\0\0\1\x67" + bytes(9)})
    assert names(tmp_path) == ["a.mp4", "clip", "deep/e", "x.bin"]
    listing = list_sources([str(tmp_path)])
    assert listing.passed_over == {"without suffix": 1, ".bin": 1, ".webp": 1, ".jpg": 1}
    supplied = read_supplied(next(s for s in listing if s.uri.endswith("clip")), {})
    assert [c.caption.text for c in supplied.captions] == ["a cat"]


def test_animations_and_raw_streams_are_taken_by_their_names(tmp_path: Path):
    given = ["a.apng", "a.GIF", "a.h264", "a.hevc", "a.ivf", "a.rmvb", "a.y4m"]
    put(tmp_path, **dict.fromkeys(given, GIF))
    assert sorted(names(tmp_path)) == sorted(given)


def test_a_store_of_blobs_and_the_links_to_it_are_one_video(tmp_path: Path):
    put(tmp_path, **{"blobs/0a1b": VIDEO, "blobs/2c3d": VIDEO})
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "a.mp4").symlink_to("../blobs/0a1b")
    assert names(tmp_path) == ["blobs/2c3d", "snapshots/a.mp4"]


def test_only_so_many_files_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "_LOOKED_INTO_AT_MOST", 3)
    put(tmp_path, **{f"clip{i}": VIDEO for i in range(5)})
    listing = list_sources([str(tmp_path)])
    assert (len(listing), listing.passed_over) == (3, {"without suffix": 2})
