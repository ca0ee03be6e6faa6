"""The matrix of a dataset's embeddings: its content, when it is made anew, and cosines to a query."""

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import UserError
from curation.dataset import embeddings as module
from curation.dataset.embeddings import open_embeddings
from curation.dataset.nearest import cosines, nearest
from curation.dataset.rows import rows_of_clips
from curation.dataset.tables import Dataset
from tests.curation.selection.datasets import make

WIDTH = 16


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float16)


def with_embeddings(url: str, rows: np.ndarray, parts: int = 3) -> Dataset:
    return make(url, [{"embedding": row.tolist()} for row in rows], parts=parts)


def by_clip(dataset: Dataset) -> dict[str, np.ndarray]:
    with open_embeddings(dataset) as embeddings:
        rows = embeddings.take(np.arange(len(embeddings)))
        return dict(zip(embeddings.clip_ids.to_pylist(), rows, strict=True))


def clip_id(i: int) -> str:
    return f"s{i % 3}-{i:04d}-0"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)


@pytest.mark.parametrize("url", ["local", "memory"])
def test_every_usable_embedding_is_there_once_at_length_one(tmp_path: Path, url: str):
    address = str(tmp_path / "d") if url == "local" else f"memory://{uuid.uuid4().hex}/d"
    rows = vectors(50)
    dataset = make(
        address,
        [{"embedding": None if i == 4 else row.tolist()} for i, row in enumerate(rows)]
        + [{"embedding": [0.0] * WIDTH}, {"embedding": [float("nan")] * WIDTH}, {"embedding": []}],
    )
    found = by_clip(dataset)
    assert found.keys() == {clip_id(i) for i in range(50) if i != 4}
    for i, row in enumerate(rows.astype(np.float64)):
        if i != 4:
            np.testing.assert_allclose(found[clip_id(i)], row / np.linalg.norm(row), atol=1e-3)
    assert (Path(address) / "search" / "embeddings.arrow").exists() == (url == "local")


def test_places_lead_to_the_rows_of_the_tables(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(40))
    with open_embeddings(dataset) as embeddings:
        ids = embeddings.clip_ids.to_pylist()
        places = embeddings.places(np.arange(len(embeddings)))
        assert len(embeddings) == 40
        assert embeddings.rows_of(pa.array([ids[9], ids[3], "nobody"])).tolist() == [3, 9]
    for expected, (part, row) in zip(ids, places, strict=True):
        assert dataset.read_part("clips", part, ["clip_id"])["clip_id"][row].as_py() == expected


def test_the_file_is_kept_until_the_clips_change(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(20))
    file = tmp_path / "d" / "search" / "embeddings.arrow"
    by_clip(dataset)
    first = file.stat().st_ino
    assert len(by_clip(dataset)) == 20
    assert file.stat().st_ino == first
    part = dataset.read_part("clips", "p0")
    dataset.write_part("clips", "p0", part.slice(0, part.num_rows - 2))
    assert len(by_clip(dataset)) == 18
    assert file.stat().st_ino != first


def test_a_damaged_file_is_made_anew(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(20))
    expected = by_clip(dataset)
    file = tmp_path / "d" / "search" / "embeddings.arrow"
    for content in (b"", b"ARROW1", file.read_bytes()[:200]):
        file.write_bytes(content)
        found = by_clip(dataset)
        assert found.keys() == expected.keys()


