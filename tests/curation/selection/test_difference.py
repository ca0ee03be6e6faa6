"""The difference of two selections: who comes, who goes, and which rule decides."""

from pathlib import Path

import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.difference import difference
from curation.selection.marks import MARKS, Mark, Marks
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from tests.curation.selection.datasets import chosen, make, rules


def named(name: str, asked: Rules) -> Rules:
    return asked.named(name)


def counts(changes) -> dict[str, int]:
    return {change.rule or change.reason: change.clips for change in changes}


def test_each_clip_that_comes_or_goes_has_the_rule_that_decides(ten: Dataset) -> None:
    select_clips(ten, named("old", rules(motion={"min": 3}, width={"max": 700})))  # 3 to 7
    found = difference(ten, rules(motion={"min": 5}, width={"max": 900}), "old")  # 5 to 9
    assert found.both == 3
    assert counts(found.coming) == {"width": 2}  # 8, 9: the old rule kept them out
    assert counts(found.going) == {"motion": 2}  # 3, 4: the new rule drops them
    assert [change.seconds for change in (*found.coming, *found.going)] == [8.0, 8.0]


def test_the_first_rule_that_drops_a_clip_counts(ten: Dataset) -> None:
    select_clips(ten, named("old", rules()))
    found = difference(ten, rules(motion={"min": 5}, width={"max": 700}), "old")
    assert counts(found.going) == {"motion": 5, "width": 2}
    assert found.coming == ()
    assert found.both == len(chosen(ten, "old")) - 7


def test_percentages_are_compared_as_the_numbers_they_gave(ten: Dataset) -> None:
    select_clips(ten, named("old", rules(motion={"drop_lowest": "50%"})))
    assert counts(difference(ten, rules(), "old").coming) == {"motion": 5}
    same = difference(ten, rules(motion={"drop_lowest": "50%"}), "old")
    assert (same.both, same.coming, same.going) == (5, (), ())


def test_unscored_clips_go_by_the_rule_that_wants_the_score(ten: Dataset) -> None:
    select_clips(ten, named("old", rules()))
    assert counts(difference(ten, rules(text_area={"max": 1}), "old").going) == {"text_area": 3}


def test_marks_decide_too(ten: Dataset) -> None:
    select_clips(ten, named("old", rules(motion={"min": 5})))
    ids = [f"s{i % 3}-{i:04d}-0" for i in range(10)]
    marks = Marks(
        marks=(Mark(clip_id=ids[9], verdict="drop"), Mark(clip_id=ids[0], verdict="keep")), dataset_fingerprint=None
    )
    found = difference(ten, rules(motion={"min": 5}), "old", marks=marks)
    assert counts(found.going) == {MARKS: 1}
    assert counts(found.coming) == {"motion": 1}
    select_clips(ten, named("marked", rules(motion={"min": 5})), marks=marks)
    back = difference(ten, rules(motion={"min": 5}), "marked")
    assert counts(back.coming) == {"dropped by marks": 1}
    assert counts(back.going) == {"motion": 1}


def test_clips_that_were_added_and_removed_since(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"motion": float(i)} for i in range(6)], parts=2)
    select_clips(dataset, named("old", rules(motion={"min": 2})))
    part, _ = dataset.parts("clips")
    table = dataset.read_part("clips", part)
    ids = [f"new{i}" for i in range(table.num_rows)]
    dataset.write_part("clips", part, table.set_column(0, table.schema.field(0), [ids]))
    found = difference(dataset, rules(motion={"min": 2}), "old")
    removed = sum(motion >= 2 for motion in table["motion"].to_pylist())
    assert counts(found.going) == {"no longer in the dataset": removed}
    assert counts(found.coming) == {"added to the dataset after old": removed}
    assert found.both == len(chosen(dataset, "old")) - removed


def test_a_selection_that_is_not_there(ten: Dataset) -> None:
    with pytest.raises(UserError, match="old"):
        difference(ten, rules(), "old")
