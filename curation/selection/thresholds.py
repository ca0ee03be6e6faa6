"""Resolves percentiles to thresholds and compiles each rule to an SQL expression.

Thresholds are percentiles of the clips with the score, on the unfiltered set (paper 3.3, App. E.2.2).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from clipmill.columns import bounds_of
from clipmill.config import known_name, unknown_name
from clipmill.errors import UserError
from curation.dataset.joined import (
    JoinedColumn,
    error_columns,
    is_number,
    joined_columns,
    joined_query,
    listed_columns,
)
from curation.dataset.schemas import CLIPS
from curation.dataset.sql import quoted
from curation.scores.columns import LEFT_OUT, SCORE_COLUMNS
from curation.selection.condition import Condition, read_condition
from curation.selection.outcomes import KEPT, MADE_BY, REMOVED, UNSCORED, Test
from curation.selection.rules import Rule, Rules, share

WHERE = "where"
_COLUMN = "column of numbers"
RANK, GROUP = "duplicate_rank", "duplicate_of"
PLACE = "_place_in_group"
PLACES = "_places"
"""In a group of near-duplicates, among its clips that pass the other rules: 0 for the best of them."""


def with_full_names(connection: duckdb.DuckDBPyConnection, rules: Rules) -> Rules:
    """The same rules with columns by their full names, where only the beginning of one was given.

    A name that begins no column stays as it is. Raises UserError: it could be several, or one column has two rules.
    """
    known = joined_columns(connection)
    numeric = [name for name, (_, _, kind) in listed_columns(known).items() if is_number(kind)]
    full: dict[str, Rule] = {}
    for given, rule in rules.rules.items():
        begins = any(name.startswith(given) for name in numeric)
        name = given if given in known or not begins else known_name(_COLUMN, given, numeric)
        if name in full:
            raise UserError(f"{rules.name}: two rules for the column {name!r}; merge them into one")
        full[name] = rule
    return rules.model_copy(update={"rules": full})


def tests_of(
    connection: duckdb.DuckDBPyConnection, rules: Rules, *, allow_missing: bool
) -> tuple[list[Test], dict[str, str]]:
    """The tests of all rules that can run, in order, and for each of the others the reason why not.

    There are others only with `allow_missing`. Raises UserError for a column that is not there or holds no
    numbers, for a threshold beyond what its column can hold, and for a `where` that is not one boolean condition.
    """
    known = joined_columns(connection)
    numeric = [name for name, (_, _, kind) in listed_columns(known).items() if is_number(kind)]
    scored: dict[str, _Score] = {}
    skipped: dict[str, str] = {}
    for name in rules.rules:
        if name in known:
            scored[name] = _Score.of(name, known[name][2])
            if name == RANK:
                _check_rank_rule(rules.rules[name], known)
            _check_bounds(name, known[name][1], rules.rules[name])
        elif allow_missing:
            skipped[name] = f"unknown column {name!r}"
        else:
            raise UserError(_no_column(name, numeric))
    for name, why in _left_out(connection, scored, known).items():
        if not allow_missing:
            scorer = name.partition("@")[0]
            added = f"add it with `clipmill score DATASET --scorer {scorer}`"
            remedy = added if scorer in SCORE_COLUMNS else "curate with it into a new folder"
            raise UserError(
                f"no clip of this dataset has the score {name!r} ({why}): {remedy}, remove the rule, or pass "
                "--allow-missing."
            )
        skipped[name] = f"no clip has it ({why})"
        del scored[name]
    where = None
    if rules.where is not None:
        condition = read_condition(connection, rules.where, known)
        if not condition.missing:
            where = Test(name=WHERE, columns=condition.columns, outcome=condition_outcome(condition))
        elif allow_missing:
            skipped[WHERE] = f"unknown column {condition.missing[0]!r}"
        else:
            complaints = [_no_column(name, numeric) for name in condition.missing if name in MADE_BY]
            raise UserError(f"where: {complaints[0] if complaints else condition.complaint}")
    values = _scores(connection, [s for name, s in scored.items() if rules.rules[name].ranks()])
    tests = [_test(s, rules.rules[name], values.pop(name, _NO_SCORES)) for name, s in scored.items()]
    return [*tests, *([where] if where else [])], skipped


def condition_outcome(condition: Condition) -> str:
    """SQL for the outcome of a `where` condition."""
    return f"CASE WHEN {condition.sql} THEN {KEPT} WHEN {condition.sql} IS NULL THEN {UNSCORED} ELSE {REMOVED} END"


def _left_out(
    connection: duckdb.DuckDBPyConnection, names: Iterable[str], known: Mapping[str, JoinedColumn]
) -> dict[str, str]:
    """Scores that the dataset was curated without -> what their error column says of it."""
    errors = {name: pair for name in names if (pair := error_columns(known, name))}
    if not errors:
        return {}
    # The same kind in every clip: min and max come from the Parquet files' own statistics.
    bounds = ", ".join(
        f"min({quoted(kind)}), max({quoted(kind)}), count({quoted(kind)}) = count(*), min({quoted(error)})"
        for error, kind in errors.values()
    )
    columns = dict.fromkeys(column for both in errors.values() for column in both)
    row = connection.execute(f"SELECT {bounds} FROM ({joined_query(connection, columns)})").fetchone()
    assert row is not None
    reasons = zip(errors, row[::4], row[1::4], row[2::4], row[3::4], strict=True)
    return {name: str(error) for name, low, high, every, error in reasons if every and low == high == LEFT_OUT}


def _check_rank_rule(rule: Rule, known: Mapping[str, object]) -> None:
    if GROUP not in known:
        raise UserError(f"the dataset has a column {RANK!r} but no {GROUP!r}: run `clipmill duplicates DATASET` again")
    if rule.ranks():
        raise UserError(
            f"{RANK} counts the clips of a group from the best (0) to the worst: use max or min instead of a percentage"
        )


def _check_bounds(name: str, original: str, rule: Rule) -> None:
    """Refuse a threshold that means something else than was meant: 7 for 7 % of a share."""
    bounds = bounds_of(CLIPS.field(original)) if original in CLIPS.names else None
    for which, value in (("min", rule.min), ("max", rule.max)):
        if bounds and value is not None and not bounds[0] <= value <= bounds[1]:
            raise UserError(f"{name} lies between {bounds[0]:g} and {bounds[1]:g}, got {which} {value:g}")


@dataclass(frozen=True)
class _Score:
    """A numeric column; NaN and infinity count as no score."""

    name: str
    kind: str

    @classmethod
    def of(cls, name: str, kind: str) -> "_Score":
        if not is_number(kind):
            raise UserError(f"the rule on {name!r} requires a numeric column, got {kind}: use `where` instead")
        return cls(name, kind)

    @property
    def sql(self) -> str:
        column = quoted(self.name)
        if self.kind not in ("FLOAT", "DOUBLE"):
            return f"{column}::DOUBLE"
        return f"CASE WHEN isfinite({column}) THEN {column} END"

    def representable(self, bound: float, *, up: bool | None = None) -> float:
        """The bound as the column can hold it, so that a score of 0.07 passes `max: 0.07` in single precision.

        A percentile that falls between two neighbouring numbers goes to the one that changes no outcome (`up` for
        a lower bound): the resolved number then chooses the very same clips.
        """
        if self.kind != "FLOAT":
            return bound
        nearest = np.float32(bound)  # compared as doubles: beside a single, numpy would round `bound` as well
        if up is True and float(nearest) < bound:
            nearest = np.nextafter(nearest, np.float32(np.inf))
        if up is False and float(nearest) > bound:
            nearest = np.nextafter(nearest, np.float32(-np.inf))
        return float(nearest)


_NO_SCORES: NDArray[Any] = np.empty(0)


def _scores(connection: duckdb.DuckDBPyConnection, columns: Sequence[_Score]) -> dict[str, NDArray[Any]]:
    if not columns:
        return {}
    listed = ", ".join(f"{column.sql} AS {quoted(column.name)}" for column in columns)
    rows = joined_query(connection, [column.name for column in columns])
    values = connection.execute(f"SELECT {listed} FROM ({rows})").fetchnumpy()
    return {name: np.ma.compressed(values.pop(name)) for name in list(values)}


def _test(score: _Score, rule: Rule, values: NDArray[Any]) -> Test:
    thresholds: dict[str, float | None] = {}
    notes = []
    for name, percentage, up in (
        ("drop_lowest", rule.drop_lowest, True),
        ("drop_highest", rule.drop_highest, False),
    ):
        if percentage is not None:
            at = percentile(values, share(percentage) if up else 1 - share(percentage))
            bound = thresholds[name] = None if at is None else score.representable(at, up=up)
            if bound is not None and (tied := ties(values, share(percentage), bound, lowest=up)):
                notes.append(f"{name} {percentage}: {tied}")
    for name, value in (("min", rule.min), ("max", rule.max)):
        if value is not None:
            thresholds[name] = score.representable(value)
    test = Test(
        name=score.name,
        columns=frozenset({score.name}),
        outcome="",
        keeps_unscored=rule.unscored == "keep",
        thresholds=thresholds,
        note="; ".join(notes) or None,
    )
    outcome = _outcome(score.sql, test.resolved())
    if score.name != RANK:
        return replace(test, outcome=outcome)
    place = f"CASE WHEN {quoted(RANK)} = 0 THEN 0 WHEN {quoted(RANK)} > 0 THEN coalesce({PLACE}, {quoted(RANK)}) END"
    return replace(
        test,
        columns=frozenset({RANK, GROUP}),
        outcome=_outcome(place, test.resolved()),
        outcome_alone=outcome,
        tables=frozenset({PLACES}),
        table=PLACES,
        reads=(GROUP, RANK),
        prepare=_place_survivors,
        last=1,
    )


def _place_survivors(connection: duckdb.DuckDBPyConnection, survivors: str, table: str) -> None:
    """Create the table of places: for each copy among the survivors, the number of better survivors of its group.

    Only copies have a row, because the best clip of a group has place 0 whenever it passes.
    """
    connection.execute(
        f"CREATE TEMP TABLE copies AS SELECT clip_id, duplicate_of, row_number() OVER "
        f"(PARTITION BY duplicate_of ORDER BY duplicate_rank, clip_id) - 1 AS better "
        f"FROM ({survivors}) WHERE duplicate_rank > 0"
    )
    connection.execute(
        f"CREATE TEMP TABLE best AS SELECT clip_id FROM ({survivors}) AS s WHERE duplicate_rank = 0 "
        "AND clip_id IN (SELECT duplicate_of FROM copies)"
    )
    connection.execute(
        f"CREATE TEMP TABLE {table} AS SELECT clip_id, "
        f"better + (duplicate_of IN (SELECT clip_id FROM best))::BIGINT AS {PLACE} FROM copies"
    )


def _outcome(value: str, bounds: Mapping[str, float]) -> str:
    """SQL for the outcome of a score (SQL for a number or null) under `min` and `max`."""
    compare = {"min": "<", "max": ">"}
    # As text: a bare decimal literal would be rounded twice on its way to a double.
    outside = [f"({value})::DOUBLE {compare[k]} '{v!r}'::DOUBLE" for k, v in bounds.items()]
    removed = " OR ".join(outside) or "false"
    return f"CASE WHEN ({value}) IS NULL THEN {UNSCORED} WHEN {removed} THEN {REMOVED} ELSE {KEPT} END"


def ties(scores: NDArray[Any], asked: Fraction, bound: float, *, lowest: bool) -> str | None:
    """A sentence where a percentile bound removes a clip or more less than asked, for others are equal to it.

    Clips on a bound stay, so equal scores stay or go together.
    """
    removed = int(np.count_nonzero(scores < bound if lowest else scores > bound))
    if asked * len(scores) - removed < 1:
        return None
    equal = int(np.count_nonzero(scores == scores.dtype.type(bound)))
    return f"removed {removed / len(scores):.1%} because {equal:,} clips tie at the threshold and are kept"


def percentile(scores: NDArray[Any], at: Fraction) -> float | None:
    """The value below which the share `at` of the scores lies, linear between neighbours; None without scores.

    `scores` (N,) is reordered. The place is an exact fraction: in floating point, the lowest 7 % of 101 clips
    would end just above the eighth clip instead of on it.
    """
    if not len(scores):
        return None
    place = at * (len(scores) - 1)
    below, above = math.floor(place), math.ceil(place)
    scores.partition(sorted({below, above}))
    low, high = float(scores[below]), float(scores[above])
    return min(high, low + (high - low) * float(place - below))


def _no_column(name: str, numeric: list[str]) -> str:
    if name not in MADE_BY:
        return unknown_name(_COLUMN, name, numeric)
    return f"unknown column {name!r} in this dataset: {MADE_BY[name]}, remove the rule, or pass --allow-missing."
