"""Rows of given sources, in any table: keyed by source_id, or by clip_id, which begins with the id of its source."""

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.tables import Dataset

_FILES_AT_ONCE = 8
_KEYS = ("source_id", "clip_id")


def without_sources(table: pa.Table, source_ids: pa.Array) -> pa.Table:
    """The rows of a table that belong to none of these sources; all rows of a table without ids."""
    hit = _of_sources(table, source_ids)
    return table if hit is None else table.filter(pc.invert(hit))


def count_rows(dataset: Dataset, source_ids: Collection[str]) -> dict[str, int]:
    """Table -> rows of these sources, for tables that have any; parts that are not committed count too."""
    ids = pa.array(source_ids, pa.string())
    return _of_tables(dataset, dataset.versioned_tables(), lambda path: rows_in_file(dataset.fs, path, ids))


def remove_rows(
    dataset: Dataset, source_ids: Collection[str], check: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Remove the rows of these sources from all tables, whoever wrote them; returns table -> rows, see `count_rows`.

    What is derived from tables, such as `search/embeddings.arrow`, is deleted: it is made again when needed. Each file
    is replaced atomically; after a kill, call it again. `check` raises if another run owns the dataset.
    """
    ids = pa.array(source_ids, pa.string())
    for path in _derived(dataset):
        check()
        storage.remove(dataset.fs, path)
    removed = _of_tables(dataset, dataset.tables(), lambda path: remove_rows_from_file(dataset.fs, path, ids, check))
    for part in dataset.parts("clips"):
        left = (dataset.read_part(table, part, ["source_id"]).num_rows for table in ("sources", "clips"))
        if not any(left):  # nothing to commit
            check()
            storage.remove(dataset.fs, dataset.file("sources", f"{part}.parquet"))
    check()
    dataset.remove_unfinished()
    return removed


def rows_in_file(fs: fsspec.AbstractFileSystem, path: str, source_ids: pa.Array) -> int:
    """Rows of these sources in a Parquet file. Raises UserError if it is damaged."""
    with storage.explained("read", fs, path), fs.open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            keys = [name for name in _KEYS if name in parquet.schema_arrow.names]
            hit = _of_sources(parquet.read(keys), source_ids) if keys else None
        except pa.ArrowException as error:
            raise UserError(f"{storage.shown(fs, path)} is damaged: {error}") from error
    return 0 if hit is None else pc.sum(hit).as_py() or 0


def remove_rows_from_file(
    fs: fsspec.AbstractFileSystem, path: str, source_ids: pa.Array, check: Callable[[], None] = lambda: None
) -> int:
    """Replace a Parquet file by one without the rows of these sources; returns their number. Other rows, their order,
    schema and metadata stay. A file that has none is not touched."""
    count = rows_in_file(fs, path, source_ids)
    if count:
        with fs.open(path, "rb") as file:
            metadata = pq.read_metadata(file)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        remaining = without_sources(storage.read_parquet(fs, path), source_ids)
        check()
        with storage.atomic_write(fs, path) as written:
            pq.write_table(
                remaining,
                written,
                compression=groups[0].column(0).compression if groups else "zstd",
                row_group_size=max((group.num_rows for group in groups), default=None),
            )
    return count


def _of_sources(table: pa.Table, source_ids: pa.Array) -> pa.ChunkedArray | None:
    """Which rows belong to the sources; None for a table without ids."""
    owners = [table[name] for name in _KEYS if name in table.column_names and _is_text(table.schema.field(name).type)]
    if "clip_id" in table.column_names and owners:
        owners[-1] = pc.list_element(pc.split_pattern(owners[-1], "-", max_splits=1), 0)
    hits = [pc.is_in(owner.cast(pa.string()), source_ids) for owner in owners]
    return None if not hits else hits[0] if len(hits) == 1 else pc.or_(*hits)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _derived(dataset: Dataset) -> list[str]:
    """Arrow files beside the tables: no table is one."""
    folders = [dataset.path, *storage.list_folders(dataset.fs, dataset.path)]
    return [path for folder in folders for path in storage.list_files(dataset.fs, folder, ".arrow")]


def _of_tables(dataset: Dataset, tables: Iterable[str], count: Callable[[str], int]) -> dict[str, int]:
    """Table -> sum over its files, without those that are 0. `sources`, which commits the others, comes first."""
    counts = {}
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for table in sorted(tables, key=lambda name: (name != "sources", name)):
            counts[table] = sum(pool.map(count, storage.list_files(dataset.fs, dataset.file(table), ".parquet")))
    return {table: rows for table, rows in sorted(counts.items()) if rows}