def changed(name: str, values: list[object], kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """Another column of that name; `values` are repeated."""

    def change(table: pa.Table) -> pa.Table:
        column = pa.array((values * len(table))[: len(table)], kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["row"]),
        lambda table: table.slice(0, 0),
        lambda table: table.replace_schema_metadata(table.schema.metadata | {b"clipmill.parts": b"{"}),
        lambda table: table.replace_schema_metadata(table.schema.metadata | {b"clipmill.parts": b'["../../x"]'}),
        lambda table: table.replace_schema_metadata({b"clipmill.inputs": table.schema.metadata[b"clipmill.inputs"]}),
        changed("part", [0, 99]),
        changed("part", [-1]),
        changed("row", [None, 1]),
        changed("row", [-5]),
        changed("clip_id", [None, "x"]),
        changed("embedding", [[1.0, 2.0]], pa.list_(pa.float16())),
    ],
)
def test_a_file_of_others_with_the_right_digest_is_made_anew(tmp_path: Path, change: Callable[[pa.Table], pa.Table]):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(20))
    expected = by_clip(dataset)
    file = tmp_path / "d" / "search" / "embeddings.arrow"
    with pa.ipc.open_file(file.read_bytes()) as reader:
        table = change(reader.read_all())
    for rows_per_batch in (7, 3):
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_batch)
        assert by_clip(dataset).keys() == expected.keys()
        with open_embeddings(dataset) as embeddings:
            assert {part for part, _ in embeddings.places(np.arange(20))} == set(dataset.parts("clips"))


def test_a_clip_that_is_not_in_the_tables_is_an_error(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(3))
    with (
        dataset.connect() as connection,
        pytest.raises(UserError, match=r"has no clip 'nobody': its search/embeddings\.arrow is of other clips"),
    ):
        rows_of_clips(dataset, connection, [clip_id(0), "nobody"], ["clip_id"])


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(20))
    (tmp_path / "d" / "search").write_text("in the way")
    assert len(by_clip(dataset)) == 20
    assert (tmp_path / "d" / "search").read_text() == "in the way"


def test_what_to_do_without_embeddings(tmp_path: Path):
    with pytest.raises(UserError, match=r"has an embedding to compare: .* Curate with CLIP into a new folder"):
        by_clip(make(str(tmp_path / "none"), [{}] * 3))
    with pytest.raises(UserError, match="no clip of"):
        by_clip(make(str(tmp_path / "empty"), []))
    two = make(str(tmp_path / "two"), [{"embedding": [1.0, 2.0]}, {"embedding": [1.0, 2.0, 3.0]}])
    with pytest.raises(UserError, match="embeddings of different models cannot be compared"):
        by_clip(two)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(0, 9))
def test_cosines_are_those_of_a_plain_loop(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int):
    rows, query = vectors(count, seed), vectors(1, seed + 100)[0].astype(np.float32)
    dataset = with_embeddings(str(tmp_path_factory.mktemp("d") / "d"), rows)
    with open_embeddings(dataset) as embeddings:
        found = dict(zip(embeddings.clip_ids.to_pylist(), cosines(embeddings, query), strict=True))
    wide, long = rows.astype(np.float64), query.astype(np.float64)
    expected = wide @ long / np.linalg.norm(wide, axis=1) / np.linalg.norm(long)
    for i in range(count):
        assert found[clip_id(i)] == pytest.approx(expected[i], abs=2e-3)


def test_equal_embeddings_have_equal_cosines_in_every_block(tmp_path: Path):
    dataset = with_embeddings(str(tmp_path / "d"), np.repeat(vectors(1), 30, axis=0))
    with open_embeddings(dataset) as embeddings:
        assert len(embeddings.batches) > 1
        assert len(set(cosines(embeddings, vectors(1, 1)[0].astype(np.float32)).tolist())) == 1


@pytest.mark.parametrize("query", [np.zeros(WIDTH), np.full(WIDTH, np.nan), np.ones(WIDTH - 1)])
def test_queries_that_cannot_be_compared(tmp_path: Path, query: np.ndarray):
    dataset = with_embeddings(str(tmp_path / "d"), vectors(5))
    with open_embeddings(dataset) as embeddings, pytest.raises(UserError, match=r"dimensions|no direction"):
        cosines(embeddings, query)


@given(st.lists(st.one_of(st.just(np.nan), st.floats(-1, 1, width=16)), max_size=40), st.integers(1, 45))
def test_the_nearest_are_the_highest_in_order(values: list[float], most: int):
    found = nearest(np.array(values, np.float32), most)
    usable = [i for i, value in enumerate(values) if not np.isnan(value)]
    assert found.tolist() == sorted(usable, key=lambda i: (-values[i], i))[:most]
