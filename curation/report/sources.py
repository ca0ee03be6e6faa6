"""Sources as the page shows them: their columns, such as the transitions, and their signals per frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.dataset.joined import joined_columns
from curation.dataset.schemas import SIGNAL_COLUMNS
from curation.dataset.sql import batches, quoted
from curation.report.columns import ReportColumn
from curation.report.payload import Payload
from curation.report.rows import json_values, table_of

_MOST_FRAMES = 4_000_000
"""Signal values in the page; once they are used up, further sources have no signals."""
_MOST_WITHOUT_CLIPS = 1_000
"""Usable sources without a clip that the page lists."""
_SIGNAL_ROWS = 64


def sources_of(
    connection: duckdb.DuckDBPyConnection, payload: Payload, columns: Sequence[ReportColumn], of_clips: Sequence[str]
) -> dict[str, Any]:
    """The sources of these clips and usable sources without clips: uri, `columns` and signals of each, and the place of
    each clip's source; and the first and last second of each source, NaN if unknown."""
    ids = list(dict.fromkeys(of_clips))
    place = {source_id: i for i, source_id in enumerate(ids)}
    place |= {source_id: len(place) + i for i, source_id in enumerate(_without_clips(connection))}
    connection.register("shown_sources", pa.table({"source_id": list(place), "place": np.arange(len(place))}))
    listed = "".join(f", rows.{quoted(column.name)}" for column in columns)
    rows = table_of(
        connection,
        "SELECT coalesce(rows.uri, '')::VARCHAR AS source_uri, rows.note::VARCHAR AS source_note, "
        f"rows.start_s::DOUBLE AS first_s, (rows.start_s + rows.duration_s)::DOUBLE AS last_s{listed} "
        "FROM shown_sources LEFT JOIN sources AS rows USING (source_id) ORDER BY shown_sources.place",
    )
    return {
        "of_clips": payload.numbers(np.array([place[source_id] for source_id in of_clips], np.int32)),
        "uris": rows["source_uri"].to_pylist(),
        "notes": rows["source_note"].to_pylist(),
        "starts_s": payload.numbers(_or_nan(rows["first_s"])),
        "ends_s": payload.numbers(_or_nan(rows["last_s"])),
        "columns": [column.described() | payload.values(json_values(rows[column.name])) for column in columns],
        "signals": _signals(connection, payload, place),
    }


def _or_nan(values: pa.ChunkedArray) -> NDArray[np.float64]:
    return pc.fill_null(values, float("nan")).to_numpy()


def _without_clips(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        "SELECT source_id::VARCHAR FROM sources WHERE status = 'ok' AND source_id NOT IN (SELECT source_id FROM clips) "
        f"ORDER BY uri, source_id LIMIT {_MOST_WITHOUT_CLIPS}"
    ).fetchall()
    return [source_id for (source_id,) in rows]


def _signals(connection: duckdb.DuckDBPyConnection, payload: Payload, place: Mapping[str, int]) -> dict[str, list[Any]]:
    """Signal -> its values per frame for each source. A source has all of its signals or none."""
    known = joined_columns(connection)
    names = [name for name in SIGNAL_COLUMNS if name in known]
    signals_of: dict[str, list[Any]] = {name: [None] * len(place) for name in names}
    if not names:
        return signals_of
    query = (
        f"SELECT source_id::VARCHAR AS source_id, {', '.join(map(quoted, names))} FROM sources "
        "JOIN shown_sources USING (source_id) ORDER BY shown_sources.place"
    )
    left = _MOST_FRAMES
    for batch in batches(connection, query, _SIGNAL_ROWS):
        for i, source_id in enumerate(batch["source_id"].to_pylist()):
            signals = {name: batch[name][i] for name in names if batch[name][i].is_valid}
            numbers = sum(map(len, signals.values()))
            if numbers <= left:
                left -= numbers
                for name, signal in signals.items():
                    values = pc.fill_null(signal.values.cast(pa.int16(), safe=False), 0).to_numpy()
                    signals_of[name][place[source_id]] = payload.numbers(values)
    return signals_of
