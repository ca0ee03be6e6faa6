"""Rules that depend on other clips, run last on what the others left: `max_per`, then `balance`.

`balance` takes from group i, of size n_i, min(n_i, c * n_i ** power) clips, with c such that the sum is `clips`; parts
of clips are rounded by largest remainder. Power 1 keeps proportions, 0 takes the same number from each, 0.5 is between:
a group 100 times as large gives 10 times as many.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.config import unknown_name
from clipmill.errors import UserError
from curation.dataset.joined import JoinedColumn, is_number, joined_columns, listed_columns
from curation.dataset.sql import literal, quoted
from curation.selection.outcomes import KEPT, MADE_BY, REMOVED, UNSCORED, Test
from curation.selection.rules import Balance, MaxPer, Rules, Within

BALANCE, MAX_PER = "balance", "max_per"
_LIMITED, _BALANCED = 2, 3
"""Order of the tests, after the duplicates."""
_GROUP_KINDS = ("VARCHAR", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


def group_tests(
    connection: duckdb.DuckDBPyConnection, rules: Rules, *, allow_missing: bool
) -> tuple[list[Test], dict[str, str]]:
    """The tests of `max_per` and `balance`, and for each that cannot run the reason why not.

    There are others only with `allow_missing`. Raises UserError for a column that is missing or cannot name groups.
    """
    known = joined_columns(connection)
    tests: list[Test] = []
    skipped: dict[str, str] = {}
    for name, by, rule in group_rules(rules):
        missing = [c for c in (by, *rule.best) if c not in known]
        if missing and allow_missing:
            skipped[name] = f"unknown column {missing[0]!r}"
            continue
        if missing:
            raise UserError(f"{name}: {_no_column(missing[0], known)}")
        tests.append(_test(len(tests), name, by, rule, known))
    return tests, skipped


class GroupRule(NamedTuple):
    """A rule on groups."""

    name: str
    """Of its step in the funnel."""
    by: str
    """The column that names the groups."""
    rule: MaxPer | Balance

    @property
    def asked(self) -> str:
        """What it asks for, as text."""
        by, rule = self.by, self.rule
        words = [f"at most {rule.clips:,} per {by}"] if isinstance(rule, MaxPer) else []
        if isinstance(rule, Balance):
            words = [f"{rule.clips:,} clips, by {by} to the power {rule.power:g}"]
        words += [f"{which} {name} first" for name, which in rule.best.items()]
        words += [] if rule.best else [f"random order, seed {rule.seed}"]
        return ", ".join([*words, *(["unscored keep"] if rule.unscored == "keep" else [])])


def group_rules(rules: Rules) -> list[GroupRule]:
    """The rules on groups, in the order in which they run."""
    limits = [GroupRule(f"{MAX_PER} {given}", _column(given), rule) for given, rule in rules.max_per.items()]
    return [*limits, *([GroupRule(BALANCE, _column(rules.balance.by), rules.balance)] if rules.balance else [])]


def is_group_rule(name: str) -> bool:
    """Whether a step of a funnel is one of these rules."""
    return name == BALANCE or name.startswith(f"{MAX_PER} ")


def columns_of_groups(rules: Rules) -> dict[str, str]:
    """Name of each rule on groups -> the column that names them."""
    return {name: by for name, by, _ in group_rules(rules)}


def columns_read(rules: Rules) -> list[str]:
    """The columns that rules on groups read."""
    return [column for _, by, rule in group_rules(rules) for column in (by, *rule.best)]


def quotas(sizes_K: NDArray[np.int64], clips: int, power: float) -> NDArray[np.int64]:
    """(K,) clips of each group, see the formula of this module; min(clips, sum of the sizes) in total.

    A larger group never gives less than a smaller one; equal fractions are rounded up from the first group on.
    """
    if sizes_K.sum() <= clips:
        return sizes_K.copy()
    weights_K = np.where(sizes_K > 0, sizes_K.astype(np.float64) ** power, 0.0)
    whole_K = sizes_K == 0
    while True:
        rest = clips - int(sizes_K[whole_K].sum())
        scale = rest / weights_K[~whole_K].sum()
        newly_K = ~whole_K & (scale * weights_K >= sizes_K)
        if not newly_K.any():
            break
        whole_K |= newly_K
    exact_K = np.where(whole_K, sizes_K, scale * weights_K)
    found_K = np.floor(exact_K).astype(np.int64)
    left = clips - int(found_K.sum())
    open_K = np.flatnonzero(~whole_K)
    # Of equal fractions, those of larger groups first, for floating-point numbers may part them.
    order = np.lexsort((open_K, -sizes_K[open_K], -np.round(exact_K - found_K, 9)[open_K]))
    found_K[open_K[order[:left]]] += 1
    return found_K


def _column(given: str) -> str:
    return "source_id" if given == "source" else given


def _no_column(name: str, known: Mapping[str, JoinedColumn]) -> str:
    if name in MADE_BY:
        return f"unknown column {name!r} in this dataset: {MADE_BY[name]}, remove the rule, or pass --allow-missing."
    return unknown_name("column", name, list(listed_columns(known)))


def _test(number: int, name: str, by: str, rule: Within, known: Mapping[str, JoinedColumn]) -> Test:
    kind = known[by][2]
    if kind not in _GROUP_KINDS:
        raise UserError(f"{name}: expected a column of text, whole numbers or booleans, {by!r} is of type {kind}")
    for each in rule.best:
        if not is_number(known[each][2]):
            raise UserError(f"{name}: best requires numeric columns, {each!r} is of type {known[each][2]}")
    kept = f"_kept_{number}"
    outcome = f"CASE WHEN {quoted(by)} IS NULL THEN {UNSCORED} WHEN {kept} THEN {KEPT} ELSE {REMOVED} END"
    places = (
        f"SELECT clip_id, {quoted(by)} AS group_, row_number() OVER (PARTITION BY {quoted(by)} "
        f"ORDER BY {_order(rule, known)}) AS place FROM ({{survivors}}) WHERE {quoted(by)} IS NOT NULL"
    )
    balanced = isinstance(rule, Balance)
    prepare: Any = _balanced if balanced else _limited
    return Test(
        name=name,
        columns=frozenset({by}),
        outcome=outcome,
        keeps_unscored=rule.unscored == "keep",
        last=_BALANCED if balanced else _LIMITED,
        tables=frozenset({kept}),
        table=kept,
        reads=(by, *(each for each in rule.best if each != by)),
        prepare=partial(prepare, rule=rule, by=by, places=places, kept=kept),
    )


def _order(rule: Within, known: Mapping[str, JoinedColumn]) -> str:
    terms = []
    for name, which in rule.best.items():
        value = quoted(name)
        if known[name][2] in ("FLOAT", "DOUBLE"):
            value = f"CASE WHEN isfinite({value}) THEN {value} END"
        terms.append(f"{value} {'DESC' if which == 'highest' else 'ASC'} NULLS LAST")
    return ", ".join([*terms, random_order(rule.seed), "clip_id"])


def random_order(seed: int) -> str:
    """SQL for the key of the random order of clips: the same in every version of DuckDB."""
    return f"md5({literal(f'{seed}:')} || clip_id)"


def _limited(
    connection: duckdb.DuckDBPyConnection, survivors: str, table: str, *, rule: MaxPer, by: str, places: str, kept: str
) -> str:
    connection.execute(
        f"CREATE TEMP TABLE {table} AS SELECT clip_id, true AS {kept} FROM ({places.format(survivors=survivors)}) "
        f"WHERE place <= {rule.clips}"
    )
    [(groups, over)] = connection.execute(
        f"SELECT count(*), count(*) FILTER (WHERE size > {rule.clips}) FROM (SELECT count(*) AS size "
        f"FROM ({survivors}) WHERE {quoted(by)} IS NOT NULL GROUP BY {quoted(by)})"
    ).fetchall()
    return f"{over:,} of {groups:,} groups have more"


def _balanced(
    connection: duckdb.DuckDBPyConnection, survivors: str, table: str, *, rule: Balance, by: str, places: str, kept: str
) -> str | None:
    relation = connection.sql(
        f"SELECT {quoted(by)} AS group_, count(*) AS size FROM ({survivors}) WHERE {quoted(by)} IS NOT NULL "
        "GROUP BY 1 ORDER BY 1"
    )
    assert relation is not None
    rows = relation.to_arrow_table()
    sizes_K = rows["size"].to_numpy().astype(np.int64)
    quotas_K = quotas(sizes_K, rule.clips, rule.power)
    connection.register(f"{table}_quotas", rows.select(["group_"]).append_column("quota", pa.array(quotas_K)))
    connection.execute(
        f"CREATE TEMP TABLE {table} AS SELECT clip_id, true AS {kept} FROM ({places.format(survivors=survivors)}) "
        f"JOIN {table}_quotas USING (group_) WHERE place <= quota"
    )
    return _note(by, sizes_K, quotas_K)


def _note(by: str, sizes_K: NDArray[np.int64], quotas_K: NDArray[np.int64]) -> str | None:
    """What became of the groups."""
    if not len(sizes_K):
        return None
    whole = int(np.count_nonzero(sizes_K == quotas_K))
    return (
        f"{len(sizes_K):,} groups of {sizes_K.min():,} to {sizes_K.max():,} clips give {quotas_K.min():,} to "
        f"{quotas_K.max():,}; {whole:,} give all"
    )
