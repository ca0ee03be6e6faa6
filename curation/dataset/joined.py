"""The joined view: a row per clip with the columns of clips, sources, scores and captioners.

A score stands under its name, in the version that counts; `NAME@N` is version N of it, whichever counts. `captions` has
all captions of a clip, `caption` the text of the newest.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

import duckdb

from curation.dataset.joined_captions import Generated, all_captions, generated, newest_caption
from curation.dataset.sql import literal, quoted
from curation.scores.columns import CAPTIONS, NOT_SCORED, SCORE_COLUMNS, SCORES, error_kind_column

VERSIONS = "score_versions"
"""The view of the versions: scorer, version, view, counted, created."""
COMPUTED: Mapping[tuple[str, str], Callable[[Iterable[Generated]], str]] = MappingProxyType(
    {("sources", CAPTIONS): all_captions, ("sources", "caption"): newest_caption}
)
"""View and name of columns that are not read as they are -> their SQL."""

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
    views, versions = view_names(connection), _versions(connection)
    versioned = {version[2] for version in versions}
    added = sorted(view for view in views - versioned if view.startswith(f"{SCORES}_"))
    columns: dict[str, JoinedColumn] = {}
    taken: set[str] = set()  # SQL names do not tell upper from lower case
    for view in ("clips", "sources", *added):
        for name, kind in _described(connection, view):
            if name.lower() not in taken:
                columns[name] = (view, name, kind)
            elif view in added and name.lower() != "clip_id":
                columns[f"{score_of(view)}_{name}"] = (view, name, kind)
            if (view, name) == ("sources", CAPTIONS):
                columns["caption"] = (view, "caption", "VARCHAR")
        taken |= {column.lower() for column in columns}
    pinned: dict[str, JoinedColumn] = {}
    for scorer, version, view, counted, _ in versions:
        own = own_columns(scorer)
        for name, kind in _described(connection, view):
            if name in (*_OF_THE_ROW, f"{scorer}_captions_seen") or (view == "clips" and name not in own):
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
    scorer = score_of(view) if "@" in view else original
    at = name[len(original) :] if is_pinned(name, known[name]) else ""
    error, kind = f"{scorer}_error{at}", f"{scorer}_error_kind{at}"
    return (error, kind) if {error, kind} <= known.keys() else None


def joined_query(connection: duckdb.DuckDBPyConnection, columns: Iterable[str] | None = None) -> str:
    """SQL for the joined view, or for some columns of it; tables that those columns do not need are not joined.

    Without `columns`, those of versions that do not count are left out.
    """
    known = joined_columns(connection)
    wanted = list(listed_columns(known)) if columns is None else list(dict.fromkeys(columns))
    captioners = generated(_versions(connection)) if any(known[c][:2] in COMPUTED for c in wanted) else []
    sql = {(view, name): compute(captioners) for (view, name), compute in COMPUTED.items()}
    selected = ", ".join(f"{sql.get(known[c][:2]) or _value(*known[c][:2])} AS {quoted(c)}" for c in wanted)
    views = dict.fromkeys([*(known[c][0] for c in wanted), *(view for _, view, _ in captioners)])
    joins = "".join(
        f" LEFT JOIN {quoted(view)} USING ({'source_id' if view == 'sources' else 'clip_id'})"
        for view in views
        if view != "clips"
    )
    return f"SELECT {selected} FROM clips{joins}"


def score_of(view: str) -> str:
    """The scorer or captioner of a view `scores_NAME`, `scores_NAME@N` or `captions_NAME@N`."""
    return view.partition("_")[2].partition("@")[0]


def view_of(root: str, version: int) -> str:
    """The view of a version of `scores/NAME` or `captions/NAME`."""
    return f"{root.replace('/', '_', 1)}@{version}"


def _value(view: str, name: str) -> str:
    """SQL for a column. Of a clip that a version does not cover, its error says so."""
    value = f"{quoted(view)}.{quoted(name)}"
    scorer, (_, at, version) = score_of(view), view.partition("@")
    missing = {f"{scorer}_error": f"not scored by version {version}", f"{scorer}_error_kind": NOT_SCORED}
    if not at or name not in missing:
        return value
    return f"CASE WHEN {quoted(view)}.clip_id IS NULL THEN {literal(missing[name])} ELSE {value} END"


def _versions(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int, str, bool, str]]:
    if VERSIONS not in view_names(connection):
        return []
    query = f"SELECT scorer, version, view, counted, created FROM {VERSIONS} ORDER BY 1, 2"
    return connection.execute(query).fetchall()


def view_names(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()}


def _described(connection: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind, *_ in connection.execute(f"DESCRIBE {quoted(view)}").fetchall()]
