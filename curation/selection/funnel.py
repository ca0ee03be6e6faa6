"""Counts clips per rule outcome and builds the funnel of what each rule removed.

Rules on single clips are evaluated on the unfiltered set. Rules that depend on other clips (the best clip of each
group of near-duplicates, limits per group, balance between groups) are evaluated last, on the clips that pass the
others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import duckdb

from curation.dataset.joined import error_columns, joined_columns, joined_query
from curation.dataset.sql import quoted
from curation.selection.groups import columns_of_groups, group_rules
from curation.selection.outcomes import REMOVED, UNSCORED, Test
from curation.selection.rules import Like, Rule, Rules
from curation.selection.steps import FunnelStep
from curation.selection.thresholds import WHERE

Outcomes = tuple[int, ...]
"""Outcomes of one clip under all tests, in order: KEPT, REMOVED or UNSCORED."""

_LAST_NOTE = "among the clips that pass the other rules"


class Count(NamedTuple):
    """Clips and integer microseconds, whose sum does not depend on the order."""

    clips: int
    microseconds: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Outcomes of all clips, counted."""

    tests: tuple[Test, ...]
    """Tests that depend on the others, last."""
    counts: Mapping[Outcomes, Count]
    alone: Mapping[str, int]
    """For each test that depends on the others: clips that it would remove from the unfiltered set."""
    notes: Mapping[str, str | None]
    """For each of those: what is to be known of its groups."""

    def passes(self, outcomes: Outcomes) -> bool:
        """Whether a clip with these outcomes is selected."""
        return all(test.keeps(outcome) for test, outcome in zip(self.tests, outcomes, strict=True))

    def chosen(self) -> Count:
        """The clips that pass all tests."""
        return _total(count for outcomes, count in self.counts.items() if self.passes(outcomes))

    def total(self) -> Count:
        """All clips."""
        return _total(self.counts.values())


def judge(connection: duckdb.DuckDBPyConnection, tests: Sequence[Test]) -> Judged:
    """Count the clips per combination of outcomes; see `judged_rows` for the clips themselves."""
    ordered = tuple(sorted(tests, key=lambda test: test.last))
    alone: dict[str, int] = {}
    notes: dict[str, str | None] = {}
    for i, test in enumerate(ordered):
        if test.last:
            alone[test.name] = _removed_alone(connection, test)
            notes[test.name] = _prepare(connection, test, ordered[:i], test.table)
    names = [_outcome(i) for i in range(len(ordered))]
    listed = "".join(f"{name}, " for name in names)
    rows = connection.execute(
        f"SELECT {listed}count(*), coalesce(sum(round(duration_s * 1e6)::BIGINT), 0) "
        f"FROM ({judged_rows(connection, ordered, ['duration_s'])}) GROUP BY ALL"
    ).fetchall()
    counts = {tuple(outcomes): Count(int(clips), int(us)) for *outcomes, clips, us in rows if clips}
    return Judged(tests=ordered, counts=counts, alone=alone, notes=notes)


def judged_rows(connection: duckdb.DuckDBPyConnection, tests: Sequence[Test], columns: Sequence[str]) -> str:
    """SQL for these columns of every clip, and its outcome under each test as `outcome_0`, `outcome_1`, ..."""
    tables = sorted({table for test in tests for table in test.tables})
    used = dict.fromkeys([*columns, *(c for t in tests for c in sorted(t.columns)), *(["clip_id"] * bool(tables))])
    rows = f"({joined_query(connection, used)}) AS joined" + "".join(f" LEFT JOIN {t} USING (clip_id)" for t in tables)
    listed = [*map(quoted, columns), *(f"({t.outcome})::TINYINT AS {_outcome(i)}" for i, t in enumerate(tests))]
    return f"SELECT {', '.join(listed)} FROM {rows}"


def passing(tests: Sequence[Test]) -> str:
    """SQL over `judged_rows`: whether a clip passes all tests."""
    conditions = [f"{_outcome(i)} IN ({', '.join(map(str, t.kept_outcomes()))})" for i, t in enumerate(tests)]
    return " AND ".join(conditions) or "true"


def _prepare(connection: duckdb.DuckDBPyConnection, test: Test, earlier: Sequence[Test], table: str) -> str | None:
    """Create the table of a test from the clips that pass the earlier ones."""
    assert test.prepare is not None
    rows = judged_rows(connection, earlier, ["clip_id", *test.reads])
    columns = ", ".join(map(quoted, ("clip_id", *test.reads)))
    return test.prepare(connection, f"SELECT {columns} FROM ({rows}) WHERE {passing(earlier)}", table)


