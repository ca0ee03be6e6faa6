"""Rows of the joined view for a few clips."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from clipmill.errors import UserError
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.sql import literal, quoted

if TYPE_CHECKING:
    from curation.dataset.tables import Dataset


def rows_of_clips(
    dataset: "Dataset", connection: duckdb.DuckDBPyConnection, clip_ids: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """clip_id -> its row; a column that the dataset lacks is None. Raises UserError if it lacks a clip."""
    if not clip_ids:
        return {}
    known = [name for name in joined_columns(connection) if name in columns]
    wanted = ", ".join(map(literal, clip_ids))
    query = f"SELECT {', '.join(map(quoted, known))} FROM ({joined_query(connection, ['clip_id', *known])}) "
    rows = connection.execute(f"{query} WHERE clip_id IN ({wanted})").fetchall()
    found = (dict.fromkeys(columns) | dict(zip(known, row, strict=True)) for row in rows)
    row_of = {str(row["clip_id"]): row for row in found}
    if missing := [clip_id for clip_id in clip_ids if clip_id not in row_of]:
        raise UserError(
            f"{dataset.url} has no clip {missing[0]!r}: its search/embeddings.arrow is of other clips. Delete that "
            "file; it is made anew"
        )
    return row_of
