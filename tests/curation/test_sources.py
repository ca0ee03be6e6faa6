"""Listing inputs: what is found, what is said of what is not, and that ids are stable."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import UserError
from curation.sources import list_sources, open_source

ODD_NAMES = ["with space.mp4", "quote'\".mp4", "new\nline.mp4", "emoji 🎬.mp4", "semi;colon&amp.mp4", "50%.mp4"]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_gives_its_videos_in_order_of_name(tmp_path: Path):
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", "a.json", ".hidden.mp4", ".cache/d.mp4"):
        touch(tmp_path / name)
    uris = [s.uri for s in list_sources([str(tmp_path)])]
    assert uris == [str(tmp_path / name) for name in ("a.MKV", "b.mp4", "deep/er/c.webm")]


def test_globs_files_and_repetitions(tmp_path: Path):
    for name in ("a.mp4", "b.mp4", "c.mov"):
        touch(tmp_path / name)
    uris = [s.uri for s in list_sources([str(tmp_path / "*.mp4"), str(tmp_path / "c.mov"), str(tmp_path)])]
    assert uris == [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mov")]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_and_can_be_opened(tmp_path: Path, name: str):
    touch(tmp_path / name, name.encode())
    for given in (str(tmp_path), str(tmp_path / name)):
        (source,) = list_sources([given])
        assert source.error is None
        with open_source(source.uri) as file:
            assert file.read() == name.encode()


def test_a_name_that_is_not_utf8_becomes_a_url_and_can_be_opened(tmp_path: Path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    with open(path, "wb") as file:
        file.write(b"content")
    (source,) = list_sources([str(tmp_path)])
    assert source.uri.startswith("file://")
    assert source.uri.endswith("caf%E9.mp4")
    source.uri.encode()
    with open_source(source.uri) as file:
        assert file.read() == b"content"
    (again,) = list_sources([source.uri])
    assert again.source_id == source.source_id


def test_what_is_not_there_is_a_source_with_a_reason(tmp_path: Path):
    (tmp_path / "x.mp4").mkdir()
    touch(tmp_path / "ok.mp4")
    missing, pattern, *rest = list_sources([str(tmp_path / "no.mp4"), str(tmp_path / "*.avi"), str(tmp_path)])
    assert (missing.error.kind, pattern.error.kind) == ("missing", "missing")
    assert {Path(s.uri).name: s.error and s.error.kind for s in rest} == {"ok.mp4": None, "x.mp4": "unreadable"}
    (folder,) = list_sources([str(tmp_path / "x.mp4")])
    assert folder.error.kind == "unreadable"


def test_lists_in_every_format_give_addresses_and_captions(tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / "videos" / name)
    rows = {"url": ["videos/a.mp4", str(tmp_path / "videos/b.mp4")], "caption": ["a red, round thing", None]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text(f'id,url,caption\n1,videos/a.mp4,"a red, round thing"\n2,{rows["url"][1]},\n')
    (tmp_path / "list.txt").write_text(f"# a comment\nvideos/a.mp4\ta red, round thing\n\n{rows['url'][1]}\n")
    for suffix in ("parquet", "csv", "txt"):
        first, second = list_sources([str(tmp_path / f"list.{suffix}")])
        assert first.uri == str(tmp_path / "videos/a.mp4")
        assert first.captions == ("a red, round thing",)
        assert (second.captions, second.error) == ((), None)


def test_a_list_without_addresses_is_refused(tmp_path: Path):
    (tmp_path / "list.csv").write_text("name,caption\na,b\n")
    with pytest.raises(UserError, match=r"columns \['name', 'caption'\].*'uri'"):
        list(list_sources([str(tmp_path / "list.csv")]))
    with pytest.raises(UserError, match="does not exist"):
        list(list_sources([str(tmp_path / "none.csv")]))


def test_the_id_changes_with_the_file_and_only_then(tmp_path: Path):
    path = touch(tmp_path / "a.mp4", b"one")
    (first,) = list_sources([str(path)])
    (same,) = list_sources([f"{tmp_path}/../{tmp_path.name}/a.mp4"])
    assert first.source_id == same.source_id
    assert len(first.source_id) == 16
    path.write_bytes(b"two!")
    (changed,) = list_sources([str(path)])
    assert changed.source_id != first.source_id


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UserError, match="gopher"):
        list(list_sources(["gopher://host/a.mp4"]))


def test_lists_keep_numbers_as_they_are_written_and_all_captions(tmp_path: Path):
    touch(tmp_path / "007.mp4")
    (tmp_path / "list.csv").write_text("path,caption\n007.mp4,007\n007.mp4,a spy\n")
    (source,) = list_sources([str(tmp_path / "list.csv")])
    assert (source.error, source.captions) == (None, ("007", "a spy"))
    (tmp_path / "numbers.csv").write_text("path\n001\n")
    (missing,) = list_sources([str(tmp_path / "numbers.csv")])
    assert missing.uri.endswith("/001")


def test_a_bad_line_in_a_list_is_one_row_and_strange_separators_are_text(tmp_path: Path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("gopher://x/y.mp4\na.mp4\tone\u2028caption\n", encoding="utf-8")
    bad, good = list_sources([str(tmp_path / "list.txt")])
    assert bad.error.kind == "unreadable"
    assert good.captions == ("one\u2028caption",)
    (tmp_path / "latin.csv").write_bytes("path,caption\na.mp4,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        list(list_sources([str(tmp_path / "latin.csv")]))


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "x.mp4")
    (source,) = list_sources([str(tmp_path)])
    assert (source.error.kind, "pipe" in source.error.message) == ("unreadable", True)


def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match="cannot read s3://bucket"):
        list(list_sources(["s3://bucket/*.mp4"]))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
