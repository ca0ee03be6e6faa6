"""Which clips a version of a score lacks."""

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill import storage
from curation.dataset.joined import joined_query, score_of, view_of
from curation.dataset.sql import list_of, literal, quoted, without_wildcards
from curation.dataset.tables import Dataset
from curation.scores.columns import SCORES

RowNumbers = NDArray[np.int32]


def clips_without(
    dataset: Dataset,
    root: str,
    version: int,
    selected: pa.Table | None = None,
    *,
    or_failed: bool = False,
    sees_captions: bool = False,
) -> tuple[int, dict[str, RowNumbers]]:
    """The number of clips, and part -> increasing row numbers in clips/PART.parquet of those without a row in the
    table of a version of `root`, such as scores/NAME.

    `selected`: a table with the column clip_id, to which the question is limited. `or_failed`: or with a row that
    failed. `sees_captions`: or with one made when the clip had other captions.
    """
    files = {dataset.file("clips", f"{part}.parquet"): part for part in dataset.parts("clips")}
    if not files:
        return 0, {}
    parts = {storage.address(dataset.fs, path): part for path, part in files.items()}
    listed = list_of(map(without_wildcards, parts))
    rows = f"(SELECT * FROM read_parquet({listed}, filename = true, file_row_number = true))"
    view = view_of(root, version)
    with dataset.connect() as connection:
        if selected is not None:
            connection.register("selected", selected)
            rows += " SEMI JOIN selected USING (clip_id)"
        (clips,) = connection.execute(f"SELECT count(*) FROM {rows}").fetchone() or (0,)
        if view in dataset.views():
            scored = f"SELECT clip_id FROM {quoted(view)}"
            if sees_captions:
                scored += f" JOIN ({_captions_there(connection, score_of(view))}) USING (clip_id, {_seen(view)})"
            if or_failed:
                scored += f" WHERE {quoted(f'{score_of(view)}_error_kind')} IS NULL"
            rows += f" ANTI JOIN ({scored}) USING (clip_id)"
        found = connection.execute(
            "SELECT filename, list(file_row_number::INTEGER ORDER BY file_row_number) "
            f"FROM {rows} GROUP BY filename ORDER BY filename"
        ).fetchall()
    return clips, {parts[filename]: np.array(numbers, np.int32) for filename, numbers in found}


def clips_are_outdated(dataset: Dataset) -> bool:
    """Whether clips have other captions than when `similarity` in the clips table was computed."""
    seen = "len(list_filter(clips.similarity_captions, lambda cosine: cosine IS NOT NULL))"
    with dataset.connect() as connection:
        there = _captions_there(connection, "similarity")
        (outdated,) = connection.execute(
            f"SELECT count(*) FROM clips JOIN ({there}) USING (clip_id) "
            f"WHERE clips.embedding_error_kind IS NULL AND coalesce({seen}, 0) <> similarity_captions_seen"
        ).fetchone() or (0,)
    return bool(outdated)


def _captions_there(connection: duckdb.DuckDBPyConnection, scorer: str) -> str:
    """SQL: clip_id, and how many captions with text a scorer or captioner sees now."""
    others = f"list_filter(captions, lambda c: c.text IS NOT NULL AND c.source <> {literal(scorer)})"
    rows = joined_query(connection, ["clip_id", "captions"])
    return f"SELECT clip_id, len({others})::INTEGER AS {_seen(f'{SCORES}_{scorer}')} FROM ({rows})"


def _seen(view: str) -> str:
    return quoted(f"{score_of(view)}_captions_seen")
