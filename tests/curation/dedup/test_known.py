"""A search that continues an earlier one decides the same as one from scratch, and compares less."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill import storage
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import clip_batches, find_duplicates, rank_duplicates
from curation.dedup.groups import Known, find_groups
from curation.dedup.ranked import read_ranked
from tests.curation.dedup.test_duplicates import at, batches, clip, copies_of, footage_like, stored, unit, write

STEPS = 4


def part_of(row: dict[str, Any]) -> str:
    return f"p{int(row['source_id'][1:]) % 3}"


def lay(dataset: Dataset, rows: Sequence[dict[str, Any]]) -> None:
    """Make these the clips of the dataset, in three parts."""
    for part in ("p0", "p1", "p2"):
        write(dataset, part, [row for row in rows if part_of(row) == part])


def from_scratch(dataset: Dataset, config: DuplicatesConfig) -> pa.Table:
    with dataset.connect() as connection:
        return rank_duplicates(clip_batches(dataset, connection, config), config)[0]


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """States of a dataset: between them clips are added, removed, and changed, in crowds of similar ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, sources = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    centres = unit(rng.standard_normal((draw(st.integers(1, 5)), 3)))

    def embedding() -> Any:
        return unit(centres[rng.integers(len(centres))] + 0.2 * rng.standard_normal(3))

    same = embedding()
    rows = {
        number: clip(
            number,
            same if rng.random() < 0.2 else embedding(),
            source_id=f"s{rng.integers(sources)}",
            width=int(rng.choice([320, 640])),
            aesthetic=rng.choice([None, 4.0, 5.0]),
        )
        for number in range(count)
    }
    states = []
    for _ in range(STEPS):
        for row in rows.values():
            if rng.random() < 0.1:
                row["aesthetic"] = float(rng.integers(3, 7))
            elif rng.random() < 0.1:
                row["embedding"] = np.float16(embedding())
        there = rng.random(count) < rng.choice([0.5, 0.9, 1.0])
        states.append([dict(row) for number, row in rows.items() if there[number]])
    return states


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(histories(), st.sampled_from([1, 3, 16]), st.booleans(), st.sampled_from([None, 1.5]))
def test_a_search_that_continues_gives_what_one_from_scratch_gives(
    states: list[list[dict[str, Any]]], block: int, same_source: bool, ratio: float | None
) -> None:
    config = DuplicatesConfig(block_clips=block, same_source=same_source, max_duration_ratio=ratio)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(f"{folder}/d").create_or_open({})
        for rows in states:
            lay(dataset, rows)
            find_duplicates(dataset, config)
            expected = from_scratch(dataset, config)
            assert stored(dataset).replace_schema_metadata(None).equals(expected.replace_schema_metadata(None))


def test_only_new_clips_are_compared_with_all(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    rows = [clip(i, at(i * 20)) for i in range(8)]
    write(dataset, "p0", rows)
    assert find_duplicates(dataset).compared == 8
    write(dataset, "p1", [clip(10, at(41)), clip(11, at(170), width=1280)])
    assert find_duplicates(dataset).compared == 2
    # The kept clip of the copies at 40 and 41 degrees goes, so the copy is compared again.
    write(dataset, "p0", [row for row in rows if row["clip_id"] != "c00002"])
    assert find_duplicates(dataset).compared == 1
    ranks = {row["clip_id"]: row["duplicate_rank"] for row in stored(dataset).to_pylist()}
    assert ranks == dict.fromkeys([*(f"c{i:05d}" for i in (0, 1, 3, 4, 5, 6, 7)), "c00010", "c00011"], 0)
    assert find_duplicates(dataset, DuplicatesConfig(min_cosine=0.9)).compared == 9, "other settings: from scratch"


@pytest.mark.parametrize("damage", ["missing", "not a file of tables", "keepers out of range"])
def test_what_is_known_of_a_damaged_search_is_not_used(tmp_path: Path, damage: str) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    write(dataset, "p0", [clip(0, at(0)), clip(1, at(1)), clip(2, at(40))])
    find_duplicates(dataset)
    path = dataset.file("scores/duplicates/last/clips.parquet")
    if damage == "missing":
        storage.remove(dataset.fs, path)
    elif damage == "not a file of tables":
        Path(path).write_bytes(b"PAR1 no more")
    else:
        table = storage.read_parquet(dataset.fs, path)
        wrong = table.set_column(2, "keeper", pa.array([2, 7, -5]))
        with storage.atomic_write(dataset.fs, path) as file:
            pq.write_table(wrong, file)
    write(dataset, "p1", [clip(3, at(41))])
    assert find_duplicates(dataset).compared == 4
    assert [row["duplicate_rank"] for row in stored(dataset).to_pylist()] == [0, 1, 0, 1]


@pytest.mark.slow
def test_an_approximate_search_continues_in_the_cells_of_the_first() -> None:
    rng = np.random.default_rng(6)
    originals = footage_like(3000, rng)
    copies = copies_of(originals[:1000], 0.955, rng)
    rows = [clip(i, vector) for i, vector in enumerate(np.concatenate([originals, copies]))]
    config = DuplicatesConfig(exact_up_to=0)
    with tempfile.TemporaryFile() as first_file, tempfile.TemporaryFile() as second_file:
        before = read_ranked(batches(rows[:3600]), first_file, config)
        after = read_ranked(batches(rows), second_file, config)
        first = find_groups(before, config)
        number_of = {clip_id: number for number, clip_id in enumerate(after.clip_id.to_pylist())}
        keeper_N = np.full(len(rows), -1)
        ids = before.clip_id.to_pylist()
        for clip_id, keeper in zip(ids, first.keeper_N, strict=True):
            keeper_N[number_of[clip_id]] = number_of[ids[keeper]]
        nothing = np.full(len(rows), -1)
        scratch = find_groups(after, config, known=Known(keeper_N=nothing, centroids_CD=first.centroids_CD))
        continued = find_groups(after, config, known=Known(keeper_N=keeper_N, centroids_CD=first.centroids_CD))
    assert (continued.keeper_N == scratch.keeper_N).all()
    assert scratch.compared_with_all == 4000
    assert 400 <= continued.compared_with_all < 700
