"""How often a dataset in an object store is asked what it holds."""

from collections import Counter

import pyarrow as pa
import pytest

from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.score_versions import RecordedVersion, ScoreVersion
from curation.dataset.tables import Dataset


def finished(version: int) -> RecordedVersion:
    made_with = ScoreVersion(scorer_version=version)
    return RecordedVersion(version=version, made_with=made_with, target="scorers:Luma", finished=True)


@pytest.fixture
def dataset(s3_url: str) -> Dataset:
    """Two parts, a table of scores without versions, and a score with two."""
    dataset = Dataset(f"{s3_url}/d").create_or_open({})
    for part in ("p", "q"):
        ids = [{"clip_id": f"{part}{i}", "source_id": f"{part}{i}"} for i in range(3)]
        dataset.write_part("clips", part, pa.Table.from_pylist(ids, CLIPS))
        sources = [{"source_id": each["source_id"]} for each in ids]
        dataset.write_part("sources", part, pa.Table.from_pylist(sources, SOURCES))
        dataset.write_part("scores/mine", part, pa.table({"clip_id": [f"{part}0"], "mine": [1.0]}))
        for version in (1, 2):
            dataset.write_part(f"scores/luma/v{version}", part, pa.table({"clip_id": [f"{part}0"], "luma": [0.5]}))
    dataset.record_versions("scores/luma", [finished(1), finished(2)])
    return Dataset(dataset.url)


def test_a_connection_lists_each_folder_once_and_asks_for_no_file_that_it_listed(
    dataset: Dataset, s3_requests: list[tuple[str, str]]
) -> None:
    s3_requests.clear()
    with dataset.connect() as connection:
        assert connection.execute("SELECT count(*), count(mine), sum(luma) FROM joined").fetchone() == (6, 2, 1.0)
    listed = Counter(key for method, key in s3_requests if method == "list_objects_v2")
    folders = (
        "sources",
        "clips",
        "scores",
        "scores/mine",
        "scores/luma",
        "scores/luma/v1",
        "scores/luma/v2",
        "captions",
    )
    assert {f"d/{folder}/" for folder in folders} <= listed.keys()
    assert set(listed.values()) == {1}
    assert {key for method, key in s3_requests if method == "head_object"} <= {"d/removal.json"}


def test_a_later_question_sees_what_was_written_since(dataset: Dataset) -> None:
    assert "captions_seen@1" not in dataset.views()
    dataset.write_part("captions/seen/v1", "p", pa.table({"clip_id": ["p0"], "seen_caption": ["a cat"]}))
    dataset.record_versions("captions/seen", [finished(1)])
    assert dataset.views()["captions_seen@1"] == "captions/seen/v1"
    assert dataset.parts("clips") == ["p", "q"]
