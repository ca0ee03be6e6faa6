import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill import storage
from clipmill.errors import RunStopped, UserError
from clipmill.formats import DATASET
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.schemas import CLIPS, SCHEMAS, SOURCES, with_column_tables
from curation.dataset.tables import Dataset, part_name
from curation.dataset.totals import source_totals

FORMAT_MD = Path(__file__).parents[3] / "docs" / "format.md"
CONFIG = {"spans": {"min_s": 2.0, "max_s": 20.0}, "text": {"side_px": 640}}


def write_source(dataset: Dataset, source_id: str, clips: int = 2, *, commit: bool = True) -> None:
    rows = [
        {
            "clip_id": f"{source_id}-{i}-{i + 1}",
            "source_id": source_id,
            "uri": f"/videos/{source_id}.mp4",
            "start_s": float(i),
            "end_s": float(i + 1),
            "duration_s": 1.0,
            "width": 640,
            "motion": float(i * 10),
            "source_captions": [0],
        }
        for i in range(clips)
    ]
    part = part_name([source_id])
    dataset.write_part("clips", part, pa.Table.from_pylist(rows, schema=CLIPS))
    if commit:
        source = {"source_id": source_id, "audio": True, "width": 1920, "container": "mov"}
        source |= {"captions": [{"source": "sidecar", "text": "a red circle"}]}
        dataset.write_part("sources", part, pa.Table.from_pylist([source], schema=SOURCES))


@pytest.fixture(params=["local", "s3"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """Two committed sources with two clips each, and one source that a killed run left half written."""
    awkward = "it's [1] *"
    url = str(tmp_path / awkward) if request.param == "local" else f"{request.getfixturevalue('s3_url')}/{awkward}"
    dataset = Dataset(url).create_or_open(CONFIG)
    write_source(dataset, "aaaa")
    write_source(dataset, "bbbb")
    write_source(dataset, "cccc", commit=False)
    return dataset


def rows(dataset: Dataset, query: str) -> list[tuple]:
    with dataset.connect() as connection:
        return connection.execute(query).fetchall()


def test_only_committed_parts_count(dataset: Dataset) -> None:
    assert dataset.statuses().keys() == {"aaaa", "bbbb"}
    assert dataset.parts("clips") == sorted(part_name([s]) for s in ("aaaa", "bbbb"))
    assert rows(dataset, "SELECT count(*) FROM clips") == [(4,)]
    assert rows(dataset, "SELECT count(*) FROM joined") == [(4,)]


def test_unfinished_parts_are_removed(dataset: Dataset) -> None:
    removed = dataset.remove_unfinished()
    assert removed == [dataset.file("clips", f"{part_name(['cccc'])}.parquet")]
    assert dataset.remove_unfinished() == []
    assert rows(dataset, "SELECT count(*) FROM clips") == [(4,)]


def test_writing_a_part_again_replaces_it(dataset: Dataset) -> None:
    write_source(dataset, "aaaa", clips=3)
    assert rows(dataset, "SELECT count(*), count(DISTINCT clip_id) FROM clips") == [(5, 5)]


def test_joined_view_holds_clips_then_sources_then_scores(dataset: Dataset) -> None:
    ids = ["aaaa-0-1", "bbbb-1-2", "gone-0-1"]
    scores = pa.table({"clip_id": ids, "beauty": [5.0, 6.0, 7.0], "motion": [1.0, 1.0, 1.0]})
    dataset.write_part("scores/laion", "any", scores)
    query = "SELECT clip_id, width, container, beauty, motion, laion_motion FROM joined ORDER BY clip_id"
    assert rows(dataset, query) == [
        ("aaaa-0-1", 640, "mov", 5.0, 0.0, 1.0),
        ("aaaa-1-2", 640, "mov", None, 10.0, None),
        ("bbbb-0-1", 640, "mov", None, 0.0, None),
        ("bbbb-1-2", 640, "mov", 6.0, 10.0, 1.0),
    ]
    assert rows(dataset, "SELECT count(*) FROM scores_laion") == [(3,)]


@pytest.mark.slow
def test_tables_that_are_not_needed_are_not_joined(dataset: Dataset) -> None:
    with dataset.connect() as connection:
        assert "JOIN" not in joined_query(connection, ["clip_id", "motion"])
        assert joined_query(connection, ["motion", "audio"]).count("JOIN") == 1
        assert joined_columns(connection)["width"][0] == "clips"


def test_an_empty_dataset_has_all_columns(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "new")).create_or_open({})
    assert dataset.statuses() == {}
    with dataset.connect() as connection:
        described = connection.execute("DESCRIBE clips").fetchall()
    assert [column[0] for column in described] == CLIPS.names


def test_meaning_unit_and_polarity_are_in_the_files(dataset: Dataset) -> None:
    part = dataset.file("clips", f"{part_name(['aaaa'])}.parquet")
    with dataset.fs.open(part, "rb") as file:
        motion = pq.read_schema(file).field("motion")
    assert motion.metadata[b"better"] == b"higher"
    assert motion.metadata[b"unit"] == b"%/s"
    for schema in SCHEMAS.values():
        for column in schema:
            assert column.metadata[b"meaning"], column.name
            assert column.metadata[b"better"] in (b"higher", b"lower", b"")


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "new")).create_or_open({})
    with pytest.raises(ValueError, match=r"unknown: \['colour'\]"):
        dataset.write_part("clips", "p", CLIPS.empty_table().append_column("colour", pa.array([], pa.string())))
    with pytest.raises(ValueError, match="clip_id"):
        dataset.write_part("scores/x", "p", pa.table({"a": [1]}))
    with pytest.raises(ValueError, match="unknown table"):
        dataset.write_part("scores/../clips", "p", pa.table({"clip_id": ["a"]}))
    assert dataset.parts("clips") == []


