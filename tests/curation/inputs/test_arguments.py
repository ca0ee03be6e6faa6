"""What a shell or a download tool puts beside videos: captions, thumbnails, information."""

import json
from pathlib import Path

import pytest

from curation.inputs.captions import read_supplied
from curation.inputs.sources import Source, list_sources

INFO = {
    "id": "aaaaaaaaaaa",
    "title": "A cat walks along a wall",
    "description": "See https://example.org/?token=SECRET",
    "license": "CC-BY",
    "uploader": "someone",
    "tags": ["cat", "wall"],
    "duration": 6,
    "formats": [{"url": "https://example.org/video?sig=SECRET"}],
    "http_headers": {"Cookie": "SECRET"},
}


def put(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)


def expanded(folder: Path) -> list[str]:
    """The arguments that a shell makes of `folder/*`."""
    return sorted(map(str, folder.iterdir()))


def supplied(source: Source) -> list[tuple[str, str | None]]:
    return [(c.caption.source, c.caption.text) for c in read_supplied(source, {}).captions]


def test_captions_among_expanded_arguments_are_sidecars(tmp_path: Path):
    files = ("a.mp4", "a.txt", "a.json", "a.info.json", "a.en.vtt", "a.jpg", "b.c.mp4", "b.c.txt")
    put(tmp_path, **dict.fromkeys(files, "{}"), **{"x.csv": "path\nb.c.mp4\n"})
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.c.txt").write_text("a dog")
    listing = list_sources(expanded(tmp_path))
    assert [Path(s.uri).name for s in listing] == ["a.mp4", "b.c.mp4"]
    assert listing.passed_over == {".vtt": 1, ".jpg": 1}
    first, second = listing
    assert ("sidecar", "a cat") in supplied(first)
    assert supplied(second) == [("sidecar", "a dog")]


def test_a_list_that_lies_beside_a_video_of_another_name_is_a_list(tmp_path: Path):
    put(tmp_path, **{"a.mp4": "x", "b.mp4": "x", "list.txt": "b.mp4\ta dog\n"})
    listing = list_sources([str(tmp_path / "a.mp4"), str(tmp_path / "list.txt")])
    assert [(Path(s.uri).name, s.captions) for s in listing] == [("a.mp4", ()), ("b.mp4", ("a dog",))]
    put(tmp_path, **{"list.mp4": "x"})
    listing = list_sources([str(tmp_path / "list.txt")])
    assert [Path(s.uri).name for s in listing] == ["b.mp4"], "alone, it is a list"


def test_the_information_of_yt_dlp(tmp_path: Path):
    name = "A cat [aaaaaaaaaaa]"
    put(tmp_path, **{f"{name}.mp4": "x", f"{name}.info.json": json.dumps(INFO)})
    listing = list_sources([str(tmp_path)])
    assert listing.passed_over == {}
    (source,) = listing
    assert supplied(source) == [("title", "A cat walks along a wall")]
    assert read_supplied(source, {}).metadata == {
        "id": "aaaaaaaaaaa",
        "title": "A cat walks along a wall",
        "description": "See https://example.org/",
        "license": "CC-BY",
        "author": "someone",
        "tags": '["cat", "wall"]',
    }


def test_of_several_values_the_lists_counts_then_the_sidecars(tmp_path: Path):
    put(tmp_path, **{"a.mp4": "x", "a.info.json": json.dumps(INFO)})
    put(tmp_path, **{"a.json": json.dumps({"Licence": "CC0", "id": "b", "views": 7, "caption": "a cat"})})
    put(tmp_path, **{"list.csv": "path,id\na.mp4,c\n"})
    (source,) = list_sources([str(tmp_path / "list.csv")])
    both = read_supplied(source, {})
    assert {name: both.metadata[name] for name in ("license", "id", "views", "author")} == {
        "license": "CC0",
        "id": "c",
        "views": "7",
        "author": "someone",
    }
    assert supplied(source) == [("sidecar", "a cat"), ("title", "A cat walks along a wall")]


@pytest.mark.parametrize("content", ['{"title": 7}', '{"title": "\\ud800"}', "{}"])
def test_information_without_a_title_is_no_caption(tmp_path: Path, content: str):
    put(tmp_path, **{"a.mp4": "x", "a.info.json": content})
    assert supplied(Source(uri=str(tmp_path / "a.mp4"))) == []


def test_damaged_information_is_a_failed_caption(tmp_path: Path):
    put(tmp_path, **{"a.mp4": "x", "a.info.json": '{"title": '})
    (caption,) = read_supplied(Source(uri=str(tmp_path / "a.mp4")), {}).captions
    assert caption.caption.error is not None
    assert caption.caption.error.startswith("a.info.json: invalid JSON")


def test_a_sidecar_of_metadata_alone(tmp_path: Path):
    put(tmp_path, **{"a.mp4": "x", "a.json": json.dumps({"license": "CC0", "essay": "x" * 30_000})})
    both = read_supplied(Source(uri=str(tmp_path / "a.mp4")), {})
    assert (both.captions, both.metadata) == ([], {"license": "CC0"})
