"""Read rows of a Parquet file by number, and only the row groups that contain them."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def rows_of(parquet: pq.ParquetFile, rows: NDArray[np.integer], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows with these increasing numbers; numbers beyond the end are ignored. Raises pa.ArrowException."""
    metadata = parquet.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    groups: list[int] = []
    places: list[NDArray[np.integer]] = []
    read = 0
    for group, (start, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
        inside = rows[(rows >= start) & (rows < end)]
        if len(inside):
            groups.append(group)
            places.append(inside - start + read)
            read += end - start
    table = parquet.read_row_groups(groups, None if columns is None else list(columns))
    return table.take(pa.array(np.concatenate(places))) if places else table
