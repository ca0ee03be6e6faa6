"""Rows of replaced files leave the tables, and a kill at any moment of that leaves none behind."""

from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.superseded import remove_superseded, superseded_sources
from curation.dataset.tables import Dataset
from tests.curation.dataset.kills import Killed, kill_at_write

CURRENT = {"/a.mp4": "a2", "/b.mp4": "b1", "/new.mp4": "c1"}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two versions of /a.mp4, in one part with /b.mp4; a source that is not listed anymore, in another."""
    dataset = Dataset(str(tmp_path / "dataset")).create_or_open({})
    uris = {"p": {"a1": "/a.mp4", "a2": "/a.mp4", "b1": "/b.mp4"}, "q": {"a0": "/a.mp4"}, "r": {"z1": "/z.mp4"}}
    for part, of_part in uris.items():
        clips = [{"clip_id": f"{i}-0-1", "source_id": i, "uri": uri} for i, uri in of_part.items()]
        previews = [{"clip_id": clip["clip_id"]} for clip in clips]
        dataset.write_part("previews", part, pa.Table.from_pylist(previews, PREVIEWS))
        dataset.write_part("scores/theirs", part, pa.table({"clip_id": [clip["clip_id"] for clip in clips]}))
        dataset.write_part("clips", part, pa.Table.from_pylist(clips, CLIPS))
        sources = [{"source_id": i, "uri": uri, "status": "ok"} for i, uri in of_part.items()]
        dataset.write_part("sources", part, pa.Table.from_pylist(sources, SOURCES))
    return dataset


def held(dataset: Dataset) -> dict[str, set[str]]:
    """Table -> its sources."""
    found = {}
    for table in dataset.tables():
        rows = [row for part in dataset.parts(table) for row in dataset.read_part(table, part).to_pylist()]
        found[table] = {(row.get("source_id") or row["clip_id"].split("-")[0]) for row in rows}
    return found


LEFT = {table: {"a2", "b1", "z1"} for table in ("clips", "previews", "scores/theirs", "sources")}


def test_the_file_that_is_there_is_the_newer_one(dataset: Dataset) -> None:
    assert superseded_sources(dataset, CURRENT) == {"a0", "a1"}
    assert superseded_sources(dataset, {"/a.mp4": "a1"}) == {"a0", "a2"}
    assert superseded_sources(dataset, {}) == set()
    remove_superseded(dataset, superseded_sources(dataset, CURRENT))
    assert held(dataset) == LEFT
    assert superseded_sources(dataset, CURRENT) == set()


@pytest.mark.parametrize("number", range(12))
def test_a_kill_at_any_write_leaves_none_behind_after_a_rerun(
    dataset: Dataset, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tried = kill_at_write(patch, number)
        try:
            remove_superseded(dataset, superseded_sources(dataset, CURRENT))
        except Killed:
            pass
        else:
            assert tried() <= number
    remove_superseded(dataset, superseded_sources(dataset, CURRENT))
    assert held(dataset) == LEFT
    assert not Path(dataset.file("superseded.json")).exists()


def test_a_damaged_note_is_one_sentence(dataset: Dataset) -> None:
    for note in ("{", "[]", '{"source_ids": "a2"}', '{"source_ids": [1]}'):
        Path(dataset.file("superseded.json")).write_text(note)
        with pytest.raises(UserError, match=r"superseded\.json is damaged"):
            superseded_sources(dataset, {})
    assert held(dataset)["clips"] >= {"a0", "a1", "a2"}
