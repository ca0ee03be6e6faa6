"""Sidecars behind links: those of the input are read, files elsewhere are not."""

from pathlib import Path

import pytest

from curation.inputs.caption import TimedCaption
from curation.inputs.captions import read_supplied
from curation.inputs.sources import Source, list_sources
from tests.curation.inputs.captions import texts

# Links


def linked(tmp_path: Path, target: Path | str, folder: str = "input") -> list[TimedCaption]:
    """What is read of a video whose .txt is a link, when the folder `input` was given."""
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "a.mp4").write_bytes(b"x")
    (place / "a.txt").symlink_to(target)
    return read_supplied(Source(uri=str(place / "a.mp4"), root=str(tmp_path / "input")), {}).captions


@pytest.mark.parametrize("target", ["/proc/self/environ", "/etc/passwd", "/dev/zero", "../outside.txt"])
def test_a_link_to_a_file_elsewhere_is_not_a_caption(tmp_path: Path, target: str):
    (tmp_path / "outside.txt").write_text("a secret")
    (timed,) = linked(tmp_path, target)
    assert timed.caption.text is None
    assert timed.caption.error.startswith("a.txt: ")


def test_a_link_within_the_input_is_a_caption(tmp_path: Path):
    (tmp_path / "input" / "texts").mkdir(parents=True)
    (tmp_path / "input" / "texts" / "1.txt").write_text("a cat")
    assert [t.caption.text for t in linked(tmp_path, "../../texts/1.txt", folder="input/deep/videos")] == ["a cat"]


@pytest.mark.parametrize("store", [".git/annex/objects/a/b", ".dvc/cache/files/md5/ab", "blobs"])
def test_a_link_into_the_content_store_around_the_input_is_a_caption(tmp_path: Path, store: str):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / store).mkdir(parents=True)
    (tmp_path / store / "cdef").write_text("a cat")
    assert [t.caption.text for t in linked(tmp_path, tmp_path / store / "cdef")] == ["a cat"]


def test_a_linked_folder_has_the_captions_beside_its_videos(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.mp4").write_bytes(b"x")
    (tmp_path / "other" / "a.txt").write_text("a cat")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "link").symlink_to("../other")
    (source,) = list_sources([str(tmp_path / "input")])
    assert texts(source) == [("sidecar", "a cat")]
