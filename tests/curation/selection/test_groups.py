"""Rules on groups of duplicates, which are ranked among the clips that the other rules left."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from tests.curation.selection.datasets import check_reconciled, chosen, make, rules, select


def with_duplicates(dataset: Dataset, groups: dict[str, Sequence[str]]) -> None:
    """Write the table of near-duplicates: the best clip of each group -> its copies, from the best to the worst."""
    rows = [(best, 0, None) for best in groups]
    rows += [(copy, rank, best) for best, copies in groups.items() for rank, copy in enumerate(copies, 1)]
    ids, ranks, of = zip(*rows, strict=True)
    columns = {"clip_id": ids, "duplicate_rank": pa.array(ranks, pa.int32()), "duplicate_of": pa.array(of, pa.string())}
    dataset.write_part("scores/duplicates", "duplicates", pa.table(columns))


def test_the_best_clip_of_a_group_that_passes_the_other_rules_is_kept(tmp_path: Path) -> None:
    """A subtitled upload in high resolution does not take its clean, smaller original along."""
    named = [{"clip_id": name} for name in "abcdefg"]
    text = {"a": 0.5, "b": 0.0, "c": 0.0, "d": 0.5, "e": 0.5, "f": 0.0, "g": 0.0}
    dataset = make(str(tmp_path / "d"), [clip | {"text_area": text[clip["clip_id"]]} for clip in named])
    with_duplicates(dataset, {"a": "bc", "d": "e", "f": "g"})
    for order in (["duplicate_rank", "text_area"], ["text_area", "duplicate_rank"]):
        both = {"duplicate_rank": {"max": 0}, "text_area": {"max": 0.1}}
        selection = select(dataset, rules(**{name: both[name] for name in order}))
        assert chosen(dataset) == ["b", "f"]
        text_step, last = selection.funnel
        assert (last.rule, last.removed_alone, last.removed, last.clips_left) == ("duplicate_rank", 4, 2, 2)
        assert last.note == "among the clips that pass the other rules"
        assert (text_step.removed, text_step.clips_left) == (3, 4)
        check_reconciled(selection)
    assert select(dataset, rules(duplicate_rank={"max": 1}, text_area={"max": 0.1})).clips == 4
    assert select(dataset, rules(duplicate_rank={"max": 0})).clips == 3
    assert select(dataset, rules(duplicate_rank={"min": 1})).clips == 4
    assert select(dataset, rules("clip_id <> 'a'", duplicate_rank={"max": 0})).clips == 3
    assert chosen(dataset) == ["b", "d", "f"]


def test_clips_that_were_not_compared_are_unscored(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"clip_id": name} for name in "abc"])
    with_duplicates(dataset, {"a": "b"})
    assert select(dataset, rules(duplicate_rank={"max": 0})).funnel[0].unscored_dropped == 1
    assert chosen(dataset) == ["a"]
    kept = select(dataset, rules(duplicate_rank={"max": 0, "unscored": "keep"}))
    assert (chosen(dataset), kept.funnel[0].unscored) == (["a", "c"], 1)


def test_a_rule_on_groups_needs_groups_and_counts(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"clip_id": name} for name in "ab"])
    with_duplicates(dataset, {"a": "b"})
    with pytest.raises(UserError, match="use max or min instead of a percentage"):
        select(dataset, rules(duplicate_rank={"drop_highest": "50%"}))
    dataset.write_part("scores/duplicates", "duplicates", pa.table({"clip_id": ["a"], "duplicate_rank": [0]}))
    with pytest.raises(UserError, match="clipmill duplicates DATASET"):
        select(dataset, rules(duplicate_rank={"max": 0}))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20), st.integers(0, 2))
def test_groups_are_ranked_among_survivors(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple[int, bool]], most: int
) -> None:
    """The rule, said again: of each group, in order, the first `most + 1` that pass the other rule."""
    dataset = make(
        str(tmp_path_factory.mktemp("groups") / "d"),
        [{"clip_id": f"c{i:02d}", "motion": float(passes)} for i, (_, passes) in enumerate(clips)],
    )
    groups: dict[int, list[int]] = {}
    for i, (group, _) in enumerate(clips):
        groups.setdefault(group, []).append(i)
    with_duplicates(dataset, {f"c{m[0]:02d}": [f"c{i:02d}" for i in m[1:]] for m in groups.values()})
    selection = select(dataset, rules(duplicate_rank={"max": most}, motion={"min": 1}))
    expected = [[i for i in members if clips[i][1]][: most + 1] for members in groups.values()]
    assert chosen(dataset) == sorted(f"c{i:02d}" for members in expected for i in members)
    check_reconciled(selection)