def test_part_names_do_not_depend_on_order() -> None:
    assert part_name(["a", "b"]) == part_name(["b", "a"]) != part_name(["ab"])


def test_the_same_configuration_goes_on(dataset: Dataset) -> None:
    before = storage.read_bytes(dataset.fs, dataset.file("dataset.json"))
    Dataset(dataset.url).create_or_open(json.loads(json.dumps(CONFIG)))
    assert storage.read_bytes(dataset.fs, dataset.file("dataset.json")) == before
    assert dataset.description()["config"] == CONFIG
    assert storage.list_files(dataset.fs, dataset.path) == [dataset.file("dataset.json")]


def test_another_configuration_is_refused_with_the_difference(dataset: Dataset) -> None:
    other = {"spans": {"min_s": 3.0, "max_s": 20.0}, "motion": {}, "text": {}}
    with pytest.raises(UserError) as error:
        dataset.create_or_open(other)
    text = str(error.value)
    assert "spans.min_s: was 2.0, now 3.0" in text
    assert "text.side_px: was 640, now absent" in text
    assert "motion: was absent, now {}" in text
    assert "max_s" not in text
    assert "--out" in text


def test_a_release_with_other_columns_is_refused(dataset: Dataset) -> None:
    edit_description(dataset, lambda d: d["columns"]["clips"].pop("motion"))
    with pytest.raises(UserError, match=r"clips\.motion: was absent, now \"float\""):
        dataset.create_or_open(CONFIG)
    dataset.open()  # reading goes on working


def test_an_older_format_is_refused_with_what_to_do(dataset: Dataset) -> None:
    edit_description(dataset, lambda d: d.update(format_version=2))
    with pytest.raises(UserError, match=r"has dataset format 2, this clipmill reads format 3: re-curate"):
        dataset.open()


def test_a_newer_format_is_refused(dataset: Dataset) -> None:
    edit_description(dataset, lambda d: d.update(format_version=DATASET.version + 1))
    with pytest.raises(UserError, match="upgrade"):
        dataset.open()


