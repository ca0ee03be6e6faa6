"""The difference of two selections: which clips come and go, and the rule that decides each."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from curation.dataset.sql import batches
from curation.dataset.tables import Dataset
from curation.selection.funnel import judge, judged_rows
from curation.selection.groups import group_rules
from curation.selection.likeness import with_queries
from curation.selection.marks import Marks
from curation.selection.plan import plan_tests
from curation.selection.rules import Rules
from curation.selection.saved import Selection, load_selection, selected_ids

_BATCH_ROWS = 100_000
_REASONS = pa.schema([("clip_id", pa.string()), ("duration_s", pa.float64()), ("reason", pa.int16())])


@dataclass(frozen=True, kw_only=True)
class Change:
    """Clips that come or go for one reason."""

    rule: str | None
    """The first rule of the funnel that keeps them out of the selection that lacks them; None if no rule does."""
    reason: str
    """The same as a sentence, or why they are missing without a rule."""
    clips: int
    seconds: float
    """Footage; 0 for clips that are no longer in the dataset."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a selection has more and less than another: clips = both + coming, clips of the other = both + going."""

    other: str
    both: int
    coming: tuple[Change, ...]
    """Selected now, by the rule of the other selection that dropped them; most clips first."""
    going: tuple[Change, ...]
    """In the other selection alone, by the rule that drops them now."""


def difference(
    dataset: Dataset, rules: Rules, other: str, *, marks: Marks | None = None, allow_missing: bool = False
) -> Difference:
    """Compare what `rules` select with the selection `other` of the same dataset. Writes nothing.

    The rules of the other selection are applied as numbers, as it recorded them: a clip that they pass but that it does
    not hold was added to the dataset later. Raises UserError as `select_clips`, and if there is no such selection.
    """
    older = load_selection(dataset, other)
    now, names = _reasons(dataset, with_queries(dataset, rules), marks, allow_missing=allow_missing)
    before, names_before = _reasons(dataset, _rules_of(older), None, allow_missing=True)
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.register("now", now)
        connection.register("before", before)
        connection.register("other", selected_ids(dataset, other))
        both = connection.sql(
            "SELECT count(*) FROM now SEMI JOIN other USING (clip_id) WHERE reason IS NULL"
        ).fetchall()[0][0]
        coming = _changes(
            connection,
            "SELECT before.reason, now.duration_s FROM now LEFT JOIN before USING (clip_id) "
            "ANTI JOIN other USING (clip_id) WHERE now.reason IS NULL",
            names_before,
            "dropped by marks" if older.marks else _added_since(older),
        )
        going = _changes(
            connection,
            "SELECT now.reason, now.duration_s FROM other "
            "LEFT JOIN now ON now.clip_id = other.clip_id WHERE now.clip_id IS NULL OR now.reason IS NOT NULL",
            names,
            "no longer in the dataset",
        )
    return Difference(other=other, both=int(both), coming=coming, going=going)


def _rules_of(selection: Selection) -> Rules:
    return Rules.from_values(selection.resolved, origin=f"selection {selection.name}")


def _added_since(older: Selection) -> str:
    """Why a selection lacks a clip that passes its rules today."""
    applied = {step.rule for step in older.funnel}
    names = ("duplicate_rank", *(group.name for group in group_rules(_rules_of(older))))
    groups = [name for name in names if name in applied]
    changed = f", or not chosen by {' or '.join(groups)} among the clips of then" if groups else ""
    return f"added to the dataset after {older.name}{changed}"


def _reasons(
    dataset: Dataset, rules: Rules, marks: Marks | None, *, allow_missing: bool
) -> tuple[pa.Table, dict[int, str]]:
    """Every clip with the number of the first test that drops it, null where none does; and the tests' names."""
    with dataset.connect() as connection:
        plan = plan_tests(dataset, connection, rules, marks, allow_missing=allow_missing)
        ordered = judge(connection, plan.tests).tests
        cases = " ".join(
            f"WHEN outcome_{i} NOT IN ({', '.join(map(str, test.kept_outcomes()))}) THEN {i}"
            for i, test in enumerate(ordered)
        )
        reason = f"CASE {cases} END" if cases else "NULL"
        rows = judged_rows(connection, ordered, ["clip_id", "duration_s"])
        query = f"SELECT clip_id::VARCHAR AS clip_id, duration_s::DOUBLE AS duration_s, ({reason})::SMALLINT AS reason"
        found = [batch.cast(_REASONS) for batch in batches(connection, f"{query} FROM ({rows})", _BATCH_ROWS)]
    return pa.Table.from_batches(found, _REASONS), {i: test.name for i, test in enumerate(ordered)}


def _changes(
    connection: duckdb.DuckDBPyConnection, query: str, rules: Mapping[int, str], otherwise: str
) -> tuple[Change, ...]:
    """Count the rows (number of a rule or null, seconds) of a query per rule."""
    rows = connection.sql(
        f"SELECT number, count(*), coalesce(sum(seconds), 0) FROM ({query}) AS changed(number, seconds) "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return tuple(
        Change(
            rule=None if number is None else rules[number],
            reason=otherwise if number is None else f"dropped by {rules[number]}",
            clips=clips,
            seconds=round(seconds, 6),
        )
        for number, clips, seconds in rows
    )
