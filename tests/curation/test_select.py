import errno
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from curation.rules import Rules, load_preset, load_rules
from curation.select import Selection, funnel_rows, load_selection, select, selected_clips, selection_names
from curation.tables import CLIPS, SOURCES, Dataset
from curation.thresholds import percentile

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def make(url: str, clips: Sequence[dict[str, Any]], *, parts: int = 2) -> Dataset:
    """A dataset of these clips, spread over parts; ids, source and duration are filled in."""
    dataset = Dataset(url).create_or_open({})
    full = [
        {"clip_id": f"s{i % 3}-{i:04d}-0", "source_id": f"s{i % 3}", "uri": f"/v/{i % 3}", "duration_s": 4.0} | clip
        for i, clip in enumerate(clips)
    ]
    for part in range(parts):
        dataset.write_part("clips", f"p{part}", pa.Table.from_pylist(full[part::parts], schema=CLIPS))
        sources = [{"source_id": f"s{i}", "audio": i == 0} for i in range(3)] if part == 0 else []
        dataset.write_part("sources", f"p{part}", pa.Table.from_pylist(sources, schema=SOURCES))
    return dataset


def rules(where: str | None = None, **columns: dict[str, Any]) -> Rules:
    return Rules.from_values({"name": "test", "rules": columns, "where": where}, origin="test")


def chosen(dataset: Dataset, name: str = "test") -> list[str]:
    with dataset.fs.open(dataset.file("selections", f"{name}.parquet"), "rb") as file:
        return pq.read_table(file)["clip_id"].to_pylist()


def motions(dataset: Dataset) -> list[float | None]:
    return [row["motion"] for batch in selected_clips(dataset, "test", ["motion"]) for row in batch.to_pylist()]


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    """Ten clips with motion 0 to 9, the last three without text_area, curated without similarity and aesthetic."""
    without = {f"{name}_error": f"left out: --without {name}" for name in ("similarity", "aesthetic")}
    clips = [
        {"motion": float(i), "text_area": i / 100 if i < 7 else None, "width": 100 * i} | without for i in range(10)
    ]
    return make(str(tmp_path / "ten"), clips)


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


def test_where_reads_the_joined_view_and_null_is_unscored(ten: Dataset) -> None:
    selection = select(ten, rules("audio AND text_area < 0.06 -- a comment"))
    assert chosen(ten) == ["s0-0000-0", "s0-0003-0"]
    step = selection.funnel[0]
    assert (step.rule, step.unscored, step.removed) == ("where", 1, 7)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 1", r'"widht" not found.*"width"'),
        ("width >", "syntax error"),
        ("width", "true or false"),
        ("width > 'x'", "Could not convert"),
        ("true; DROP VIEW clips", "syntax error"),
        ("true) UNION ALL SELECT (1", "one condition"),
        ("true) GROUP BY (1", "one condition"),
        ("true) ORDER BY (1", "one condition"),
        ("width = $1", "one condition"),
        ("EXISTS (SELECT 1)", "query inside"),
        ("clip_id IN (FROM read_text('/etc/passwd'))", "query inside"),
        ("COLUMNS(*) IS NOT NULL", "COLUMNS"),
        ("row_number() OVER () < 3", "window"),
        ("sum(width) > 1", "aggregates"),
        ("duplicate_rank = 0", "clipmill duplicates DATASET"),
        ("random() < 0.5", "same answer each time"),
        ("pg_sleep(60) IS NULL", "pg_sleep.. is not allowed"),
        ("list_transform([1], lambda x: sleep_ms(x)) IS NULL", "sleep_ms.. is not allowed"),
        ("CURRENT_DATE > '2020-01-01'", "current_date.. is not allowed"),
        ("NOT " * 900 + "true", "nested too deeply"),
        ("codec = '\ud800'", "valid UTF-8"),
    ],
)
def test_where_is_one_boolean_condition(tmp_path: Path, where: str, message: str) -> None:
    dataset = make(str(tmp_path / "d"), [{"width": i} for i in range(2000)])
    with pytest.raises(UserError, match=message):
        select(dataset, rules(where))
    assert selection_names(dataset) == []


@pytest.mark.parametrize("where", ["list_contains(list_transform(captions, lambda c: c.text), 'x') OR true", "1 = 1"])
def test_where_may_be_any_expression(ten: Dataset, where: str) -> None:
    assert select(ten, rules(where)).clips == 10


