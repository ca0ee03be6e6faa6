"""Clips of ours that are in another dataset too."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.dedup import against
from curation.dedup.against import find_in_other
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from tests.curation.dedup.test_duplicates import as_stored, at, clip, unit, write


def dataset_of(path: Path, rows: list[dict[str, Any]]) -> Dataset:
    dataset = Dataset(str(path)).create_or_open({})
    write(dataset, "one", rows)
    return dataset


def nearest(dataset: Dataset, score: str) -> dict[str, tuple[float, str]]:
    table = pq.read_table(dataset.file("scores", score, f"{score}.parquet"))
    return {clip_id: (cosine, other) for clip_id, cosine, other in zip(*(c.to_pylist() for c in table), strict=True)}


def test_clips_of_a_test_set_are_marked_and_can_be_dropped(tmp_path: Path) -> None:
    ours = dataset_of(tmp_path / "ours", [clip(0, at(0)), clip(1, at(30)), clip(2, at(90)), clip(3, None)])
    test_set = dataset_of(tmp_path / "UCF-101 v2", [clip(7, at(31)), clip(8, at(2)), clip(9, at(2.5))])
    result = find_in_other(ours, test_set)
    assert (result.score, result.clips, result.other_clips) == ("against_ucf_101_v2", 3, 3)
    assert (result.duplicates, result.without_embedding, result.reused) == (2, 1, False)
    found = nearest(ours, result.score)
    assert {clip_id: other for clip_id, (_, other) in found.items()} == {
        "c00000": "c00008",
        "c00001": "c00007",
        "c00002": "c00007",
    }
    assert found["c00000"][0] == pytest.approx(np.cos(np.radians(2)), abs=1e-3)
    rules = Rules.from_values({"name": "r", "rules": {result.score: {"max": 0.95}}}, origin="test")
    (step,) = select_clips(ours, rules).funnel
    assert (step.removed, step.unscored_dropped, step.clips_left) == (2, 1, 1)


def test_it_runs_again_only_if_one_of_the_two_has_changed(tmp_path: Path) -> None:
    ours, other = dataset_of(tmp_path / "ours", [clip(0, at(0))]), dataset_of(tmp_path / "other", [clip(5, at(50))])
    assert not find_in_other(ours, other).reused
    assert find_in_other(ours, other).reused
    write(other, "two", [clip(6, at(1))])
    assert find_in_other(ours, other).duplicates == 1
    write(ours, "two", [clip(1, at(49))])
    assert find_in_other(ours, other).duplicates == 2
    assert find_in_other(ours, other, name="release").score == "against_release"


def test_the_nearest_clip_does_not_depend_on_how_many_are_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((60, 8)))
    there = np.concatenate([vectors[30:], vectors[:10] + 0.01 * rng.standard_normal((10, 8)), vectors[:5]])
    ours = dataset_of(tmp_path / "ours", [clip(i, v) for i, v in enumerate(vectors[:30])])
    other = dataset_of(tmp_path / "other", [clip(i, v) for i, v in enumerate(there)])
    stored = as_stored(np.float16(vectors[:30])) @ as_stored(np.float16(there)).T
    expected = {f"c{i:05d}": f"c{int(np.argmax(row)):05d}" for i, row in enumerate(stored)}
    for chunk, block in ((65536, 8192), (7, 4), (1, 30)):
        monkeypatch.setattr(against, "_CHUNK", chunk)
        monkeypatch.setattr(against, "_BLOCK", block)
        score = find_in_other(ours, other, name=f"chunk{chunk}").score
        assert {clip_id: other_id for clip_id, (_, other_id) in nearest(ours, score).items()} == expected


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    ours = dataset_of(tmp_path / "ours", [clip(0, at(0))])
    with pytest.raises(UserError, match=r"2 numbers, those of .*wide have 3: curate both with the same CLIP model"):
        find_in_other(ours, dataset_of(tmp_path / "wide", [clip(0, [1.0, 0.0, 0.0])]))
    with pytest.raises(UserError, match=r"no clip of .*empty has an embedding"):
        find_in_other(ours, dataset_of(tmp_path / "empty", [clip(0, None)]))
    with pytest.raises(UserError, match=r"expected a name of .*got '2024': pass one with --name"):
        find_in_other(ours, dataset_of(tmp_path / "2024", [clip(0, at(0))]))
