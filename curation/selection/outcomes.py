"""What a rule says of a clip, as SQL that is ready to run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import duckdb

MADE_BY: Mapping[str, str] = {
    "duplicate_rank": "run `clipmill duplicates DATASET` to add it",
    "cluster": "run `clipmill cluster DATASET` to add it",
}
"""Columns that a command of their own adds to a dataset."""

KEPT, REMOVED, UNSCORED = 0, 1, 2
"""What a test says of a clip."""

Prepare = Callable[[duckdb.DuckDBPyConnection, str, str], str | None]
"""Creates a table for a test, from SQL for the clips that pass the earlier tests (clip_id and what it `reads`); returns
what is to be known of them."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One rule, ready to run: `outcome` is SQL over the joined view that gives KEPT, REMOVED or UNSCORED.

    A test with `last` depends on the other rules: its `outcome` also reads a table, which `prepare` creates from the
    clips that pass the earlier tests.
    """

    name: str
    """The column, or "where"."""
    columns: frozenset[str]
    """The columns of the joined view that `outcome` reads."""
    outcome: str
    keeps_unscored: bool = False
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """Each bound of the rule as a number; None where no clip has the score."""
    note: str | None = None
    """What is to be known of these thresholds."""
    last: int = 0
    """Not 0 for a test that depends on other clips. Those run after the others, in this order."""
    tables: frozenset[str] = frozenset()
    """Tables besides the joined view that `outcome` reads; the funnel joins them by clip_id."""
    table: str = ""
    """The one among them that `prepare` creates."""
    reads: tuple[str, ...] = ()
    """The columns that `prepare` reads."""
    prepare: Prepare | None = field(default=None, compare=False)
    outcome_alone: str = ""
    """For a test with `last`: the outcome were there no other rules; empty if `outcome` says so on a table that is
    prepared from all clips."""

    def keeps(self, outcome: int) -> bool:
        """Whether a clip with this outcome goes on."""
        return outcome in self.kept_outcomes()

    def kept_outcomes(self) -> tuple[int, ...]:
        """The outcomes with which a clip goes on."""
        return (KEPT, UNSCORED) if self.keeps_unscored else (KEPT,)

    def resolved(self) -> dict[str, float]:
        """The strictest bounds, as `min` and `max`."""
        lower, upper = self._bounds("drop_lowest", "min"), self._bounds("drop_highest", "max")
        return ({"min": max(lower)} if lower else {}) | ({"max": min(upper)} if upper else {})

    def _bounds(self, *names: str) -> list[float]:
        return [bound for name in names if (bound := self.thresholds.get(name)) is not None]
