import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.marks import MARKS, Mark, Marks, dataset_marks, load_marks
from curation.selection.saved import Selection, selected_clips
from curation.selection.select import select_clips
from pipelines.status import status
from tests.curation.selection.datasets import make, rules


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    return make(str(tmp_path / "ten"), [{"motion": float(i)} for i in range(10)])


def ids(dataset: Dataset) -> list[str]:
    with dataset.connect() as connection:
        return [row[0] for row in connection.execute("SELECT clip_id FROM clips ORDER BY motion").fetchall()]


def select(dataset: Dataset, marks: dict[int, Any], **columns: Any) -> tuple[Selection, list[float]]:
    known = ids(dataset)
    listed = tuple(
        Mark(clip_id=known[i], verdict=verdict[0], score=verdict[1])
        if isinstance(verdict, tuple)
        else Mark(clip_id=known[i], verdict=verdict)
        for i, verdict in marks.items()
    )
    selection = select_clips(dataset, rules(**columns), marks=Marks(marks=listed), replace=True)
    rows = [row["motion"] for batch in selected_clips(dataset, "test", ["motion"]) for row in batch.to_pylist()]
    return selection, sorted(rows)


def test_marked_clips_stay_or_go_and_the_funnel_reconciles(ten: Dataset) -> None:
    marks = {0: "keep", 9: "drop", 8: "bad cut", 1: "drop", 7: ("wrong score", "motion"), 6: ("wrong score", "other")}
    selection, motions = select(ten, marks, motion={"min": 5.0})
    assert motions == [0.0, 5.0, 6.0]
    step = next(step for step in selection.funnel if step.rule == MARKS)
    assert (step.asked, step.removed) == ("bad cut 1, drop 2, keep 1, wrong score 2", 2)
    assert selection.funnel[0].unscored_dropped == 1
    assert selection.total_clips == selection.clips + sum(s.removed + s.unscored_dropped for s in selection.funnel)
    assert selection.marks == {"bad cut": 1, "drop": 2, "keep": 1, "wrong score": 2}


def test_another_clip_of_a_group_of_duplicates_can_be_chosen(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "three"), [{"motion": float(i)} for i in range(3)])
    known = ids(dataset)
    columns = {"clip_id": known, "duplicate_rank": [0, 1, 2], "duplicate_of": [None, known[0], known[0]]}
    dataset.write_part("scores/duplicates", "duplicates", pa.table(columns))
    _, best = select(dataset, {}, duplicate_rank={"max": 0.0})
    selection, motions = select(dataset, {0: "drop", 1: "drop", 2: "keep"}, duplicate_rank={"max": 0.0})
    assert (best, motions) == ([0.0], [2.0])
    (step,) = (step for step in selection.funnel if step.rule == "duplicate_rank")
    assert step.removed_alone == 1  # of the two copies, the one that is not marked keep


def test_marks_are_kept_and_counted(ten: Dataset) -> None:
    select(ten, {0: "keep", 1: "drop"})
    select(ten, {1: "bad cut", 2: "drop"})
    assert dataset_marks(ten).counts() == {"bad cut": 1, "drop": 1, "keep": 1}
    assert status(ten).marks == {"bad cut": 1, "drop": 1, "keep": 1}


def test_a_file_of_marks_is_checked(tmp_path: Path, ten: Dataset) -> None:
    def written(**changes: Any) -> str:
        content = {"format": "clipmill marks", "dataset_fingerprint": None, "marks": []} | changes
        (tmp_path / "marks.json").write_text(json.dumps(content))
        return str(tmp_path / "marks.json")

    assert load_marks(written()).counts() == {}
    for changes in (
        {"format": "other"},
        {"marks": [{"clip_id": 1, "verdict": "keep"}]},
        {"marks": [{"clip_id": "a", "verdict": "love"}]},
        {"marks": [{"verdict": "keep"}]},
        {"dataset_fingerprint": 3},
    ):
        with pytest.raises(UserError, match=r"marks\.json is damaged"):
            load_marks(written(**changes))
    with pytest.raises(UserError, match="no marks file"):
        load_marks(str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="different configuration"):
        select_clips(ten, rules(), marks=Marks(dataset_fingerprint="other"))
