"""The joined view: a row per clip with the columns of clips, sources and added scores."""

from collections.abc import Iterable

import duckdb

from curation.dataset.sql import quoted

SCORES = "scores"
"""The folder of added scores; their views are called `scores_NAME`."""


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


def is_number(kind: str) -> bool:
    """Whether a DuckDB type, as `joined_columns` gives it, is numeric."""
    return kind.startswith(_NUMBERS) and not kind.endswith("]")


def joined_columns(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[str, str, str]]:
    """Column of the joined view -> (view it comes from, its name there, its DuckDB type), in order.

    A name that is taken (clips come first, then sources, then scores by name) is left out for sources and gets
    its scorer's name in front for scores.
    """
    views = [row[0] for row in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()]
    score_views = sorted(view for view in views if view.startswith(f"{SCORES}_"))
    columns: dict[str, tuple[str, str, str]] = {}
    taken: set[str] = set()  # SQL names do not tell upper from lower case
    for view in ("clips", "sources", *score_views):
        for name, kind, *_ in connection.execute(f"DESCRIBE {quoted(view)}").fetchall():
            if name.lower() not in taken:
                columns[name] = (view, name, kind)
            elif view in score_views and name.lower() != "clip_id":
                columns[f"{view.removeprefix(f'{SCORES}_')}_{name}"] = (view, name, kind)
        taken |= {column.lower() for column in columns}
    return columns


def joined_query(connection: duckdb.DuckDBPyConnection, columns: Iterable[str] | None = None) -> str:
    """SQL for the joined view, or for some columns of it; tables that those columns do not need are not joined."""
    known = joined_columns(connection)
    wanted = list(known) if columns is None else list(dict.fromkeys(columns))
    selected = ", ".join(f"{quoted(known[c][0])}.{quoted(known[c][1])} AS {quoted(c)}" for c in wanted)
    joins = "".join(
        f" LEFT JOIN {quoted(view)} USING ({'source_id' if view == 'sources' else 'clip_id'})"
        for view in dict.fromkeys(known[c][0] for c in wanted)
        if view != "clips"
    )
    return f"SELECT {selected} FROM clips{joins}"
