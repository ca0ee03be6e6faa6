"""`like` rules: the cosine to a query as a score of the selection."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.difference import difference
from curation.selection.rules import Rules
from curation.selection.saved import load_selection
from curation.selection.select import select_clips
from tests.curation.selection.datasets import check_reconciled, chosen, make, select

DEGREES = (0, 10, 20, 30, 40, 50, 60, 70)


def clip_id(i: int) -> str:
    return f"s{i % 3}-{i:04d}-0"


@pytest.fixture
def fan(tmp_path: Path) -> Dataset:
    """Clips whose embeddings are 10 degrees apart, and one without."""
    angles = np.radians(DEGREES)
    rows = [{"embedding": [float(np.cos(a)), float(np.sin(a))]} for a in angles]
    failed = {"embedding": None, "embedding_error": "the clip has no thumbnails", "embedding_error_kind": "failed"}
    return make(str(tmp_path / "fan"), [*rows, failed])


def asked(like: Any, **more: Any) -> Rules:
    return Rules.from_values({"name": "test", "like": like, **more}, origin="test")


EAST = {"embedding": [1.0, 0.0]}


def test_clips_like_a_query_are_selected(fan: Dataset):
    selection = select(fan, asked(EAST | {"min": float(np.cos(np.radians(35)))}))
    assert set(chosen(fan)) == {clip_id(i) for i in range(4)}
    (step,) = selection.funnel
    assert (step.rule, step.removed, step.unscored_dropped) == ("likeness", 4, 1)
    assert step.unscored_reason == "the clip has no thumbnails"
    check_reconciled(selection)


def test_its_score_is_recorded_per_clip(fan: Dataset):
    select(fan, asked([{"clip": clip_id(2), "min": 0.9}, EAST | {"min": -1, "unscored": "keep"}]))
    rows = pq.read_table(fan.file("selections", "test.parquet")).to_pylist()
    found = {row["clip_id"]: (row["likeness"], row["likeness_2"]) for row in rows}
    assert len(found) == 5
    for i in range(5):
        near, east = np.cos(np.radians(abs(20 - DEGREES[i]))), np.cos(np.radians(DEGREES[i]))
        assert found[clip_id(i)] == pytest.approx((near, east), abs=2e-3)


def test_the_query_is_recorded_as_numbers_that_give_the_same_clips(fan: Dataset):
    select(fan, asked({"clip": clip_id(0), "drop_lowest": "50%"}))
    selection = load_selection(fan, "test")
    assert selection.rules == {"name": "test", "like": [{"clip": clip_id(0), "drop_lowest": "50%"}]}
    (like,) = selection.resolved["like"]
    assert like["clip"] == clip_id(0)
    assert like["embedding"] == pytest.approx([1, 0])
    assert like["min"] == pytest.approx(np.cos(np.radians(35)), abs=0.01)
    again = select_clips(fan, Rules.from_values(selection.resolved, origin="again").named("again"))
    assert again.clips_sha256 == selection.clips_sha256
    assert difference(fan, asked({"clip": clip_id(0), "drop_lowest": "50%"}), "test").going == ()


def test_the_condition_and_limits_know_the_score(fan: Dataset):
    like = EAST | {"min": -1}
    select(fan, asked(like, where=f"likeness < {np.cos(np.radians(45))}"))
    assert set(chosen(fan)) == {clip_id(i) for i in range(5, 8)}
    select(fan, asked(like, max_per={"source": {"clips": 1, "best": {"likeness": "highest"}}}))
    assert set(chosen(fan)) == {clip_id(0), clip_id(1), clip_id(2)}


def test_a_difference_names_likeness(fan: Dataset):
    select(fan, asked(EAST | {"min": 0.5}).named("old"))
    found = difference(fan, asked(EAST | {"min": 0.9}), "old")
    assert [(change.rule, change.clips) for change in found.going] == [("likeness", 4)]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"text": "a dog"}, "empty rule"),
        ({"min": 0.2}, "expected one of text, clip and picture, got none"),
        ({"text": "a dog", "clip": "c", "min": 0.2}, "got text and clip"),
        ({"clip": "nobody", "min": 0.2}, "has no clip 'nobody' with an embedding"),
        ({"clip": clip_id(8), "min": 0.2}, "has no clip .* with an embedding"),
        ({"text": "a dog", "min": 0.2}, "text 'a dog' is not embedded yet"),
        ({"embedding": [0.0, 0.0], "min": 0.2}, "zeros"),
        ({"embedding": [1.0, 0.0, 0.0], "min": 0.2}, "3 dimensions, the embeddings of the dataset have 2"),
        ({"txt": "a dog", "min": 0.2}, "Did you mean 'text'"),
        ("a dog", "like"),
    ],
)
def test_mistakes_are_user_errors(fan: Dataset, like: Any, message: str):
    with pytest.raises(UserError, match=message):
        select(fan, asked(like))


def test_a_dataset_without_embeddings_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="Curate with CLIP into a new folder"):
        select(make(str(tmp_path / "d"), [{}] * 3), asked(EAST | {"min": 0}))


def test_a_column_of_that_name_is_not_replaced(fan: Dataset):
    fan.write_part("scores/mine", "any", pa.table({"clip_id": [clip_id(0)], "likeness": [1.0]}))
    with pytest.raises(UserError, match="'likeness' is the score of `like`"):
        select(fan, asked(EAST | {"min": 0}))
