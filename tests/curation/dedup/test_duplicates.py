import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import DUPLICATES, DuplicatesConfig, find_duplicates, is_current, rank_duplicates
from curation.selection.rules import Rules
from curation.selection.select import select_clips

BATCH = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("aesthetic", pa.float32()),
        ("duration_s", pa.float64()),
        ("embedding", pa.list_(pa.float16())),
    ]
)
Found = dict[str, tuple[int, str | None]]


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def copies_of(rows: NDArray[np.float64], cosine: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit vectors at this very cosine (up to fp16) from each of these unit vectors, in a random direction."""
    noise = rng.standard_normal(rows.shape)
    aside = unit(noise - (noise * rows).sum(1, keepdims=True) * rows)
    return cosine * rows + math.sqrt(1 - cosine**2) * aside


def at(degrees: float) -> list[float]:
    """The unit vector in the plane at this angle: cosines are cosines of differences of angles."""
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def clip(number: int, embedding: Any, **others: Any) -> dict[str, Any]:
    """A clip of a source of its own."""
    row = {"clip_id": f"c{number:05d}", "source_id": f"s{number:05d}", "width": 640, "height": 360}
    return row | {"duration_s": 4.0, "embedding": None if embedding is None else np.float16(embedding)} | others


def batches(rows: Sequence[dict[str, Any]], size: int = 1000) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist(list(rows[i : i + size]), BATCH) for i in range(0, len(rows), size)]


def ranked(rows: Sequence[dict[str, Any]], **settings: Any) -> Found:
    """clip_id -> (duplicate_rank, duplicate_of)."""
    table, _ = rank_duplicates(batches(rows), DuplicatesConfig(**settings))
    columns = (table[name].to_pylist() for name in ("clip_id", "duplicate_rank", "duplicate_of"))
    return {clip_id: (rank, of) for clip_id, rank, of in zip(*columns, strict=True)}


def as_stored(embedding: NDArray[np.float16]) -> NDArray[np.float64]:
    """At length 1, in half precision: rounding moves a cosine at the threshold to either side of it."""
    return unit(unit(embedding.astype(np.float32)).astype(np.float16).astype(np.float64))


def simply_ranked(rows: Sequence[dict[str, Any]], min_cosine: float, *, same_source: bool) -> Found:
    """The rule, said again: the best first, and each clip joins the best kept clip that it is near to."""
    unknown = -math.inf
    best_first = sorted(
        rows,
        key=lambda r: (
            -r["width"] * r["height"],
            -(unknown if r["aesthetic"] is None else r["aesthetic"]),
            -r["duration_s"],
            r["clip_id"],
        ),
    )
    groups: dict[str, list[str]] = {}
    kept: list[dict[str, Any]] = []
    for row in best_first:
        for other in kept:
            apart = row["source_id"] == other["source_id"] and not same_source
            if not apart and as_stored(row["embedding"]) @ as_stored(other["embedding"]) >= min_cosine:
                groups[other["clip_id"]].append(row["clip_id"])
                break
        else:
            kept.append(row)
            groups[row["clip_id"]] = []
    copies = {c: (i, of) for of, members in groups.items() for i, c in enumerate(members, 1)}
    return dict.fromkeys(groups, (0, None)) | copies


def test_planted_copies_are_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    originals = unit(rng.standard_normal((3000, 128)))
    copies, relatives = copies_of(originals[:300], 0.96, rng), copies_of(originals[300:600], 0.94, rng)
    rows = [clip(i, vector, width=1280) for i, vector in enumerate(originals)]
    rows += [clip(3000 + i, vector) for i, vector in enumerate(np.concatenate([copies, relatives]))]
    rng.shuffle(rows)
    table, result = rank_duplicates(batches(rows, 700))
    ranked = {row["clip_id"]: row for row in table.to_pylist()}
    for i in range(300):
        copy = ranked[f"c{3000 + i:05d}"]
        assert (copy["duplicate_rank"], copy["duplicate_of"]) == (1, f"c{i:05d}")
        assert copy["duplicate_cosine"] == pytest.approx(0.96, abs=1e-3)
    kept = [row for row in ranked.values() if row["duplicate_rank"] == 0]
    assert len(kept) == 3300
    assert all(row["duplicate_of"] is row["duplicate_cosine"] is None for row in kept)
    assert (result.clips, result.kept, result.duplicates, result.groups) == (3600, 3300, 300, 300)
    assert (result.largest_group, result.without_embedding, result.approximate) == (2, 0, False)
    assert table["clip_id"].to_pylist() == sorted(ranked)


def test_the_best_of_a_group_is_kept_in_the_stated_order() -> None:
    rows = [
        clip(0, at(0), width=320, height=180, aesthetic=9.0, duration_s=20.0),
        clip(1, at(1), aesthetic=5.0, duration_s=3.0),
        clip(2, at(2), aesthetic=5.0, duration_s=3.5),
        clip(3, at(3), aesthetic=6.0, duration_s=2.0),
        clip(4, at(4), aesthetic=None, duration_s=20.0),
        clip(5, at(5), aesthetic=5.0, duration_s=3.0),
        clip(6, at(6), width=360, height=640, aesthetic=5.5),
    ]
    best_first = {3: 0, 6: 1, 2: 2, 1: 3, 5: 4, 4: 5, 0: 6}
    assert ranked(rows) == {f"c{i:05d}": (rank, "c00003" if rank else None) for i, rank in best_first.items()}
    longest_first = ranked(rows, order=("duration", "aesthetic"))
    assert [i for i, _ in sorted(longest_first.items(), key=lambda item: item[1][0])] == [
        f"c{i:05d}" for i in (0, 4, 6, 2, 1, 5, 3)
    ]


def test_ties_go_by_clip_id_whatever_the_order_of_the_rows() -> None:
    rows = [clip(i, at(i / 10)) for i in range(9)]
    assert ranked(rows) == ranked(rows[::-1]) == {f"c{i:05d}": (i, "c00000" if i else None) for i in range(9)}


def test_a_chain_does_not_join_its_ends() -> None:
    """Neighbours are 14 degrees apart (cosine 0.970), the ends 28 (0.883): the middle is near both."""
    chain = [clip(0, at(0)), clip(1, at(14)), clip(2, at(28))]
    assert ranked(chain) == {"c00000": (0, None), "c00001": (1, "c00000"), "c00002": (0, None)}
    best_in_the_middle = [clip(0, at(0)), clip(1, at(14), width=1280), clip(2, at(28))]
    assert ranked(best_in_the_middle) == {"c00000": (1, "c00001"), "c00001": (0, None), "c00002": (2, "c00001")}
    between_two = [clip(0, at(0)), clip(1, at(28)), clip(2, at(16))]  # nearer to the second, but the first is better
    assert ranked(between_two)["c00002"] == (1, "c00000")


def test_clips_of_one_source_stay_apart_unless_asked() -> None:
    loop = [clip(i, at(0), source_id="loop") for i in range(3)]
    upload = [clip(10 + i, at(0.5), source_id="upload") for i in range(3)]
    apart = ranked(loop + upload)
    assert [apart[f"c{i:05d}"] for i in range(3)] == [(0, None)] * 3
    assert [apart[f"c{i:05d}"] for i in (10, 11, 12)] == [(1, "c00000"), (2, "c00000"), (3, "c00000")]
    together = ranked(loop + upload, same_source=True)
    assert [of for _, of in together.values()] == [None] + ["c00000"] * 5


def test_lengths_can_be_asked_to_agree() -> None:
    rows = [clip(0, at(0), duration_s=10.0), clip(1, at(0), duration_s=8.0), clip(2, at(0), duration_s=4.0)]
    assert [of for _, of in ranked(rows).values()] == [None, "c00000", "c00000"]
    assert [of for _, of in ranked(rows, max_duration_ratio=1.25).values()] == [None, "c00000", None]


@pytest.mark.parametrize("sources", [1, 50, 20_000])
def test_thousands_of_black_clips(sources: int) -> None:
    """20,000 clips have 200 million pairs."""
    count, black = 20_000, unit(np.ones(64))
    ids = np.char.mod("c%05d", np.arange(count))
    table = pa.table(
        {
            "clip_id": ids,
            "source_id": np.char.mod("s%05d", np.arange(count) % sources),
            "width": np.full(count, 640, np.int32),
            "height": np.full(count, 360, np.int32),
            "aesthetic": pa.nulls(count, pa.float32()),
            "duration_s": np.full(count, 4.0),
            "embedding": pa.array([np.float16(black)] * count, pa.list_(pa.float16())),
        }
    )
    started = time.process_time()
    _, result = rank_duplicates(table.to_batches(5000))
    assert time.process_time() - started < 20
    of_the_best_source = count // sources
    assert (result.kept, result.duplicates) == (of_the_best_source, count - of_the_best_source)


def test_nothing_one_clip_and_clips_without_an_embedding() -> None:
    table, result = rank_duplicates([])
    assert table.schema.equals(DUPLICATES, check_metadata=True)
    assert (table.num_rows, result.clips, result.largest_group) == (0, 0, 0)
    assert ranked([clip(0, at(0))]) == {"c00000": (0, None)}
    unusable = [None, [math.nan, 1.0], [0.0, 0.0], [math.inf, 1.0], []]
    rows = [clip(i, embedding) for i, embedding in enumerate(unusable)] + [clip(5, at(0)), clip(6, at(1))]
    table, result = rank_duplicates(batches(rows, 2))
    assert table["clip_id"].to_pylist() == ["c00005", "c00006"]
    assert (result.clips, result.kept, result.without_embedding) == (2, 1, 5)
    assert rank_duplicates(batches(rows[:5]))[1].without_embedding == 5


def test_embeddings_need_not_have_length_one() -> None:
    rows = [clip(i, np.multiply(scale, at(i))) for i, scale in enumerate([1.0, 1e-3, 300.0])]
    assert [of for _, of in ranked(rows).values()] == [None, "c00000", "c00000"]


@pytest.mark.parametrize("size", [1, 10])
def test_two_widths_are_an_error_that_names_both(size: int) -> None:
    with pytest.raises(UserError, match=r"clip c00001 has 3 dimensions, others have 2\."):
        rank_duplicates(batches([clip(0, at(0)), clip(1, [1.0, 0.0, 0.0])], size))


def test_equal_embeddings_have_a_cosine_of_one() -> None:
    vector = np.random.default_rng(3).standard_normal(768)
    assert ranked([clip(0, vector), clip(1, vector)], min_cosine=1.0)["c00001"] == (1, "c00000")


@st.composite
def corpora(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Clips close together in three dimensions, some with equal embeddings, of few sources."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 60))
    centres = unit(rng.standard_normal((draw(st.integers(1, 6)), 3)))
    embeddings = unit(centres[rng.integers(len(centres), size=count)] + 0.2 * rng.standard_normal((count, 3)))
    embeddings[rng.random(count) < 0.2] = embeddings[0]
    return [
        clip(
            int(number),
            embedding,
            source_id=f"s{rng.integers(draw(st.integers(1, 20)))}",
            width=int(rng.choice([320, 640])),
            aesthetic=rng.choice([None, 4.0, 5.0]),
            duration_s=float(rng.integers(1, 4)),
        )
        for number, embedding in zip(rng.permutation(count), embeddings, strict=True)
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 70), st.booleans())
def test_any_block_size_gives_what_the_rule_says(rows: list[dict[str, Any]], block: int, same_source: bool) -> None:
    expected = simply_ranked(rows, 0.95, same_source=same_source)
    assert ranked(rows, block_clips=block, same_source=same_source) == expected
    assert ranked(rows, same_source=same_source) == expected


@settings(max_examples=25, deadline=None)
@given(corpora(), st.integers(1, 70))
def test_block_sizes_do_not_matter_where_lengths_have_to_agree(rows: list[dict[str, Any]], block: int) -> None:
    assert ranked(rows, block_clips=block, max_duration_ratio=1.6) == ranked(rows, max_duration_ratio=1.6)


def footage_like(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Embeddings in crowds of many sizes: 64 numbers, around 100 subjects."""
    subjects = unit(rng.standard_normal((100, 64)))
    crowd = rng.choice(100, size=count, p=np.arange(1, 101) / 5050)
    return unit(subjects[crowd] + rng.uniform(0.5, 2.0, (count, 1)) * unit(rng.standard_normal((count, 64))))


@pytest.mark.slow
def test_the_approximate_search_finds_what_the_exact_one_finds() -> None:
    rng = np.random.default_rng(4)
    originals = footage_like(6000, rng)
    copies = copies_of(originals[rng.permutation(6000)[:2000]], 0.955, rng)
    rows = [clip(i, vector) for i, vector in enumerate(np.concatenate([originals, copies]))]
    exact, approximate = ranked(rows), ranked(rows, exact_up_to=0)
    exact_copies = {clip_id for clip_id, (rank, _) in exact.items() if rank}
    again = {clip_id for clip_id, (rank, _) in approximate.items() if rank}
    assert len(exact_copies) >= 2000
    assert len(exact_copies & again) >= 0.99 * len(exact_copies)
    assert approximate == ranked(rows[::-1], exact_up_to=0)
    assert rank_duplicates(batches(rows), DuplicatesConfig(exact_up_to=0))[1].approximate


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'min_cosine'"):
        DuplicatesConfig.from_values({"min_cosin": 0.9}, origin="test")
    with pytest.raises(UserError, match="order"):
        DuplicatesConfig.from_values({"order": ["beauty"]}, origin="test")


def write(dataset: Dataset, part: str, rows: Sequence[dict[str, Any]]) -> None:
    clips = pa.Table.from_pylist([row | {"uri": "/v.mp4"} for row in rows], CLIPS)
    dataset.write_part("clips", part, clips)
    sources = [{"source_id": source_id} for source_id in sorted({row["source_id"] for row in rows})]
    dataset.write_part("sources", part, pa.Table.from_pylist(sources, SOURCES))


@pytest.fixture(params=["local", "s3"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """Two parts: three scenes, a copy of the first one, and a clip that could not be scored."""
    url = str(tmp_path / "d") if request.param == "local" else f"{request.getfixturevalue('s3_url')}/d"
    dataset = Dataset(url).create_or_open({})
    write(dataset, "one", [clip(0, at(0), aesthetic=4.0), clip(1, at(40), aesthetic=math.nan)])
    write(dataset, "two", [clip(2, at(80)), clip(3, at(2), aesthetic=5.0), clip(4, None)])
    return dataset


def stored(dataset: Dataset) -> pa.Table:
    with dataset.fs.open(dataset.file("scores", "duplicates", "duplicates.parquet"), "rb") as file:
        return pq.read_table(file)


def test_the_table_of_a_dataset_and_the_rule_that_uses_it(dataset: Dataset) -> None:
    result = find_duplicates(dataset)
    assert (result.clips, result.duplicates, result.without_embedding, result.reused) == (4, 1, 1, False)
    table = stored(dataset)
    assert table.schema.equals(DUPLICATES)
    assert table.field("duplicate_rank").metadata == DUPLICATES.field("duplicate_rank").metadata
    assert table.to_pylist()[0] == {
        "clip_id": "c00000",
        "duplicate_rank": 1,
        "duplicate_of": "c00003",
        "duplicate_cosine": pytest.approx(math.cos(math.radians(2)), abs=1e-3),
    }
    rules = Rules.from_values({"name": "r", "rules": {"duplicate_rank": {"max": 0}}}, origin="test")
    (step,) = select_clips(dataset, rules).funnel
    assert (step.clips_left, step.removed, step.unscored_dropped) == (3, 1, 1)


@pytest.mark.slow
def test_a_rerun_does_nothing_until_something_changed(dataset: Dataset) -> None:
    assert not is_current(dataset)
    first = find_duplicates(dataset)
    path = dataset.file("scores", "duplicates", "duplicates.parquet")
    written = dataset.fs.modified(path)
    assert is_current(dataset)
    again = find_duplicates(dataset)
    assert again.reused
    assert (again.clips, again.duplicates) == (first.clips, first.duplicates)
    assert dataset.fs.modified(path) == written
    assert not is_current(dataset, DuplicatesConfig(min_cosine=0.5))
    write(dataset, "three", [clip(5, at(41))])
    assert not is_current(dataset)
    assert find_duplicates(dataset).duplicates == 2
    dataset.write_part("clips", "three", pa.Table.from_pylist([clip(5, at(60)) | {"uri": "/w.mp4"}], CLIPS))
    assert not is_current(dataset)
    assert find_duplicates(dataset).duplicates == 1
    unrelated = pa.table({"clip_id": ["c00000"], "contrast": [0.5]})
    dataset.write_part("scores/contrast", "any", unrelated)
    assert is_current(dataset)


def test_a_dataset_without_clips(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    assert find_duplicates(dataset).clips == 0
    assert stored(dataset).num_rows == 0
    assert find_duplicates(dataset).reused


def test_an_older_dataset_needs_embeddings_and_may_bring_them(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    write(dataset, "one", [clip(0, None), clip(1, None)])
    path = dataset.file("clips", "one.parquet")
    older = pq.read_table(path).drop_columns(["embedding", "aesthetic"])
    pq.write_table(older, path)
    with pytest.raises(UserError, match=r"has no column 'embedding'.*scores/clip/"):
        find_duplicates(dataset)
    embeddings = pa.schema([column("clip_id", pa.string(), "the clip"), ("embedding", pa.list_(pa.float32()))])
    rows = [{"clip_id": "c00000", "embedding": at(0)}, {"clip_id": "c00001", "embedding": at(1)}]
    dataset.write_part("scores/clip", "one", pa.Table.from_pylist(rows, embeddings))
    assert find_duplicates(dataset).duplicates == 1
    os.utime(dataset.file("scores/clip", "one.parquet"), (1, 1))
    assert not is_current(dataset)
