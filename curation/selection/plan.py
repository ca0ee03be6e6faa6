"""The tests of a set of rules on a dataset, in one place for a selection, its comparison and the report."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from curation.dataset.tables import Dataset
from curation.selection.groups import group_tests
from curation.selection.likeness import add_likes
from curation.selection.marks import Marks, with_marks
from curation.selection.outcomes import Test
from curation.selection.rules import Rules
from curation.selection.thresholds import tests_of, with_full_names


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tested."""

    rules: Rules
    """With full names of columns, and each `like` as a rule on its score."""
    tests: list[Test]
    skipped: Mapping[str, str]
    """Rule -> why it cannot run."""


def plan_tests(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, rules: Rules, marks: Marks | None, *, allow_missing: bool
) -> Plan:
    """Raises UserError for columns that are missing (unless `allow_missing`) or of the wrong type, and for a `where`
    that is not a condition."""
    rules = add_likes(dataset, connection, with_full_names(connection, rules), allow_missing=allow_missing)
    tests, skipped = tests_of(connection, rules, allow_missing=allow_missing)
    grouping, without = group_tests(connection, rules, allow_missing=allow_missing)
    tests += grouping
    if marks:
        tests = with_marks(connection, tests, marks)
    return Plan(rules=rules, tests=tests, skipped=skipped | without)