def test_a_damaged_description_is_a_user_error(dataset: Dataset) -> None:
    storage.write_bytes(dataset.fs, dataset.file("dataset.json"), b"{")
    with pytest.raises(UserError, match="damaged"):
        dataset.open()


def test_a_folder_with_other_files_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"holiday\.mp4"):
        Dataset(str(tmp_path)).create_or_open({})
    with pytest.raises(UserError, match="not a dataset"):
        Dataset(str(tmp_path)).open()
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.mp4"]


def test_a_run_killed_at_the_very_start_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / ".dataset.json.0123456789ab.tmp").write_bytes(b"{")
    Dataset(str(tmp_path)).create_or_open({}).open()
    assert Dataset(str(tmp_path)).statuses() == {}


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError):
        Dataset(str(tmp_path / "file")).create_or_open({})
    with pytest.raises(UserError):
        Dataset(str(tmp_path / "file" / "below")).create_or_open({})


def test_datasets_travel_to_other_processes(dataset: Dataset) -> None:
    assert pickle.loads(pickle.dumps(dataset)).statuses().keys() == {"aaaa", "bbbb"}


def test_the_column_tables_of_the_document_are_up_to_date() -> None:
    document = FORMAT_MD.read_text()
    assert with_column_tables(document) == document, "run: python -m curation.dataset.schemas docs/format.md"
    assert "`text_area`" in document


SNIPPETS = re.findall(r"```python\n(.*?)```", FORMAT_MD.read_text(), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["pandas", "polars", "duckdb", "selection"])
def test_the_documented_ways_to_read_it_run(
    snippet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = Dataset("DATASET").create_or_open(CONFIG)
    write_source(dataset, "aaaa")
    write_source(dataset, "cccc", commit=False)
    (tmp_path / "DATASET" / "selections").mkdir()
    pq.write_table(pa.table({"clip_id": ["aaaa-1-2"]}), "DATASET/selections/NAME.parquet")
    exec(compile(snippet, "docs/format.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "aaaa-1-2" in printed
    assert "cccc" not in printed


def test_duckdb_leaves_no_spill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(str(tmp_path / "new")).create_or_open({})
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    with dataset.connect(memory="32MiB") as connection:
        connection.execute("CREATE TABLE large AS SELECT hash(i) AS h FROM range(3000000) t(i) ORDER BY h")
        assert list(spill.iterdir()), "the query was to be too large for the memory"
    assert list(spill.iterdir()) == []


def edit_description(dataset: Dataset, change: Callable[[dict[str, Any]], object]) -> None:
    description = dataset.description()
    change(description)
    storage.write_bytes(dataset.fs, dataset.file("dataset.json"), json.dumps(description).encode())


def test_the_totals_of_a_dataset_without_sources_are_numbers(tmp_path: Path):
    with Dataset(str(tmp_path / "d")).create_or_open({}).connect() as connection:
        totals = source_totals(connection)
    assert (totals.sources, totals.sources_ok, totals.rejected, totals.duration_s) == (0, 0, {}, 0.0)


def test_a_part_that_goes_while_it_is_read_is_named(tmp_path: Path):
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    for name in ("previews", "clips", "sources"):
        dataset.write_part(name, "p0", SCHEMAS[name].empty_table())
    part = tmp_path / "d" / "sources" / "p0.parquet"

    def read() -> None:
        with dataset.connect() as connection:
            part.unlink()
            connection.execute("SELECT count(*) FROM sources").fetchall()

    with pytest.raises(RunStopped, match=r"another run removed .*p0\.parquet while it was read: rerun"):
        read()
    with pytest.raises(UserError, match="the query over") as other, dataset.connect() as connection:
        connection.execute("SELECT nothing FROM sources")
    assert not isinstance(other.value, RunStopped)
