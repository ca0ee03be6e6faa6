"""What the page knows of the sources of its clips: their lists, such as transitions, and signals per frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.dataset.joined import joined_columns
from curation.dataset.sql import quoted
from curation.report.columns import ReportColumn
from curation.report.payload import Payload
from curation.report.rows import json_of, table_of

_SIGNALS = ("frame_changes", "frame_brightness")
_MOST_FRAMES = 4_000_000
"""Numbers per frame that the page holds; sources beyond that have none."""
_SIGNAL_ROWS = 64


def sources_of(
    connection: duckdb.DuckDBPyConnection, payload: Payload, columns: Sequence[ReportColumn], of_clips: Sequence[str]
) -> dict[str, Any]:
    """What the page knows of sources with clips: which clip is of which, lists such as the transitions, signals."""
    ids = list(dict.fromkeys(of_clips))
    place = {source_id: i for i, source_id in enumerate(ids)}
    connection.register("shown_sources", pa.table({"source_id": ids, "place": np.arange(len(ids))}))
    listed = "".join(f", rows.{quoted(column.name)}" for column in columns)
    rows = table_of(
        connection,
        f"SELECT rows.source_id::VARCHAR{listed} FROM sources AS rows JOIN shown_sources USING (source_id) "
        "ORDER BY shown_sources.place",
    )
    values: dict[str, list[Any]] = {column.name: [None] * len(ids) for column in columns}
    for row, source_id in enumerate(rows[0].to_pylist()):
        for column in columns:
            values[column.name][place[source_id]] = json_of(rows[column.name][row].as_py())
    return {
        "of_clips": payload.numbers(np.array([place[source_id] for source_id in of_clips], np.int32)),
        "values": values,
        "signals": _signals(connection, payload, place),
    }


def _signals(connection: duckdb.DuckDBPyConnection, payload: Payload, place: Mapping[str, int]) -> dict[str, list[Any]]:
    """Per source, numbers per frame, as long as they are not too many."""
    present = {name for name in _SIGNALS if name in joined_columns(connection)}
    found: dict[str, list[Any]] = {name: [None] * len(place) for name in sorted(present)}
    left = _MOST_FRAMES
    for name, signals in found.items():
        query = f"SELECT source_id::VARCHAR AS source_id, {quoted(name)} AS signal FROM sources JOIN shown_sources "
        relation = connection.sql(query + "USING (source_id) ORDER BY shown_sources.place")
        assert relation is not None
        for batch in relation.to_arrow_reader(_SIGNAL_ROWS):
            for i, source_id in enumerate(batch["source_id"].to_pylist()):
                signal = batch["signal"][i]
                if signal.is_valid and len(signal) <= left:
                    numbers = pc.fill_null(signal.values.cast(pa.int16(), safe=False), 0).to_numpy()
                    signals[place[source_id]] = payload.numbers(numbers)
                    left -= len(signal)
    return found