@pytest.mark.parametrize(
    ("column", "rule", "message"),
    [
        ("motion", {"drop_lowest": "120%"}, r"rules\.motion\.drop_lowest.*'120%'"),
        ("motion", {"drop_lowest": "100%"}, "below 100%"),
        ("motion", {"drop_lowest": "-5%"}, "'-5%'"),
        ("motion", {"drop_highest": 25}, "such as '25%', came 25"),
        ("motion", {"drop_lowest": "60%", "drop_highest": "40%"}, "leave no clip"),
        ("motion", {"min": math.nan}, "finite"),
        ("motion", {"max": "2"}, "number"),
        ("motion", {"min": 3, "max": 2}, "no clip can pass"),
        ("motion", {"unscored": "maybe"}, "'drop' or 'keep'"),
        ("motion", {"drop_lowst": "5%"}, "'drop_lowest'"),
        ("motion", {}, "asks for nothing"),
        ("motion", {"unscored": "keep"}, "asks for nothing"),
        ("motoin", {"min": 1}, "'motion'"),
        ("codec", {"min": 1}, "VARCHAR"),
        ("picture_pts", {"min": 1}, "BIGINT"),
        ("aesthetic", {"min": 5}, "no clip of this dataset has a score 'aesthetic' .left out"),
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
        "there is no column 'duplicate_rank'",
    ]
    assert selection.clips == 2
    assert list(selection.resolved["rules"]) == ["motion"]


def test_the_paper_preset(ten: Dataset) -> None:
    preset = load_preset("svd-paper", PRESETS)
    assert list(preset.rules) == ["duplicate_rank", "motion", "aesthetic", "similarity", "text_area", "duration_s"]
    with pytest.raises(UserError, match="clipmill duplicates DATASET"):
        select(ten, preset)
    assert select(ten, preset, allow_missing=True).clips == 2  # motion >= 2.25, text_area <= 0.045


def test_added_scores_can_be_selected_by(ten: Dataset) -> None:
    scores = {"clip_id": [f"s{i % 3}-{i:04d}-0" for i in range(8)], "beauty": [float(i) for i in range(8)]}
    ten.write_part("scores/laion", "any", pa.table(scores))
    selection = select(ten, rules(beauty={"drop_lowest": "50%"}))
    assert (selection.clips, selection.funnel[0].unscored_dropped) == (4, 2)
    assert selection.funnel[0].thresholds == {"drop_lowest": 3.5}


def test_what_is_written(ten: Dataset) -> None:
    selection = select(ten, rules(motion={"drop_lowest": "25%"}), name="fast")
    path = ten.file("selections", "fast.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["clip_id", "source_id", "uri"]
    assert table["clip_id"].to_pylist() == sorted(f"s{i % 3}-{i:04d}-0" for i in range(3, 10))
    written = json.loads(Path(ten.file("selections", "fast.json")).read_text())
    assert written["clips"] == 7
    assert written["seconds"] == 28.0
    assert written["rules"] == {"name": "fast", "rules": {"motion": {"drop_lowest": "25%"}}}
    assert written["resolved"] == {"name": "fast", "rules": {"motion": {"min": 2.25}}}
    assert written["funnel"][0]["thresholds"] == {"drop_lowest": 2.25}
    assert load_selection(ten, "fast") == selection
    assert selection_names(ten) == ["fast"]
    with pytest.raises(UserError, match="'fast'"):
        load_selection(ten, "fsat")
    rows = funnel_rows(selection)
    assert [(row["rule"], row["clips_left"], row["seconds_left"]) for row in rows] == [
        ("all clips", 10, 40.0),
        ("motion", 7, 28.0),
    ]


def test_the_same_selection_twice_is_the_same_bytes(ten: Dataset) -> None:
    def files() -> list[bytes]:
        select(ten, rules(motion={"drop_lowest": "25%"}, text_area={"max": 0.05, "unscored": "keep"}))
        return [Path(ten.file("selections", f"test.{suffix}")).read_bytes() for suffix in ("json", "parquet")]

    assert files() == files()


def test_a_full_disk_leaves_the_older_selection(ten: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    older = select(ten, rules(motion={"min": 5}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(UserError, match="No space left"):
            select(ten, rules(motion={"min": 7}))
    assert load_selection(ten, "test") == older
    assert len(chosen(ten)) == older.clips
    assert len(list(Path(ten.file("selections")).iterdir())) == 2


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a.b", "x" * 200])
def test_names_that_are_no_file_names_are_refused(ten: Dataset, name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        rules(motion={"min": 1}).named(name)


def test_rules_files(tmp_path: Path) -> None:
    file = tmp_path / "fast-ones.yaml"
    file.write_text("rules:\n  motion: {drop_lowest: 12.5%, max: 9}\nwhere: width >= 512\n")
    loaded = load_rules(str(file))
    assert (loaded.name, loaded.where) == ("fast-ones", "width >= 512")
    assert loaded.rules["motion"].bounds() == {"drop_lowest": "12.5%", "max": 9.0}
    for text, message in [
        ("rules: {motion: {min: 1}, motion: {min: 2}}", "twice"),
        ("rules: [", "YAML"),
        ("- motion", "got list"),
        ("", "is empty"),
        ("rulez: {}", "'rules'"),
        ("rules: {motion: }", "motion"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_rules(str(file))
    with pytest.raises(UserError, match="there is no file"):
        load_rules(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UserError, match="'svd-paper'"):
        load_preset("svd-papers", PRESETS)


def test_select_on_an_object_store(s3_url: str) -> None:
    dataset = make(f"{s3_url}/dataset", [{"motion": float(i)} for i in range(10)])
    selection = select(dataset, rules(motion={"drop_lowest": "25%"}))
    assert selection.clips == len(chosen(dataset)) == 7
    assert load_selection(dataset, "test") == selection
    assert sorted(m for m in motions(dataset) if m is not None) == [float(i) for i in range(3, 10)]


def test_an_empty_dataset(tmp_path: Path) -> None:
    selection = select(make(str(tmp_path / "d"), []), rules(motion={"drop_lowest": "25%"}))
    assert selection.empty
    assert selection.total_clips == 0


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(finite, min_size=1, max_size=60), st.integers(0, 999))
def test_a_percentile_is_linear_between_neighbours(values: list[float], permille: int) -> None:
    at = Fraction(permille, 1000)
    found = percentile(np.array(values, np.float32), at)
    assert found is not None
    expected = np.percentile(np.array(values, np.float64), permille / 10)
    assert found == pytest.approx(float(expected), rel=1e-6, abs=1e-6 * max(map(abs, values)))
    # Never more than asked goes, give or take the one clip that the place falls on.
    below = sum(value < found for value in values)
    assert below <= math.ceil(at * (len(values) - 1))


def test_a_percentile_that_falls_on_a_clip_is_that_clip() -> None:
    assert percentile(np.arange(101.0), Fraction(7, 100)) == 7.0  # 0.07 * 100 is not 7 in floating point


scores = st.one_of(st.none(), st.integers(0, 4).map(float), st.floats(0, 10, width=32))
percents = st.integers(0, 49).map(lambda n: f"{n}%")
bounds = st.fixed_dictionaries(
    {"drop_lowest": percents},
    optional={
        "drop_highest": percents,
        "min": st.floats(0, 3),
        "max": st.floats(4, 10),
        "unscored": st.sampled_from(["drop", "keep"]),
    },
)
rule_sets = st.fixed_dictionaries(
    {"motion": bounds}, optional={"cut_start_s": bounds, "fps": bounds, "where": st.just("motion + fps < 9")}
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(scores, scores, scores), max_size=40), rule_sets, st.randoms())
def test_funnel_reconciles_in_any_order_of_rules(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple], asked: dict[str, Any], random: Any
) -> None:
    columns = ("motion", "cut_start_s", "fps")
    rows = [dict(zip(columns, clip, strict=True)) for clip in clips]
    dataset = make(str(tmp_path_factory.mktemp("selection") / "d"), rows)
    where = asked.pop("where", None)
    selection = select(dataset, rules(where, **asked))
    ids = chosen(dataset)
    assert selection.clips == len(ids)
    check_reconciled(selection)

    shuffled = list(asked.items())
    random.shuffle(shuffled)
    again = select(dataset, rules(where, **dict(shuffled)))
    assert again.clips_sha256 == selection.clips_sha256
    check_reconciled(again)

    resolved = selection.resolved["rules"].values()
    if all("min" in rule and rule["min"] <= rule.get("max", math.inf) for rule in resolved):
        with_numbers = Rules.from_values({**selection.resolved, "name": "resolved"}, origin="test")
        assert select(dataset, with_numbers).clips_sha256 == selection.clips_sha256

    ranked = {step.rule: step for step in selection.funnel}
    for name, rule in asked.items():
        scored = len(rows) - ranked[name].unscored
        if set(rule) <= {"drop_lowest", "unscored"}:
            share = Fraction(rule["drop_lowest"].rstrip("%")) / 100
            assert ranked[name].removed_alone <= math.ceil(share * max(0, scored - 1))


def check_reconciled(selection: Selection) -> None:
    left, seconds = selection.total_clips, selection.total_seconds
    for step in selection.funnel:
        left -= step.removed + step.unscored_dropped
        assert step.clips_left == left
        assert step.removed <= step.removed_alone
        assert step.unscored_dropped <= step.unscored
        assert step.seconds_left <= seconds
        seconds = step.seconds_left
    assert (left, seconds) == (selection.clips, selection.seconds)
    assert selection.seconds == 4.0 * selection.clips


def test_a_threshold_beyond_what_a_column_can_hold_is_refused(ten: Dataset) -> None:
    with pytest.raises(UserError, match="text_area lies between 0 and 1, came max 7"):
        select(ten, rules(text_area={"max": 7}))
    assert select(ten, rules(text_area={"max": 0.07})).total_clips == 10
