"""Rules -> tests, against closed forms: thresholds as exact numbers, outcomes clip by clip, sentences as they are."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from clipmill.errors import UserError
from curation.dataset.joined import joined_query
from curation.dataset.sql import open_connection
from curation.selection import thresholds
from curation.selection.rules import Rules
from curation.selection.thresholds import KEPT, REMOVED, UNSCORED, percentile, ties

NAN = math.nan
CLIPS = {
    "clip_id": pa.array(list("abcdefgh")),
    "source_id": pa.array(["s"] * 8),
    "motion": pa.array([0, 1, 2, 3, 4, None, NAN, math.inf], pa.float32()),
    "beauty": pa.array([0.1, 0.2, 0.3, 0.4, None, None, NAN, -math.inf], pa.float64()),
    "text_area": pa.array([0.0, 0.0, 0.0, 0.07, 0.7, None, None, None], pa.float32()),
    "size": pa.array([1, 2, 3, 4, 5, 6, 7, None], pa.int32()),
    "name": pa.array(["x"] * 8),
    "listed": pa.array([[1]] * 8),
    "gone": pa.nulls(8, pa.float32()),
    "gone_error": pa.array(["left out: --without gone"] * 8),
    "gone_error_kind": pa.array(["left_out"] * 8),
    "failed": pa.nulls(8, pa.float32()),
    "failed_error": pa.array(["left out: x"] * 8),
    "failed_error_kind": pa.array(["left_out"] * 7 + ["failed"]),
    "some": pa.array([1.0] + [None] * 7, pa.float32()),
    "some_error": pa.array([None] + ["left out: --without some"] * 7),
    "some_error_kind": pa.array([None] + ["left_out"] * 7),
    "broken": pa.nulls(8, pa.float32()),
    "broken_error": pa.array(["the model failed"] * 8),
    "broken_error_kind": pa.array(["failed"] * 8),
}
RANKS = {
    "clip_id": pa.array(list("abcd")),
    "duplicate_rank": pa.array([0, 1, 2, 0], pa.int32()),
    "duplicate_of": pa.array([None, "a", "a", None]),
}


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    tables = {"clips": pa.table(CLIPS), "sources": pa.table({"source_id": ["s"], "audio": [True]})}
    with open_connection(LocalFileSystem(), tables | {"scores_duplicates": pa.table(RANKS)}) as opened:
        opened.execute(f"CREATE VIEW joined AS {joined_query(opened)}")
        yield opened


def judged_by(
    connection: duckdb.DuckDBPyConnection, where: str | None = None, *, allow_missing: bool = False, **rules: Any
) -> tuple[list[thresholds.Test], dict[str, str]]:
    asked = Rules.from_values({"name": "r", "rules": rules, "where": where}, origin="r")
    return thresholds.tests_of(connection, asked, allow_missing=allow_missing)


def one(connection: duckdb.DuckDBPyConnection, where: str | None = None, **rules: Any) -> thresholds.Test:
    (test,), skipped = judged_by(connection, where, **rules)
    assert skipped == {}
    return test


def outcomes(connection: duckdb.DuckDBPyConnection, test: thresholds.Test, outcome: str | None = None) -> list[int]:
    """Of the clips a to h, as they are without other rules."""
    rows = connection.execute(f"SELECT {outcome or test.outcome} FROM joined ORDER BY clip_id").fetchall()
    return [row[0] for row in rows]


K, R, U = KEPT, REMOVED, UNSCORED


@pytest.mark.parametrize(
    ("column", "rule", "numbers", "expected"),
    [
        ("motion", {"min": 2}, {"min": 2.0}, [R, R, K, K, K, U, U, U]),
        ("motion", {"max": 2}, {"max": 2.0}, [K, K, K, R, R, U, U, U]),
        ("motion", {"min": 1, "max": 3}, {"min": 1.0, "max": 3.0}, [R, K, K, K, R, U, U, U]),
        ("motion", {"drop_lowest": "50%"}, {"drop_lowest": 2.0}, [R, R, K, K, K, U, U, U]),
        ("motion", {"drop_highest": "25%"}, {"drop_highest": 3.0}, [K, K, K, K, R, U, U, U]),
        (
            "motion",
            {"drop_lowest": "25%", "drop_highest": "50%", "min": 0.5, "max": 9},
            {"drop_lowest": 1.0, "drop_highest": 2.0, "min": 0.5, "max": 9.0},
            [R, K, K, R, R, U, U, U],
        ),
        ("beauty", {"drop_lowest": "50%"}, {"drop_lowest": 0.25}, [R, R, K, K, U, U, U, U]),
        ("size", {"drop_highest": "50%"}, {"drop_highest": 4.0}, [K, K, K, K, R, R, R, U]),
        ("text_area", {"max": 0.07}, {"max": float(np.float32(0.07))}, [K, K, K, K, R, U, U, U]),
        ("text_area", {"min": 0.7}, {"min": float(np.float32(0.7))}, [R, R, R, R, K, U, U, U]),
        ("failed", {"drop_lowest": "50%"}, {"drop_lowest": None}, [U] * 8),
    ],
)
def test_outcomes_clip_by_clip(
    connection: duckdb.DuckDBPyConnection,
    column: str,
    rule: dict[str, Any],
    numbers: dict[str, float | None],
    expected: list[int],
) -> None:
    test = one(connection, **{column: rule})
    assert (test.name, test.columns, test.last, test.outcome_alone) == (column, {column}, False, "")
    assert test.thresholds == numbers
    assert list(test.thresholds) == list(numbers)
    assert outcomes(connection, test) == expected
    assert [test.keeps(outcome) for outcome in (K, R, U)] == [True, False, False]
    assert test.kept_outcomes() == (K,)


def test_unscored_clips_can_be_kept(connection: duckdb.DuckDBPyConnection) -> None:
    test = one(connection, motion={"min": 2, "unscored": "keep"})
    assert outcomes(connection, test) == [R, R, K, K, K, U, U, U]
    assert [test.keeps(outcome) for outcome in (K, R, U)] == [True, False, True]
    assert test.kept_outcomes() == (K, U)


def test_the_strictest_bounds_are_the_resolved_ones(connection: duckdb.DuckDBPyConnection) -> None:
    rule = {"drop_lowest": "25%", "drop_highest": "25%", "min": 2, "max": 9}
    assert one(connection, motion=rule).resolved() == {"min": 2.0, "max": 3.0}
    assert one(connection, motion={"drop_lowest": "50%", "min": 1}).resolved() == {"min": 2.0}
    assert one(connection, motion={"max": 1}).resolved() == {"max": 1.0}
    assert one(connection, failed={"drop_lowest": "25%"}).resolved() == {}


@pytest.mark.parametrize(("bound", "up", "expected"), [("drop_lowest", True, 0.1), ("drop_highest", False, 0.1)])
def test_percentiles_between_two_numbers_go_to_a_number_of_the_column(bound: str, up: bool, expected: float) -> None:
    """Between 0 and 0.2 in single precision, the threshold lies at the representable number beside 0.1."""
    values = pa.table({"clip_id": ["a", "b"], "source_id": ["s", "s"], "v": pa.array([0.0, 0.2], pa.float32())})
    tables = {"clips": values, "sources": pa.table({"source_id": ["s"]})}
    with open_connection(LocalFileSystem(), tables) as connection:
        connection.execute(f"CREATE VIEW joined AS {joined_query(connection)}")
        threshold = one(connection, v={bound: "50%"}).thresholds[bound]
    assert threshold is not None
    middle = float(np.float32(0.2)) / 2
    assert threshold == float(np.float32(threshold))
    assert threshold >= middle if up else threshold <= middle
    assert abs(threshold - middle) <= np.spacing(np.float32(0.1))


ONE = np.float32(1)
AFTER_ONE = np.nextafter(ONE, np.float32(2))
AFTER_THAT = np.nextafter(AFTER_ONE, np.float32(2))


@pytest.mark.parametrize(
    ("low", "high", "bound", "expected", "outcome"),
    [
        (ONE, AFTER_ONE, "drop_lowest", AFTER_ONE, [REMOVED, KEPT]),
        (ONE, AFTER_ONE, "drop_highest", ONE, [KEPT, REMOVED]),
        (AFTER_ONE, AFTER_THAT, "drop_lowest", AFTER_THAT, [REMOVED, KEPT]),
        (AFTER_ONE, AFTER_THAT, "drop_highest", AFTER_ONE, [KEPT, REMOVED]),
    ],
)
def test_a_percentile_between_neighbouring_numbers_removes_the_worse_of_them(
    low: np.float32, high: np.float32, bound: str, expected: np.float32, outcome: list[int]
) -> None:
    """The middle of two neighbours rounds to the even one, which is the wrong one for one of the two bounds."""
    values = pa.table({"clip_id": ["a", "b"], "source_id": ["s", "s"], "v": pa.array([low, high], pa.float32())})
    tables = {"clips": values, "sources": pa.table({"source_id": ["s"]})}
    with open_connection(LocalFileSystem(), tables) as connection:
        connection.execute(f"CREATE VIEW joined AS {joined_query(connection)}")
        test = one(connection, v={bound: "50%"})
        assert test.thresholds == {bound: float(expected)}
        assert outcomes(connection, test) == outcome


def test_several_rules_by_percentage_have_a_threshold_each(connection: duckdb.DuckDBPyConnection) -> None:
    tests, _ = judged_by(connection, motion={"drop_lowest": "50%"}, beauty={"drop_lowest": "50%"})
    assert [test.thresholds for test in tests] == [{"drop_lowest": 2.0}, {"drop_lowest": 0.25}]


@pytest.mark.parametrize(
    ("values", "at", "expected"),
    [
        ([], Fraction(1, 2), None),
        ([5], Fraction(0), 5.0),
        ([5], Fraction(1), 5.0),
        ([3, 1, 2], Fraction(0), 1.0),
        ([3, 1, 2], Fraction(1), 3.0),
        ([3, 1, 2], Fraction(1, 2), 2.0),
        ([4, 1, 2, 3], Fraction(1, 2), 2.5),
        ([10, 0], Fraction(1, 4), 2.5),
        ([30, 0, 10], Fraction(3, 4), 20.0),
        (range(101), Fraction(7, 100), 7.0),
    ],
)
def test_percentiles(values: Any, at: Fraction, expected: float | None) -> None:
    assert percentile(np.array(list(values), float), at) == expected


@pytest.mark.parametrize(
    ("values", "asked", "bound", "lowest", "sentence"),
    [
        ([0, 0, 0, 1], Fraction(1, 2), 0.0, True, "removed 0.0% because 3 clips tie at the threshold and are kept"),
        ([0, 1, 1, 1], Fraction(1, 2), 1.0, False, "removed 0.0% because 3 clips tie at the threshold and are kept"),
        ([0, 1, 1, 2], Fraction(1, 2), 1.0, True, "removed 25.0% because 2 clips tie at the threshold and are kept"),
        ([0, 1, 1, 2], Fraction(1, 4), 1.0, True, None),
        ([0, 1, 2, 3], Fraction(1, 2), 1.5, True, None),
        ([0, 1, 2, 3], Fraction(1, 2), 1.5, False, None),
        ([0, 1, 2, 3, 4], Fraction(1, 2), 2.0, True, None),
        ([0] * 2000, Fraction(1, 2), 0.0, True, "removed 0.0% because 2,000 clips tie at the threshold and are kept"),
    ],
)
def test_ties(values: list[float], asked: Fraction, bound: float, lowest: bool, sentence: str | None) -> None:
    assert ties(np.array(values, np.float32), asked, bound, lowest=lowest) == sentence


def test_ties_are_noted(connection: duckdb.DuckDBPyConnection) -> None:
    note = "removed 0.0% because 3 clips tie at the threshold and are kept"
    assert one(connection, text_area={"drop_lowest": "50%"}).note == f"drop_lowest 50%: {note}"
    assert one(connection, text_area={"drop_highest": "25%"}).note is None
    assert one(connection, text_area={"min": 0.5}).note is None
    both = one(connection, text_area={"drop_lowest": "20%", "drop_highest": "60%"}).note
    assert (
        both
        == f"drop_lowest 20%: {note}; drop_highest 60%: removed 40.0% because 3 clips tie at the threshold and are kept"
    )


def test_where_is_a_test_like_the_others_and_runs_after_them(connection: duckdb.DuckDBPyConnection) -> None:
    tests, skipped = judged_by(connection, "size > 2 AND audio", motion={"min": 1})
    assert ([test.name for test in tests], skipped) == (["motion", "where"], {})
    assert outcomes(connection, tests[1]) == [R, R, K, K, K, K, K, U]
    assert tests[1].columns == {"size", "audio"}
    assert (tests[1].thresholds, tests[1].keeps_unscored, tests[1].last) == ({}, False, False)


def test_the_rule_on_duplicates_depends_on_the_others(connection: duckdb.DuckDBPyConnection) -> None:
    test = one(connection, duplicate_rank={"max": 0})
    assert test.last
    assert test.columns == {"duplicate_rank", "duplicate_of"}
    assert outcomes(connection, test, test.outcome_alone) == [K, R, R, K, U, U, U, U]
    placed = f"SELECT {test.outcome} FROM (SELECT *, place AS _place_in_group FROM joined LEFT JOIN "
    placed += "(VALUES ('b', 0), ('c', 1)) AS p(clip_id, place) USING (clip_id)) ORDER BY clip_id"
    assert [row[0] for row in connection.execute(placed).fetchall()] == [K, K, R, K, U, U, U, U]


def message(connection: duckdb.DuckDBPyConnection, where: str | None = None, **rules: Any) -> str:
    with pytest.raises(UserError) as error:
        judged_by(connection, where, **rules)
    return str(error.value)


def test_what_is_refused_and_how(connection: duckdb.DuckDBPyConnection) -> None:
    for name, kind in (("name", "VARCHAR"), ("listed", "BIGINT[]")):
        expected = f"the rule on {name!r} requires a numeric column, got {kind}: use `where` instead"
        assert message(connection, **{name: {"min": 1}}) == expected
    numbers = "beauty, broken, duplicate_rank, failed, gone, motion, size, some, text_area"
    assert message(connection, motoin={"min": 1}) == (
        f"unknown column of numbers 'motoin'. Did you mean 'motion'? Known: {numbers}."
    )
    for which, value in (("max", 7), ("min", -0.5), ("max", -1), ("min", 1.5)):
        expected = f"text_area lies between 0 and 1, got {which} {value:g}"
        assert message(connection, text_area={which: value}) == expected
    assert one(connection, text_area={"min": 0, "max": 1}).resolved() == {"min": 0.0, "max": 1.0}
    assert message(connection, gone={"min": 1}) == (
        "no clip of this dataset has the score 'gone' (left out: --without gone): curate with it into a new folder, "
        "remove the rule, or pass --allow-missing."
    )
    assert message(connection, duplicate_rank={"drop_lowest": "5%"}) == (
        "duplicate_rank counts the clips of a group from the best (0) to the worst: use max or min instead of a "
        "percentage"
    )
    assert message(connection, "motoin > 1").startswith("where: Binder Error: ")


def test_only_scores_that_every_clip_was_curated_without_count_as_left_out(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for name in ("failed", "some", "broken"):
        assert one(connection, **{name: {"min": 1}}).name == name
    tests, skipped = judged_by(
        connection, allow_missing=True, **{name: {"min": 1} for name in ("failed", "gone", "some", "broken")}
    )
    assert [test.name for test in tests] == ["failed", "some", "broken"]
    assert list(skipped) == ["gone"]


def test_a_score_that_can_be_added_says_how() -> None:
    left_out = {"aesthetic_error": "left out: --without aesthetic", "aesthetic_error_kind": "left_out"}
    clips = {"clip_id": pa.array(["a"]), "source_id": pa.array(["s"]), "aesthetic": pa.nulls(1, pa.float32())}
    clips |= {name: pa.array([text]) for name, text in left_out.items()}
    with open_connection(LocalFileSystem(), {"clips": pa.table(clips), "sources": pa.table({"source_id": ["s"]})}) as c:
        c.execute(f"CREATE VIEW joined AS {joined_query(c)}")
        assert message(c, aesthetic={"min": 1}) == (
            "no clip of this dataset has the score 'aesthetic' (left out: --without aesthetic): add it with "
            "`clipmill score DATASET --scorer aesthetic`, remove the rule, or pass --allow-missing."
        )


def test_what_is_missing_can_be_skipped(connection: duckdb.DuckDBPyConnection) -> None:
    tests, skipped = judged_by(
        connection, "motoin > 1", allow_missing=True, motoin={"min": 1}, gone={"min": 1}, motion={"min": 1}
    )
    assert [test.name for test in tests] == ["motion"]
    assert skipped == {
        "motoin": "unknown column 'motoin'",
        "gone": "no clip has it (left out: --without gone)",
        "where": "unknown column 'motoin'",
    }


def test_duplicates_that_nobody_looked_for() -> None:
    tables = {name: pa.table({"clip_id": ["a"], "source_id": ["s"]}) for name in ("clips", "sources")}
    expected = (
        "unknown column 'duplicate_rank' in this dataset: run `clipmill duplicates DATASET` to add "
        "it, remove the rule, or pass --allow-missing."
    )
    with open_connection(LocalFileSystem(), tables) as connection:
        connection.execute(f"CREATE VIEW joined AS {joined_query(connection)}")
        assert message(connection, duplicate_rank={"max": 0}) == expected
        assert message(connection, "duplicate_rank = 0") == f"where: {expected}"
    ranks = tables | {"scores_duplicates": pa.table({"clip_id": ["a"], "duplicate_rank": [0]})}
    with open_connection(LocalFileSystem(), ranks) as connection:
        connection.execute(f"CREATE VIEW joined AS {joined_query(connection)}")
        assert message(connection, duplicate_rank={"max": 0}) == (
            "the dataset has a column 'duplicate_rank' but no 'duplicate_of': run `clipmill duplicates DATASET` again"
        )
