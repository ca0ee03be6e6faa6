"""What the page says of the dataset as a whole, from its tables alone."""

from typing import Any

import duckdb

from curation.dataset.joined import joined_columns
from curation.dataset.sql import quoted

MOST_REJECTED = 5_000
"""Rejected sources that the page lists; the counts by reason are of all."""
_SUMS = ("duration_s", "clip_s", "scan_cpu_s", "score_cpu_s", "size_bytes")
_MOST_VALUES = 12


def overview(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Counts and sums as JSON values; seconds, bytes and CPU seconds as the columns have them."""
    columns = {row[0] for row in connection.execute("DESCRIBE sources").fetchall()}
    losses = sorted(name for name in columns if name.startswith("lost_") and name.endswith("_s"))
    sums = [*(name for name in _SUMS if name in columns), *losses]
    listed = "".join(f", coalesce(sum({quoted(name)}), 0)" for name in sums)
    [found] = connection.execute(f"SELECT count(*), count_if(status = 'ok'){listed} FROM sources").fetchall()
    totals = dict(zip(sums, map(float, found[2:]), strict=True))
    return {
        "sources": found[0],
        "sources_ok": found[1],
        "totals": {name: value for name, value in totals.items() if name not in losses},
        "lost_s": {name.removeprefix("lost_").removesuffix("_s"): totals[name] for name in losses},
        "rejected": _counts(connection, "error_kind", "status = 'rejected'"),
        "codecs": _counts(connection, "codec"),
        "containers": _counts(connection, "container"),
        "sizes": _counts(connection, "width || ' × ' || height || ' px'", "status = 'ok'"),
        "frame_rates": _counts(connection, "round(fps, 2) || ' frames/s'", "status = 'ok' AND fps IS NOT NULL"),
        "extractions": _counts(connection, "extraction", table="clips"),
        "errors": _errors(connection),
    }


def rejected_sources(connection: duckdb.DuckDBPyConnection) -> list[list[str]]:
    """uri, kind and sentence of rejected sources, and of usable ones with a note (kind "note")."""
    rows = connection.execute(
        "SELECT coalesce(uri, ''), coalesce(error_kind, ''), coalesce(error, '') FROM sources "
        "WHERE status = 'rejected' UNION ALL SELECT coalesce(uri, ''), 'note', note FROM sources "
        f"WHERE status = 'ok' AND note IS NOT NULL ORDER BY 2, 1 LIMIT {MOST_REJECTED}"
    ).fetchall()
    return [list(row) for row in rows]


def _counts(
    connection: duckdb.DuckDBPyConnection, expression: str, condition: str = "true", table: str = "sources"
) -> list[list[Any]]:
    """[value, rows] from the commonest on; what is beyond the first dozen is one entry, null."""
    rows = connection.execute(
        f"SELECT ({expression})::VARCHAR AS value, count(*) FROM {table} "
        f"WHERE {condition} AND ({expression}) IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    rest = sum(count for _, count in rows[_MOST_VALUES:])
    return [list(row) for row in rows[:_MOST_VALUES]] + ([[None, rest]] if rest else [])


def _errors(connection: duckdb.DuckDBPyConnection) -> dict[str, list[list[Any]]]:
    """Score -> its commonest reasons for being null, with the number of clips."""
    known = joined_columns(connection)
    errors = [
        name
        for name, (view, _, kind) in known.items()
        if view == "clips" and name.endswith("_error") and kind == "VARCHAR"
    ]
    return {
        name.removesuffix("_error"): reasons
        for name in errors
        if (reasons := _counts(connection, quoted(name), table="clips"))
    }
