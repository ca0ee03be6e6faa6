"""What a name, a file or a condition from outside can do with a DuckDB connection: nothing but be read."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from clipmill import shard, storage
from clipmill.errors import UserError
from clipmill.formats import SHARDS
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.sql import batches, literal, open_connection, quoted
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import find_duplicates
from curation.selection.rules import Rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from pipelines.select import select
from pipelines.status import status

HOSTILE = (
    "x) FROM (SELECT content FROM read_text('{secret}')) --_error",
    "a\"b); COPY (SELECT 1) TO '{evil}'; --",
    "c]'; ATTACH '{evil}' AS d; --_error",
    "semi;colon[0]",
    "new\nline",
    "{evil}",
)
"""Names of columns that are SQL for whoever does not quote them."""


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Dataset, list[str], Path]:
    """A dataset whose clips, sources and added scores have such columns; their names, and the file they would make."""
    secret, evil = tmp_path / "secret.txt", tmp_path / "evil"
    secret.write_text("secret")
    names = [name.replace("{secret}", str(secret)).replace("{evil}", str(evil)) for name in HOSTILE]
    dataset = Dataset(str(tmp_path / 'it\'s [1] * "d"')).create_or_open({})
    clips = pa.Table.from_pylist(
        [
            {"clip_id": f"c{i}", "source_id": "s", "uri": "/v", "duration_s": 4.0, "embedding": [1.0, float(i)]}
            for i in range(4)
        ],
        CLIPS,
    )
    tables = {"clips": clips, "sources": pa.Table.from_pylist([{"source_id": "s", "status": "ok"}], SOURCES)}
    tables["scores/mine"] = clips.select(["clip_id"])
    for folder, table in list(tables.items()):
        for i, name in enumerate(names):
            tables[folder] = tables[folder].append_column(f"{folder[-2]}{name}", pa.array([float(i)] * table.num_rows))
        (Path(dataset.path) / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(tables[folder], f"{dataset.path}/{folder}/it's.parquet")
    return dataset, [f"{folder[-2]}{name}" for name in names for folder in tables], evil


@pytest.mark.slow
def test_column_names_that_are_sql_are_only_names(hostile: tuple[Dataset, list[str], Path]) -> None:
    dataset, names, evil = hostile
    before = sorted(p for p in Path(dataset.path).rglob("*") if p.is_file())
    assert status(dataset).clips == 4
    assert "secret" not in json.dumps(asdict(status(dataset)))
    find_duplicates(dataset)
    for name in names:
        rules = {"name": "r", "rules": {name: {"drop_lowest": "10%", "max": 9}}, "where": f"{quoted(name)} < 9"}
        assert select_clips(dataset, Rules.from_values(rules, origin="test"), name="r").clips == 4
        (batch,) = selected_clips(dataset, "r", [name, "motion"])
        assert batch.schema.names == [name, "motion"]
        for file in Path(dataset.path).glob("selections/*"):
            file.unlink()
    (batch,) = selected_clips(select_everything(dataset), "all")
    assert set(names) <= set(batch.schema.names)
    with pytest.raises(UserError, match="unknown column of numbers"):
        select_clips(dataset, Rules.from_values({"name": "r", "rules": {HOSTILE[0]: {"min": 0}}}, origin="test"))
    after = sorted(p for p in Path(dataset.path).rglob("*") if p.is_file())
    written = {"selections", "duplicates"}
    assert [p for p in after if written.isdisjoint(p.relative_to(dataset.path).parts)] == before
    assert not evil.exists()


def select_everything(dataset: Dataset) -> Dataset:
    select_clips(dataset, Rules(name="all"))
    return dataset


@pytest.mark.parametrize("name", ['"', "'", 'a"b', "x'; DROP TABLE t; --", "[0]", "", "tab\t", "é"])
def test_quoting_is_the_identity_for_duckdb(name: str) -> None:
    with duckdb.connect() as connection:
        result = connection.execute(f"SELECT {literal(name)} AS {quoted(name or 'x')}")
        assert result.fetchall() == [(name,)]
        assert result.description[0][0] == (name or "x")


def test_text_that_is_not_unicode_is_a_user_error() -> None:
    with pytest.raises(UserError, match="valid UTF-8"):
        quoted("\ud800")


FORBIDDEN = (
    "SELECT * FROM read_text('{other}')",
    "SELECT * FROM read_parquet('{other}')",
    "SELECT * FROM glob('{folder}/*')",
    "COPY (SELECT 1) TO '{folder}/evil'",
    "COPY (SELECT 1) TO '{dataset}/clips/evil.parquet'",
    "ATTACH '{folder}/evil.db'",
    "EXPORT DATABASE '{folder}/evil'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "SET allowed_directories = ['/']",
)


@pytest.mark.parametrize("query", FORBIDDEN)
@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_connection_reads_its_tables_and_nothing_else(
    tmp_path: Path, request: pytest.FixtureRequest, query: str, where: str
) -> None:
    url = str(tmp_path / "d") if where == "local" else f"{request.getfixturevalue('s3_url')}/d"
    dataset = Dataset(url).create_or_open({})
    rows = pa.Table.from_pylist([{"clip_id": "c", "source_id": "s"}], CLIPS)
    dataset.write_part("clips", "p", rows)
    dataset.write_part("sources", "p", pa.Table.from_pylist([{"source_id": "s"}], SOURCES))
    other = tmp_path / "other.parquet"
    pq.write_table(rows, other)
    before = storage.read_bytes(dataset.fs, dataset.file("clips", "p.parquet"))
    with dataset.connect() as connection:
        assert connection.execute("SELECT count(*) FROM joined").fetchall() == [(1,)]
        with pytest.raises(duckdb.Error):
            connection.execute(query.format(other=other, folder=tmp_path, dataset=url)).fetchall()
        assert connection.execute("SELECT count(*) FROM joined").fetchall() == [(1,)]
    assert not list(tmp_path.glob("evil*"))
    assert storage.read_bytes(dataset.fs, dataset.file("clips", "p.parquet")) == before


def test_local_variables_are_no_tables(tmp_path: Path) -> None:
    secret = pa.table({"a": [1]})
    with Dataset(str(tmp_path / "d")).create_or_open({}).connect() as connection, pytest.raises(duckdb.Error):
        connection.execute("SELECT * FROM secret")
    assert secret.num_rows == 1


Break = Callable[[Path], object]
JSON_DAMAGE: dict[str, bytes] = {
    "half": b'{"a": ',
    "empty": b"",
    "zeros": bytes(64),
    "list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "object": b"{}",
    "not utf-8": b'{"\xff": 1}',
    "deep": b"[" * 100_000,
    "wrong types": json.dumps(
        dict.fromkeys(
            ["format", "format_version", "config", "fingerprint", "columns", "notices", "totals", "funnel", "clips"], 7
        )
    ).encode(),
}
FILES = ("dataset.json", "models.json", "selections/all.json", "shards/all/index.json")
PARQUET = (
    "clips/p.parquet",
    "sources/p.parquet",
    "scores/mine/p.parquet",
    "scores/duplicates/duplicates.parquet",
    "selections/all.parquet",
)
FINE = {("models.json", "object")}
"""Not damage: nothing is said of the models."""


@pytest.fixture
def complete(tmp_path: Path) -> Dataset:
    """A dataset with a file of every kind that `status`, `select` and `shard` read."""
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    clips = [{"clip_id": f"c{i}", "source_id": f"s{i}", "embedding": [1.0, float(i)]} for i in range(3)]
    dataset.write_part("clips", "p", pa.Table.from_pylist(clips, CLIPS))
    dataset.write_part("sources", "p", pa.Table.from_pylist([{"source_id": f"s{i}"} for i in range(3)], SOURCES))
    dataset.write_part("scores/mine", "p", pa.table({"clip_id": ["c0"], "mine": [1.0]}))
    find_duplicates(dataset)
    select_clips(dataset, Rules(name="all"))
    totals = {"shards": 1, "samples": 3, "bytes": 10, "failed": 0, "duration_s": 1.0}
    index = SHARDS.describe(kind="clips", selection="all", totals=totals)
    for name, value in {"models.json": {"notices": []}, "shards/all/index.json": index}.items():
        storage.write_bytes(dataset.fs, dataset.file(name), json.dumps(value).encode())
    return dataset


def use(dataset: Dataset) -> None:
    """Everything that reads a dataset, short of Ray."""
    opened = Dataset(dataset.url).open()
    opened.create_or_open({})
    status(opened)
    opened.statuses()
    select(dataset.url, Rules.from_values({"name": "more", "rules": {"mine": {"min": 0}}}, origin="test"))
    list(selected_clips(opened, "all"))
    find_duplicates(opened)


def test_a_complete_dataset_is_read(complete: Dataset) -> None:
    use(complete)


@pytest.mark.parametrize("damage", JSON_DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damaged_json_is_a_sentence_that_names_the_file(complete: Dataset, file: str, damage: str) -> None:
    Path(complete.file(file)).write_bytes(JSON_DAMAGE[damage])
    if (file, damage) in FINE:
        use(complete)
        return
    with pytest.raises(UserError, match=f"{file} is damaged: ") as error:
        use(complete)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("damage", ["empty", "8 bytes", "truncated", "no columns", "other types"])
@pytest.mark.parametrize("file", PARQUET)
def test_damaged_parquet_is_a_sentence_that_names_the_file(complete: Dataset, file: str, damage: str) -> None:
    path = Path(complete.file(file))
    content = path.read_bytes()
    if damage == "no columns":
        pq.write_table(pa.table({"other": [1]}), path)
    elif damage == "other types":
        table = pq.read_table(path)
        pq.write_table(pa.table({name: pa.array([[{"a": 1}]]) for name in table.column_names}), path)
    else:
        path.write_bytes({"empty": b"", "8 bytes": b"PAR1PAR1", "truncated": content[:-20]}[damage])
    with pytest.raises(UserError) as error:
        use(complete)
    if damage in ("empty", "8 bytes", "truncated"):
        assert file in str(error.value)


def test_damage_met_while_rows_are_read_is_an_error_of_the_query(tmp_path: Path) -> None:
    """In a late group of rows: by then the query has begun to answer."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"number": range(400_000)}), path, row_group_size=10_000)
    chunk = pq.ParquetFile(path).metadata.row_group(35).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with open_connection(LocalFileSystem(), {"rows": [str(path)]}) as connection:
        answer = batches(connection, "SELECT * FROM rows", 1_000)
        assert next(answer).num_rows == 1_000
        with pytest.raises(duckdb.Error):
            list(answer)


def test_a_selection_of_which_no_clip_is_left_is_a_sentence(complete: Dataset) -> None:
    pq.write_table(pa.table({"clip_id": ["gone"]}), Path(complete.file("selections/all.parquet")))
    with pytest.raises(UserError, match="no longer contains any of the 1 clips of 'all'"):
        shard(complete.url, "all")


@pytest.mark.parametrize("name", ["clips", "sources"])
def test_a_part_whose_name_is_not_utf8_is_a_user_error(complete: Dataset, name: str) -> None:
    for folder in ("clips", "sources"):
        (Path(complete.file(folder)) / "\udcff.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="valid UTF-8"):
        status(complete)
