"""Summary of the whole dataset, computed from its tables and their schemas."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import duckdb
import pyarrow as pa

from curation.dataset.joined import joined_columns, listed_columns
from curation.dataset.joined_captions import is_bookkeeping
from curation.dataset.schemas import SCHEMAS
from curation.dataset.sql import literal, quoted
from curation.dataset.tables import Dataset
from curation.dataset.totals import source_totals
from curation.report.columns import fields_of, metadata_of
from curation.selection.saved import load_selection, selection_names

MOST_REJECTED = 5_000
"""Rejected sources that the page lists; the counts by reason cover all."""
_MOST_VALUES = 12
_MOST_CATEGORIES = 60
"""Columns that are counted; lists can bring hundreds."""
_FREE_TEXT, _QUANTITY = 0.5, 0.25
"""A column with more distinct values than this share of its rows is free text, or a quantity, and no category."""
_MOST_TEXTS, _MOST_NUMBERS = 1_000, 6
_TEXTS, _INTEGERS = ("VARCHAR", "BOOLEAN"), ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_NOT_COUNTED = {"clip_id", "source_id", "uri", "version", "status", "note", "error", "error_kind", "width", "height"}
_NOT_COUNTED |= {"duplicate_of"}


def overview(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Totals, and the distribution of every column that holds categories or yes/no, as JSON values."""
    fields = fields_of(dataset)
    totals = asdict(source_totals(connection))
    sources = fields.get("sources", {})
    meanings = {name: metadata_of(sources.get(name)).get("meaning", "") for name in totals["lost_s"] | totals["cpu_s"]}
    return totals | {
        "rejected": [list(pair) for pair in totals["rejected"].items()],
        "meanings": meanings,
        "sizes": _counts(connection, "sources", "width || ' × ' || height || ' px'", "status = 'ok'"),
        "frame_rates": _counts(connection, "sources", "printf('%g frames/s', round(fps, 2))", "status = 'ok'"),
        "categories": _categories(connection, fields),
        "errors": _errors(connection),
        "selections": [
            {"name": one.name, "clips": one.clips, "seconds": one.seconds}
            for one in (load_selection(dataset, name) for name in selection_names(dataset))
        ],
    }


def rejected_sources(connection: duckdb.DuckDBPyConnection) -> list[list[str]]:
    """uri, kind and sentence of rejected sources, and of usable ones with a note (kind "note")."""
    rows = connection.execute(
        "SELECT coalesce(uri, ''), coalesce(error_kind, ''), coalesce(error, '') FROM sources "
        "WHERE status = 'rejected' UNION ALL SELECT coalesce(uri, ''), 'note', note FROM sources "
        f"WHERE status = 'ok' AND note IS NOT NULL ORDER BY 2, 1 LIMIT {MOST_REJECTED}"
    ).fetchall()
    return [list(row) for row in rows]


def _categories(
    connection: duckdb.DuckDBPyConnection, fields: Mapping[str, Mapping[str, pa.Field]]
) -> list[dict[str, Any]]:
    """Columns with few values, with their counts: of usable sources, of clips, of added scores and captioners. They
    are texts, yes or no, and whole numbers with a unit, such as bits and degrees."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for view, condition in (("sources", "status = 'ok'"), ("clips", "true"), *_added(connection)):
        table = quoted(view)
        described = connection.execute(f"DESCRIBE {table}").fetchall()
        metadata_by_name = {name: metadata_of(field) for name, field in fields.get(view, {}).items()}
        kinds = {
            name: kind
            for name, kind, *_ in described
            if kind in _TEXTS or (kind in _INTEGERS and metadata_by_name.get(name, {}).get("unit"))
        }
        kinds = {name: kind for name, kind in kinds.items() if not _is_excluded(view, name, seen)}
        seen |= kinds.keys()
        names = _few_valued(connection, table, condition, kinds)[: _MOST_CATEGORIES - len(found)]
        for name in names:
            column, metadata = quoted(name), metadata_by_name.get(name, {})
            value = {
                "VARCHAR": column,
                "BOOLEAN": f"CASE WHEN {column} THEN 'yes' ELSE 'no' END",
            }.get(kinds[name], f"{column} || {literal(' ' + metadata.get('unit', ''))}")
            found.append(
                {
                    "name": name,
                    "table": view if view in SCHEMAS else "clips",
                    "boolean": kinds[name] == "BOOLEAN",
                    "meaning": metadata.get("meaning", ""),
                    "values": _counts(connection, table, value, f"{condition} AND {column} IS NOT NULL"),
                }
            )
    return found


def _added(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Views of added scores and captioners, in the versions that count."""
    views = dict.fromkeys(view for view, _, _ in listed_columns(joined_columns(connection)).values())
    return [(view, "true") for view in views if view not in SCHEMAS]


def _is_excluded(view: str, name: str, seen: set[str]) -> bool:
    if name in _NOT_COUNTED or name in seen or is_bookkeeping(view, name):
        return True
    return name.endswith(("_error", "_error_kind", "_clip_id", "weights_digest"))


def _few_valued(
    connection: duckdb.DuckDBPyConnection, table: str, condition: str, kinds: Mapping[str, str]
) -> list[str]:
    """The columns with few different values."""
    if not kinds:
        return []
    aggregates = ", ".join(f"count({quoted(name)}), approx_count_distinct({quoted(name)})" for name in kinds)
    [row] = connection.execute(f"SELECT {aggregates} FROM {table} WHERE {condition}").fetchall()
    few = []
    for (name, kind), rows, distinct in zip(kinds.items(), row[::2], row[1::2], strict=True):
        if kind in _TEXTS:
            is_category = distinct <= max(_MOST_VALUES, min(_MOST_TEXTS, _FREE_TEXT * rows))
        else:
            is_category = distinct <= min(_MOST_NUMBERS, max(2, _QUANTITY * rows))
        if rows and is_category:
            few.append(name)
    return few


def _counts(
    connection: duckdb.DuckDBPyConnection, table: str, expression: str, condition: str = "true"
) -> list[list[Any]]:
    """[value, rows], most common first; values beyond the first dozen are merged into one entry, null."""
    rows = connection.execute(
        f"SELECT ({expression})::VARCHAR AS value, count(*) AS number, sum(number) OVER () FROM {table} "
        f"WHERE {condition} AND ({expression}) IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_VALUES}"
    ).fetchall()
    rest = int(rows[0][2]) - sum(number for _, number, _ in rows) if rows else 0
    return [[value, number] for value, number, _ in rows] + ([[None, rest]] if rest else [])


def _errors(connection: duckdb.DuckDBPyConnection) -> dict[str, list[list[Any]]]:
    """Score or captioner -> its most common reasons for being null, with the number of clips."""
    reasons: dict[str, list[list[Any]]] = {}
    for view in ("clips", *(view for view, _ in _added(connection))):
        described = connection.execute(f"DESCRIBE {quoted(view)}").fetchall()
        names = [name for name, kind, *_ in described if name.endswith("_error") and kind == "VARCHAR"]
        # A later version replaces the reasons of the clips table.
        reasons |= {name.removesuffix("_error"): _counts(connection, quoted(view), quoted(name)) for name in names}
    return {name: counts for name, counts in reasons.items() if counts}
