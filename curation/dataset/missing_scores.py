"""Which clips a version of a score lacks."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill import storage
from curation.dataset.joined import SCORES
from curation.dataset.sql import list_of, quoted, without_wildcards
from curation.dataset.tables import Dataset

RowNumbers = NDArray[np.int32]


def clips_without(
    dataset: Dataset, scorer: str, version: int, selected: pa.Table | None = None, *, or_failed: bool = False
) -> tuple[int, dict[str, RowNumbers]]:
    """The number of clips, and part -> increasing row numbers in clips/PART.parquet of those without a row in the
    version's table.

    `selected`: a table with the column clip_id, to which the question is limited. `or_failed`: or with a row that
    failed.
    """
    files = {dataset.file("clips", f"{part}.parquet"): part for part in dataset.parts("clips")}
    if not files:
        return 0, {}
    parts = {storage.address(dataset.fs, path): part for path, part in files.items()}
    listed = list_of(map(without_wildcards, parts))
    rows = f"(SELECT * FROM read_parquet({listed}, filename = true, file_row_number = true))"
    view = f"{SCORES}_{scorer}@{version}"
    with dataset.connect() as connection:
        if selected is not None:
            connection.register("selected", selected)
            rows += " SEMI JOIN selected USING (clip_id)"
        (clips,) = connection.execute(f"SELECT count(*) FROM {rows}").fetchone() or (0,)
        if view in dataset.views():
            scored = f"WHERE {quoted(f'{scorer}_error_kind')} IS NULL" if or_failed else ""
            rows += f" ANTI JOIN (SELECT clip_id FROM {quoted(view)} {scored}) USING (clip_id)"
        found = connection.execute(
            "SELECT filename, list(file_row_number::INTEGER ORDER BY file_row_number) "
            f"FROM {rows} GROUP BY filename ORDER BY filename"
        ).fetchall()
    return clips, {parts[filename]: np.array(numbers, np.int32) for filename, numbers in found}