def _removed_alone(connection: duckdb.DuckDBPyConnection, test: Test) -> int:
    alone = replace(test, outcome=test.outcome_alone, tables=test.tables - {test.table})
    if not test.outcome_alone:
        table = f"{test.table}_alone"
        _prepare(connection, test, (), table)
        alone = replace(test, tables=alone.tables | {table})
    rows = judged_rows(connection, [alone], [])
    row = connection.execute(f"SELECT count(*) FILTER (WHERE {_outcome(0)} = {REMOVED}) FROM ({rows})").fetchone()
    assert row is not None
    return int(row[0])


def funnel(
    connection: duckdb.DuckDBPyConnection,
    rules: Rules,
    judged: Judged,
    skipped: Mapping[str, str],
    marks: Mapping[str, str] | None = None,
) -> tuple[FunnelStep, ...]:
    """The steps of the funnel: first rules on single clips, in order.

    `marks`: name of the test on marks -> number of marks per verdict, as text.
    """
    asked = {name: _asked(rule) for name, rule in rules.rules.items()}
    if rules.where is not None:
        asked[WHERE] = rules.where
    groups = {group.name: group.asked for group in group_rules(rules)}
    asked |= {**(marks or {}), **groups}
    place = {test.name: i for i, test in enumerate(judged.tests)}
    last = {test.name for test in judged.tests if test.last} | groups.keys()
    left, steps = dict(judged.counts), []
    for name in sorted(asked, key=lambda name: name in last):
        if name in skipped:
            steps.append(_step(name, asked[name], left, skipped=skipped[name]))
            continue
        i, before = place[name], left
        test = judged.tests[i]
        left = {outcomes: count for outcomes, count in before.items() if test.keeps(outcomes[i])}
        unscored = _clips_with(judged.counts, i, UNSCORED)
        steps.append(
            _step(
                name,
                asked[name],
                left,
                thresholds=dict(test.thresholds),
                removed_alone=judged.alone.get(name, _clips_with(judged.counts, i, REMOVED)),
                removed=_clips_with(before, i, REMOVED),
                unscored=unscored,
                unscored_dropped=0 if test.keeps_unscored else _clips_with(before, i, UNSCORED),
                unscored_reason=_most_common_error(connection, _score_of(rules, name)) if unscored else None,
                note=_last_note(judged, name) if test.last else test.note,
            )
        )
    return tuple(steps)


def _score_of(rules: Rules, name: str) -> str:
    """The score that a rule needs."""
    if isinstance(rules.rules.get(name), Like):
        return "embedding"
    return columns_of_groups(rules).get(name, name)


def _last_note(judged: Judged, name: str) -> str:
    return "; ".join(filter(None, (_LAST_NOTE, judged.notes.get(name))))


def _most_common_error(connection: duckdb.DuckDBPyConnection, name: str) -> str | None:
    known = joined_columns(connection)
    error, _ = error_columns(known, name) or (f"{name}_error", "")
    if error not in known or known[error][2] != "VARCHAR":
        return None
    row = connection.execute(
        f"SELECT {quoted(error)} FROM ({joined_query(connection, [error])}) WHERE {quoted(error)} IS NOT NULL "
        "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
    ).fetchone()
    return str(row[0]) if row else None


def _step(rule: str, asked: str, left: Mapping[Outcomes, Count], **numbers: Any) -> FunnelStep:
    total = _total(left.values())
    return FunnelStep(rule=rule, asked=asked, clips_left=total.clips, seconds_left=total.microseconds / 1e6, **numbers)


def _total(counts: Iterable[Count]) -> Count:
    listed = list(counts)
    return Count(sum(count.clips for count in listed), sum(count.microseconds for count in listed))


def _clips_with(counts: Mapping[Outcomes, Count], place: int, outcome: int) -> int:
    return sum(count.clips for outcomes, count in counts.items() if outcomes[place] == outcome)


def _asked(rule: Rule) -> str:
    bounds = [f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in rule.bounds().items()]
    query = [rule.query] if isinstance(rule, Like) else []
    return ", ".join([*query, *bounds, *(["unscored keep"] if rule.unscored == "keep" else [])])


def _outcome(i: int) -> str:
    return f"outcome_{i}"
