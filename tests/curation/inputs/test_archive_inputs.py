"""Videos in archives as inputs: on the command line, in lists, with their sidecars, and scanned where they are."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from clipmill.errors import UserError
from curation.inputs.captions import read_supplied
from curation.inputs.sources import InputsConfig, list_sources, open_source, stat_source
from curation.scan.credentials import store_of
from curation.scan.one_pass import ScanConfig, scan
from curation.shots.spans import SpanConfig
from tests.media import panning, write_video

TRUSTED = InputsConfig(archives_in_lists=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """videos.zip and shards/0.tar, each with two videos, captions and more."""
    files = {
        "a.mp4": b"first",
        "a.txt": b"a cat",
        "deep/b.mp4": b"second",
        "deep/b.json": json.dumps({"caption": "a dog", "license": "CC0"}).encode(),
        "notes.md": b"x",
    }
    with zipfile.ZipFile(tmp_path / "videos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    for name, content in files.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        archive.add(tmp_path / "files", ".")
    return tmp_path


@pytest.mark.parametrize(
    "given",
    ["videos.zip", "zip://::videos.zip", "zip://*::videos.zip", "shards/*.tar", "tar://**/*.mp4::shards/0.tar"],
)
def test_every_video_of_an_archive(folder: Path, monkeypatch: pytest.MonkeyPatch, given: str):
    monkeypatch.chdir(folder)
    listing = list_sources([given])
    archive = folder / ("videos.zip" if "zip" in given else "shards/0.tar")
    kind = archive.suffix[1:]
    assert [s.uri for s in listing] == [f"{kind}://{name}::{archive}" for name in ("a.mp4", "deep/b.mp4")]
    supplied = [read_supplied(source, {}) for source in listing]
    assert [[c.caption.text for c in each.captions] for each in supplied] == [["a cat"], ["a dog"]]
    assert [each.metadata for each in supplied] == [{}, {"license": "CC0"}]
    for source, content in zip(listing, (b"first", b"second"), strict=True):
        assert stat_source(source.uri).source_id == source.source_id
        with open_source(source.uri) as file:
            assert file.read() == content


def test_one_file_of_an_archive(folder: Path):
    (source,) = list_sources([f"zip://deep/b.mp4::{folder}/videos.zip"])
    assert (source.error, source.size_bytes) == (None, 6)
    with pytest.raises(UserError, match=r"zip://none.mp4::.*videos.zip does not exist"):
        list_sources([f"zip://none.mp4::{folder}/videos.zip"])
    with pytest.raises(UserError, match=r"none.zip"):
        list_sources([f"zip://a.mp4::{folder}/none.zip"])


def test_a_compressed_archive_is_one_sentence(folder: Path):
    (folder / "videos.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"videos.tar.gz: expected a .zip or an uncompressed .tar; unpack it"):
        list_sources([str(folder / "videos.tar.gz")])


def test_what_an_archive_holds_beside_videos_is_counted(folder: Path):
    assert list_sources([str(folder / "videos.zip")]).passed_over == {".md": 1}
    assert list_sources([str(folder)]).passed_over[".zip"] == 1


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_list_may_name_files_in_archives_where_the_configuration_says_so(folder: Path, suffix: str):
    rows = ["zip://deep/b.mp4::videos.zip", f"tar://a.mp4::{folder}/shards/0.tar", "zip://x.mp4::gopher://h/x.zip"]
    lines = {".txt": rows, ".csv": ["path", *rows], ".jsonl": [json.dumps({"path": row}) for row in rows]}[suffix]
    (folder / f"list{suffix}").write_text("\n".join(lines))
    refused = list_sources([str(folder / f"list{suffix}")])
    assert {s.error.kind for s in refused} == {"unreadable"}
    assert all("archives_in_lists: true" in s.error.message for s in refused)
    *taken, unknown = list_sources([str(folder / f"list{suffix}")], TRUSTED)
    assert [s.uri for s in taken] == [f"zip://deep/b.mp4::{folder}/videos.zip", f"tar://a.mp4::{folder}/shards/0.tar"]
    assert "plain address" in unknown.error.message


def test_a_list_inside_an_archive_is_relative_to_it(folder: Path):
    with zipfile.ZipFile(folder / "videos.zip", "a") as archive:
        archive.writestr("deep/list.csv", "path,caption\nb.mp4,a dog\n../a.mp4,a cat\n")
    sources = list_sources([f"zip://deep/list.csv::{folder}/videos.zip"])
    assert [(s.uri.partition("::")[0], s.captions) for s in sources] == [
        ("zip://deep/b.mp4", ("a dog",)),
        ("zip://a.mp4", ("a cat",)),
    ]


def test_names_in_an_archive_that_are_not_utf8_are_rows(folder: Path):
    with tarfile.open(folder / "odd.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("café.mp4"))
    (row,) = list_sources([str(folder / "odd.tar")])
    assert (row.error.kind, "not UTF-8" in row.error.message) == ("unreadable", True)
    row.uri.encode()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_video_in_an_archive_is_scanned_like_any_other(tmp_path: Path, method: int):
    path = write_video(tmp_path / "a.mp4", panning(height=64, pixels_per_frame=2, frames=48))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.write(path, "in/a.mp4")
    config = ScanConfig(spans=SpanConfig(min_s=0.5))
    plain, inside = (scan(next(iter(list_sources([g]))), config) for g in (str(path), str(tmp_path / "x.zip")))
    assert inside.source["uri"] == f"zip://in/a.mp4::{tmp_path}/x.zip"
    assert [c["frames"] for c in inside.clips] == [c["frames"] for c in plain.clips]
    assert inside.thumbnails == plain.thumbnails


def test_the_child_gets_the_credentials_of_the_store_of_the_archive():
    assert store_of("zip://a.mp4::s3://bucket/x.zip") == "s3"
    assert store_of("zip://a.mp4::tar://x.zip::gs://bucket/x.tar") == "gs"
    assert store_of("zip://a.mp4::/x.zip") == ""


def test_an_archive_on_a_store(s3_url: str, folder: Path):
    import fsspec

    fs, path = fsspec.url_to_fs(s3_url)
    fs.put(str(folder / "videos.zip"), f"{path}/videos.zip")
    sources = list_sources([f"{s3_url}/videos.zip"])
    assert [s.uri for s in sources] == [f"zip://{name}::{s3_url}/videos.zip" for name in ("a.mp4", "deep/b.mp4")]
    with open_source(sources.sources[1].uri) as file:
        assert file.read() == b"second"
