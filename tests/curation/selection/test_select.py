"""Selecting by rules: thresholds, percentiles, unscored clips, mistakes in rules."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.rules import load_preset, load_rules
from curation.selection.saved import selection_names
from curation.selection.thresholds import percentile
from tests.curation.selection.datasets import make, motions, rules, select

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


def test_percentiles_are_over_the_unfiltered_set(ten: Dataset) -> None:
    selection = select(ten, rules(motion={"drop_lowest": "50%"}, width={"drop_highest": "50%"}))
    assert selection.empty  # the halves do not meet: the second rule does not look at what the first left
    assert [step.thresholds for step in selection.funnel] == [{"drop_lowest": 4.5}, {"drop_highest": 450.0}]
    assert [(step.removed_alone, step.removed) for step in selection.funnel] == [(5, 5), (5, 5)]


def test_thresholds_keep_the_clips_on_them(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"motion": m, "text_area": 0.0} for m in (1.0, 2.0, 2.0, 2.0, 3.0)])
    selection = select(dataset, rules(motion={"drop_lowest": "50%"}, text_area={"drop_highest": "25%"}))
    assert sorted(motions(dataset)) == [2.0, 2.0, 2.0, 3.0]
    assert selection.resolved["rules"] == {"motion": {"min": 2.0}, "text_area": {"max": 0.0}}


def test_absolute_bounds_are_inclusive_in_the_precision_of_the_column(tmp_path: Path) -> None:
    values = [0.069, 0.07, 0.071, 0.7, 0.71]  # in single precision 0.07 is a little more, 0.7 a little less
    dataset = make(str(tmp_path / "d"), [{"text_area": v} for v in values])
    assert select(dataset, rules(text_area={"max": 0.07})).clips == 2
    assert select(dataset, rules(text_area={"min": 0.7})).clips == 2
    assert select(dataset, rules(text_area={"min": 0.07, "max": 0.7})).clips == 3


def test_unscored_clips_go_unless_the_rule_keeps_them(ten: Dataset) -> None:
    dropped = select(ten, rules(motion={"min": 1}, text_area={"max": 0.03}))
    assert (dropped.funnel[1].unscored, dropped.funnel[1].unscored_dropped) == (3, 3)
    assert (dropped.clips, dropped.funnel[1].removed) == (3, 3)
    kept = select(ten, rules(motion={"max": 8}, text_area={"max": 0.03, "unscored": "keep"}))
    assert (kept.funnel[1].unscored, kept.funnel[1].unscored_dropped, kept.clips) == (3, 0, 6)


def test_not_a_number_is_no_score(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"motion": m} for m in (1.0, math.nan, math.inf, 2.0)])
    selection = select(dataset, rules(motion={"drop_lowest": "0%"}))
    assert motions(dataset) == [1.0, 2.0]
    assert selection.funnel[0].unscored_dropped == 2


def test_no_clip_at_all_has_the_score(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "d"), [{"motion": None}] * 3)
    selection = select(dataset, rules(motion={"drop_lowest": "25%"}))
    assert selection.empty
    assert selection.funnel[0].thresholds == {"drop_lowest": None}
    assert selection.funnel[0].unscored_dropped == 3


@pytest.mark.parametrize(
    ("column", "rule", "message"),
    [
        ("motion", {"drop_lowest": "120%"}, r"rules\.motion\.drop_lowest.*'120%'"),
        ("motion", {"drop_lowest": "100%"}, "below 100%"),
        ("motion", {"drop_lowest": "-5%"}, "'-5%'"),
        ("motion", {"drop_highest": 25}, "such as '25%', got 25"),
        ("motion", {"drop_lowest": "60%", "drop_highest": "40%"}, "drop every clip"),
        ("motion", {"min": math.nan}, "finite"),
        ("motion", {"max": "2"}, "number"),
        ("motion", {"min": 3, "max": 2}, "no clip can pass"),
        ("motion", {"unscored": "maybe"}, "'drop' or 'keep'"),
        ("motion", {"drop_lowst": "5%"}, "'drop_lowest'"),
        ("motion", {}, "empty rule"),
        ("motion", {"unscored": "keep"}, "empty rule"),
        ("motoin", {"min": 1}, "'motion'"),
        ("codec", {"min": 1}, "VARCHAR"),
        ("thumbnail_pts", {"min": 1}, "BIGINT"),
        ("aesthetic", {"min": 5}, "no clip of this dataset has the score 'aesthetic' .left out"),
        ("duplicate_rank", {"max": 0}, "clipmill duplicates DATASET"),
    ],
)
def test_mistakes_in_rules_are_user_errors(ten: Dataset, column: str, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(ten, rules(**{column: rule}))
    assert selection_names(ten) == []


def test_missing_columns_can_be_allowed_and_are_said(ten: Dataset) -> None:
    asked = rules("duplicate_rank = 0", aesthetic={"min": 5}, motion={"min": 8})
    selection = select(ten, asked, allow_missing=True)
    assert [step.skipped for step in selection.funnel] == [
        "no clip has it (left out: --without aesthetic)",
        None,
        "unknown column 'duplicate_rank'",
    ]
    assert selection.clips == 2
    assert list(selection.resolved["rules"]) == ["motion"]


def test_the_paper_preset(ten: Dataset) -> None:
    preset = load_preset("svd-paper", PRESETS)
    assert list(preset.rules) == ["motion", "aesthetic", "similarity", "text_area", "duration_s", "duplicate_rank"]
    with pytest.raises(UserError, match="clipmill duplicates DATASET"):
        select(ten, preset)
    assert select(ten, preset, allow_missing=True).clips == 2  # motion >= 2.25, text_area <= 0.045


def test_added_scores_can_be_selected_by(ten: Dataset) -> None:
    scores = {"clip_id": [f"s{i % 3}-{i:04d}-0" for i in range(8)], "beauty": [float(i) for i in range(8)]}
    ten.write_part("scores/laion", "any", pa.table(scores))
    selection = select(ten, rules(beauty={"drop_lowest": "50%"}))
    assert (selection.clips, selection.funnel[0].unscored_dropped) == (4, 2)
    assert selection.funnel[0].thresholds == {"drop_lowest": 3.5}


def test_rules_files(tmp_path: Path) -> None:
    file = tmp_path / "fast-ones.yaml"
    file.write_text("rules:\n  motion: {drop_lowest: 12.5%, max: 9}\nwhere: width >= 512\n")
    loaded = load_rules(str(file))
    assert (loaded.name, loaded.where) == ("fast-ones", "width >= 512")
    assert loaded.rules["motion"].bounds() == {"drop_lowest": "12.5%", "max": 9.0}
    for text, message in [
        ("rules: {motion: {min: 1}, motion: {min: 2}}", "duplicate"),
        ("rules: [", "YAML"),
        ("- motion", "got list"),
        ("", "is empty"),
        ("rulez: {}", "'rules'"),
        ("rules: {motion: }", "motion"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_rules(str(file))
    with pytest.raises(UserError, match="file not found"):
        load_rules(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UserError, match="'svd-paper'"):
        load_preset("svd-papers", PRESETS)


def test_an_empty_dataset(tmp_path: Path) -> None:
    selection = select(make(str(tmp_path / "d"), []), rules(motion={"drop_lowest": "25%"}))
    assert selection.empty
    assert selection.total_clips == 0


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(finite, min_size=1, max_size=60), st.integers(0, 999))
def test_a_percentile_is_linear_between_neighbours(values: list[float], permille: int) -> None:
    at = Fraction(permille, 1000)
    result = percentile(np.array(values, np.float32), at)
    assert result is not None
    expected = np.percentile(np.array(values, np.float64), permille / 10)
    assert result == pytest.approx(float(expected), rel=1e-6, abs=1e-6 * max(map(abs, values)))
    # Never more than asked goes, give or take the one clip that the place falls on.
    below = sum(value < result for value in values)
    assert below <= math.ceil(at * (len(values) - 1))


def test_a_percentile_that_falls_on_a_clip_is_that_clip() -> None:
    assert percentile(np.arange(101.0), Fraction(7, 100)) == 7.0  # 0.07 * 100 is not 7 in floating point


def test_a_threshold_beyond_what_a_column_can_hold_is_refused(ten: Dataset) -> None:
    with pytest.raises(UserError, match="text_area lies between 0 and 1, got max 7"):
        select(ten, rules(text_area={"max": 7}))
    assert select(ten, rules(text_area={"max": 0.07})).total_clips == 10


def test_ties_are_told(tmp_path: Path) -> None:
    motion = [0.0] * 7 + [1.0, 2.0, 3.0]
    dataset = make(str(tmp_path / "d"), [{"motion": m} for m in motion])
    (step,) = select(dataset, rules(motion={"drop_highest": "50%"})).funnel
    assert step.removed == 3
    assert step.note == "drop_highest 50%: removed 30.0% because 7 clips tie at the threshold and are kept"
    (step,) = select(dataset, rules(motion={"drop_highest": "30%"})).funnel
    assert (step.removed, step.note) == (3, None)


def test_a_rule_without_scores_to_go_by_is_told(tmp_path: Path) -> None:
    reasons = ["the clip has no caption"] * 5 + ["no caption has text: x", None]
    clips = [{"similarity": None if reason else 0.3, "similarity_error": reason} for reason in reasons]
    dataset = make(str(tmp_path / "d"), clips)
    selection = select(dataset, rules(similarity={"drop_lowest": "50%"}))
    (step,) = selection.starved
    assert (step.rule, step.unscored, step.unscored_reason) == ("similarity", 6, "the clip has no caption")
    assert select(dataset, rules(similarity={"min": 0, "unscored": "keep"})).starved == ()


def test_a_rule_may_name_the_beginning_of_a_column(ten: Dataset):
    by_beginning = select(ten, rules(text={"max": 0.05, "unscored": "keep"}, duration={"min": 1}))
    assert list(by_beginning.rules["rules"]) == ["text_area", "duration_s"]
    assert (
        by_beginning.resolved
        == select(ten, rules(text_area={"max": 0.05, "unscored": "keep"}, duration_s={"min": 1})).resolved
    )
    with pytest.raises(UserError, match="ambiguous column of numbers 'm': it could be motion, motion_bucket"):
        select(ten, rules(m={"min": 1}))
    with pytest.raises(UserError, match="two rules for the column 'text_area'"):
        select(ten, rules(text={"max": 1}, text_area={"max": 0.5}))
