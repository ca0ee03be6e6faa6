"""The joined view: a row per clip with the columns of clips, sources and scores.

A score stands under its name, in the version that counts; `NAME@N` is version N of it, whichever counts.
"""

from collections.abc import Collection, Iterable, Mapping

import duckdb

from curation.dataset.sql import literal, quoted
from curation.scores.columns import NOT_SCORED, SCORE_COLUMNS, error_kind_column

SCORES = "scores"
"""The folder of added scores; their views are called `scores_NAME`, those of versions `scores_NAME@N`."""
VERSIONS = "score_versions"
"""The view of the versions: scorer, version, view, counted."""

JoinedColumn = tuple[str, str, str]
"""View it comes from, its name there, its DuckDB type."""

_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
)
"""Beginnings of the names of DuckDB's numeric types."""
_OF_THE_ROW = ("clip_id", "version", "weights_digest")
"""Columns of a version's table that are no scores."""


def is_number(kind: str) -> bool:
    """Whether a DuckDB type, as `joined_columns` gives it, is numeric."""
    return kind.startswith(_NUMBERS) and not kind.endswith("]")


def joined_columns(connection: duckdb.DuckDBPyConnection) -> dict[str, JoinedColumn]:
    """Column of the joined view -> where it comes from, in order; then those of each version, as `NAME@N`.

    A name that is taken (clips come first, then sources, then scores by name) is left out for sources and gets
    its scorer's name in front for scores. A score that counts in another version than that of the clips table
    replaces its columns there.
    """
    views = {row[0] for row in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    versions = _versions(connection, views)
    versioned = {view for _, _, view, _ in versions}
    added = sorted(view for view in views - versioned if view.startswith(f"{SCORES}_"))
    columns: dict[str, JoinedColumn] = {}
    taken: set[str] = set()  # SQL names do not tell upper from lower case
    for view in ("clips", "sources", *added):
        for name, kind in _described(connection, view):
            if name.lower() not in taken:
                columns[name] = (view, name, kind)
            elif view in added and name.lower() != "clip_id":
                columns[f"{view.removeprefix(f'{SCORES}_')}_{name}"] = (view, name, kind)
        taken |= {column.lower() for column in columns}
    pinned: dict[str, JoinedColumn] = {}
    for scorer, version, view, counted in versions:
        own = own_columns(scorer)
        for name, kind in _described(connection, view):
            if name in _OF_THE_ROW or (view == "clips" and name not in own):
                continue
            if counted:
                free = name in own or name.lower() not in taken
                columns[name if free else f"{scorer}_{name}"] = (view, name, kind)
            pinned[f"{name}@{version}"] = (view, name, kind)
    return columns | pinned


def own_columns(scorer: str) -> Collection[str]:
    """Columns that a score of clipmill has in the clips table; none of other scorers."""
    fields = SCORE_COLUMNS.get(scorer, ())
    return [field.name for field in (*fields, error_kind_column(scorer))] if fields else []


def is_pinned(name: str, column: JoinedColumn) -> bool:
    """Whether a name of `joined_columns` names a version of a score."""
    return name.rpartition("@")[0] == column[1]


def listed_columns(known: Mapping[str, JoinedColumn]) -> dict[str, JoinedColumn]:
    """Those of `joined_columns` that stand for themselves, without the versions `NAME@N`."""
    return {name: column for name, column in known.items() if not is_pinned(name, column)}


def error_columns(known: Mapping[str, JoinedColumn], name: str) -> tuple[str, str] | None:
    """The columns with message and kind of the error where the score `name` is null; None if it has none."""
    if name not in known:
        return None
    view, original, _ = known[name]
    scorer = view.removeprefix(f"{SCORES}_").partition("@")[0] if "@" in view else original
    at = name[len(original) :] if is_pinned(name, known[name]) else ""
    error, kind = f"{scorer}_error{at}", f"{scorer}_error_kind{at}"
    return (error, kind) if {error, kind} <= known.keys() else None


def joined_query(connection: duckdb.DuckDBPyConnection, columns: Iterable[str] | None = None) -> str:
    """SQL for the joined view, or for some columns of it; tables that those columns do not need are not joined.

    Without `columns`, those of versions that do not count are left out.
    """
    known = joined_columns(connection)
    wanted = list(listed_columns(known)) if columns is None else list(dict.fromkeys(columns))
    selected = ", ".join(f"{_value(*known[c][:2])} AS {quoted(c)}" for c in wanted)
    joins = "".join(
        f" LEFT JOIN {quoted(view)} USING ({'source_id' if view == 'sources' else 'clip_id'})"
        for view in dict.fromkeys(known[c][0] for c in wanted)
        if view != "clips"
    )
    return f"SELECT {selected} FROM clips{joins}"


def _value(view: str, name: str) -> str:
    """SQL for a column. Of a clip that a version does not cover, its error says so."""
    value = f"{quoted(view)}.{quoted(name)}"
    scorer, at, version = view.removeprefix(f"{SCORES}_").rpartition("@")
    missing = {f"{scorer}_error": f"not scored by version {version}", f"{scorer}_error_kind": NOT_SCORED}
    if not at or name not in missing:
        return value
    return f"CASE WHEN {quoted(view)}.clip_id IS NULL THEN {literal(missing[name])} ELSE {value} END"


def _versions(connection: duckdb.DuckDBPyConnection, views: Collection[str]) -> list[tuple[str, int, str, bool]]:
    if VERSIONS not in views:
        return []
    return connection.execute(f"SELECT scorer, version, view, counted FROM {VERSIONS} ORDER BY 1, 2").fetchall()


def _described(connection: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind, *_ in connection.execute(f"DESCRIBE {quoted(view)}").fetchall()]
