"""Metadata of sources: a column per name, of a sane type, which no list can use to take over a table's own."""

from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.errors import UserError
from curation.dataset import metadata
from curation.dataset.joined import joined_columns
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from curation.selection.select import select_clips


def dataset_with(folder: Path, *values: dict[str, str] | None) -> Dataset:
    """A dataset with one clip per source, the sources with this metadata."""
    dataset = Dataset(str(folder / "dataset")).create_or_open({})
    ids = [f"{i:016x}" for i in range(len(values))]
    clips = [{"clip_id": f"{i}-0-1", "source_id": i, "uri": i, "duration_s": 1.0, "motion": 3.0} for i in ids]
    sources = [{"source_id": i, "status": "ok", "metadata": v} for i, v in zip(ids, values, strict=True)]
    dataset.write_part("clips", "p", pa.Table.from_pylist(clips, CLIPS))
    dataset.write_part("sources", "p", pa.Table.from_pylist(sources, SOURCES))
    return dataset


def selected(dataset: Dataset, where: str) -> list[int]:
    """Numbers of the sources whose clips a condition selects."""
    selection = select_clips(dataset, Rules.from_values({"name": "x", "where": where}, origin="test"), replace=True)
    table = dataset.fs.open(dataset.file("selections", f"{selection.name}.parquet"))
    return [int(clip_id[:16], 16) for clip_id in pa.parquet.read_table(table)["clip_id"].to_pylist()]


def test_a_name_is_a_column_in_a_condition(tmp_path: Path):
    dataset = dataset_with(tmp_path, {"license": "CC0"}, {"license": "CC-BY"}, None, {"author": "O'Brien"})
    assert selected(dataset, "license = 'CC0'") == [0]
    assert selected(dataset, "license LIKE 'CC%' OR author = 'O''Brien'") == [0, 1, 3]
    assert selected(dataset, "license IS NULL") == [2, 3]
    assert selected(dataset, "metadata['license'] = 'CC-BY'") == [1]
    with pytest.raises(UserError, match="licence"):
        selected(dataset, "licence = 'CC0'")


def test_numbers_are_numbers_where_all_are(tmp_path: Path):
    rows = [{"views": "7", "id": "007", "big": "123456789012345678", "mixed": "7"}, {"views": "1.5e3", "mixed": "many"}]
    dataset = dataset_with(tmp_path, *rows, {})
    with dataset.connect() as connection:
        kinds = {name: kind for name, (_, _, kind) in joined_columns(connection).items() if name in rows[0]}
    assert kinds == {"views": "DOUBLE", "id": "VARCHAR", "big": "VARCHAR", "mixed": "VARCHAR"}
    assert selected(dataset, "views > 100") == [1]
    rules = Rules.from_values({"name": "viewed", "rules": {"views": {"max": 100, "unscored": "drop"}}}, origin="test")
    assert select_clips(dataset, rules).clips == 1


def test_a_name_of_a_table_keeps_its_column(tmp_path: Path):
    dataset = dataset_with(tmp_path, {"motion": "9", "Status": "mine", "duration_s": "x", "contrast": "list"})
    scores = pa.table({"clip_id": [f"{0:016x}-0-1"], "contrast": [0.5]})
    dataset.write_part("scores/mine", "p", scores)
    with dataset.connect() as connection:
        query = "SELECT motion, status, duration_s, contrast, metadata_motion, metadata_contrast FROM joined"
        assert connection.execute(query).fetchall() == [(3.0, "ok", 1.0, 0.5, 9.0, "list")]


def test_a_name_cannot_be_sql(tmp_path: Path):
    name = 'x" FROM sources; DROP VIEW clips; --'
    dataset = dataset_with(tmp_path, {name: "1", "it's": "2", "é ü": "3"})
    with dataset.connect() as connection:
        row = connection.execute("""SELECT "it's", "é ü", "x"" FROM sources; DROP VIEW clips; --" FROM joined""")
        assert row.fetchall() == [(2.0, 3.0, 1.0)]


def test_names_beyond_the_limit_are_in_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "MOST_NAMES", 1)
    dataset = dataset_with(tmp_path, {"often": "a", "seldom": "b"}, {"often": "a"})
    assert selected(dataset, "often = 'a'") == [0, 1]
    assert selected(dataset, "metadata['seldom'] = 'b'") == [0]
