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

from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules, load_preset, load_rules
from curation.selection.select import (
    Selection,
    funnel_rows,
    load_selection,
    select_clips,
    selected_clips,
    selection_names,
)
from curation.selection.thresholds import percentile

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


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


def select(dataset: Dataset, asked: Rules, *, replace: bool = True, **options: Any) -> Selection:
    """Under the same name again and again."""
    return select_clips(dataset, asked, replace=replace, **options)


def chosen(dataset: Dataset, name: str = "test") -> list[str]:
    with dataset.fs.open(dataset.file("selections", f"{name}.parquet"), "rb") as file:
        return pq.read_table(file)["clip_id"].to_pylist()


def motions(dataset: Dataset) -> list[float | None]:
    return [row["motion"] for batch in selected_clips(dataset, "test", ["motion"]) for row in batch.to_pylist()]


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    """Ten clips with motion 0 to 9, the last three without text_area, curated without similarity and aesthetic."""
    without = {f"{name}_error": f"left out: --without {name}" for name in ("similarity", "aesthetic")}
    without |= {f"{name}_error_kind": "left_out" for name in ("similarity", "aesthetic")}
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
        ("width", "boolean"),
        ("width > 'x'", "Could not convert"),
        ("true; DROP VIEW clips", "syntax error"),
        ("true) UNION ALL SELECT (1", "a single expression"),
        ("true) GROUP BY (1", "a single expression"),
        ("true) ORDER BY (1", "a single expression"),
        ("width = $1", "a single expression"),
        ("EXISTS (SELECT 1)", "query inside"),
        ("clip_id IN (FROM read_text('/etc/passwd'))", "query inside"),
        ("COLUMNS(*) IS NOT NULL", "COLUMNS"),
        ("row_number() OVER () < 3", "window"),
        ("sum(width) > 1", "aggregates"),
        ("duplicate_rank = 0", "clipmill duplicates DATASET"),
        ("random() < 0.5", "same answer each time"),
        ("pg_sleep(60) IS NULL", "pg_sleep.. is not allowed"),
        ("list_transform([1], lambda x: sleep_ms(x)) IS NULL", "sleep_ms.. is not allowed"),
        ("repeat('x', 2000000000) <> ''", "repeat.. is not allowed"),
        ("len(range(4000000000)) > 0", "range.. is not allowed"),
        ("length(lpad(codec, 2000000000, 'x')) > 0", "lpad.. is not allowed"),
        ("length(printf('%2000000000d', width)) > 0", "printf.. is not allowed"),
        ("replace(replace(codec, 'h', 'hhhh'), 'h', 'hhhh') <> ''", "replace.. is not allowed"),
        ("len(list_transform(['x'], lambda x: x || x)) > 0", "is not allowed"),
        ("len(list_transform([1], lambda x: [x, x])) > 0", "list_value.. is not allowed"),
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


@pytest.mark.parametrize(
    "where",
    ["list_contains(list_transform(captions, lambda c: c.text), 'x') OR true", "1 = 1", "len([codec || 'x', 'y']) = 2"],
)
def test_where_may_be_any_expression(ten: Dataset, where: str) -> None:
    assert select(ten, rules(where)).clips == 10


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="text_area lies between 0 and 1, got max 7"):
        select(ten, rules(text_area={"max": 7}))
    assert select(ten, rules(text_area={"max": 0.07})).total_clips == 10


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


def test_ties_are_told(tmp_path: Path) -> None:
    motion = [0.0] * 7 + [1.0, 2.0, 3.0]
    dataset = make(str(tmp_path / "d"), [{"motion": m} for m in motion])
    (step,) = select(dataset, rules(motion={"drop_highest": "50%"})).funnel
    assert step.removed == 3
    assert step.note == "drop_highest 50%: removed 30.0% because 7 clips tie at the threshold and are kept"
    (step,) = select(dataset, rules(motion={"drop_highest": "30%"})).funnel
    assert (step.removed, step.note) == (3, None)


def test_a_selection_is_replaced_only_when_asked(ten: Dataset) -> None:
    older = select(ten, rules(motion={"min": 5}))
    assert select(ten, rules(motion={"min": 5}), replace=False) == older
    with pytest.raises(
        UserError, match=r"already exists with other rules .5 clips.: choose another --name, or pass --replace"
    ):
        select(ten, rules(motion={"min": 6}), replace=False)
    (Path(ten.path) / "shards" / "test-images").mkdir(parents=True)
    with pytest.raises(UserError, match="from which shards/test-images were made"):
        select(ten, rules(motion={"min": 6}), replace=False)
    assert load_selection(ten, "test") == older
    assert len(chosen(ten)) == 5
    ten.write_part("clips", "p0", ten.read_part("clips", "p0").slice(0, 2))
    with pytest.raises(UserError, match="already exists with other clips"):
        select(ten, rules(motion={"min": 5}), replace=False)
    assert select(ten, rules(motion={"min": 6})).clips == 2
    assert len(list(Path(ten.file("selections")).iterdir())) == 2


def test_a_dry_run_writes_nothing(ten: Dataset) -> None:
    dry = select(ten, rules(motion={"min": 5}), dry_run=True)
    assert not Path(ten.file("selections")).exists()
    written = select(ten, rules(motion={"min": 5}))
    assert dry == written
    select(ten, rules(motion={"min": 7}), dry_run=True, replace=False)
    assert load_selection(ten, "test") == written


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
