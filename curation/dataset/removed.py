"""Sources that were removed from a dataset for good: `removed/NNNNNN.parquet`, a row each.

`clipmill curate` does not scan them again, neither the same file nor another one at the same address.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.columns import column
from curation.dataset.tables import Dataset

_FOLDER = "removed"
REMOVED = pa.schema(
    [
        column(
            "source_id", pa.string(), "source that was removed; null if its address was given and not in the dataset"
        ),
        column("uri", pa.string(), "its address"),
        column("reason", pa.string(), "why, as given"),
        column("removed", pa.string(), "time of the removal in UTC"),
        column("version", pa.int32(), "version of the dataset that lacks it first"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RemovedSources:
    """What must not be scanned again."""

    source_ids: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()

    def covers(self, source_id: str, uri: str) -> bool:
        """Whether a source was removed."""
        return source_id in self.source_ids or uri in self.uris


def removed_sources(dataset: Dataset) -> RemovedSources:
    """All sources that were removed. Raises UserError if a record is damaged."""
    tables = [_read(dataset, path) for path in _files(dataset)]
    return RemovedSources(
        source_ids=frozenset(i for table in tables for i in table["source_id"].to_pylist() if i is not None),
        uris=frozenset(uri for table in tables for uri in table["uri"].to_pylist()),
    )


def record_removed(dataset: Dataset, table: pa.Table, version: int) -> None:
    """Write the sources, see `REMOVED`, that a version removes; an earlier record of it is replaced."""
    with storage.atomic_write(dataset.fs, dataset.file(_FOLDER, f"{version:06d}.parquet")) as file:
        pq.write_table(table.cast(REMOVED), file, compression="zstd")


def forget_removed(dataset: Dataset, uris: Collection[str], source_ids: Iterable[str]) -> None:
    """Let sources with these addresses or ids be scanned again. Call it only when this run owns the dataset."""
    asked, ids = pa.array(uris, pa.string()), pa.array(source_ids, pa.string())
    for path in _files(dataset):
        table = _read(dataset, path)
        hit = pc.or_(pc.is_in(table["uri"], asked), pc.is_in(table["source_id"], ids))
        remaining = table.filter(pc.invert(hit))
        if not remaining.num_rows:
            storage.remove(dataset.fs, path)
        elif remaining.num_rows < table.num_rows:
            with storage.atomic_write(dataset.fs, path) as file:
                pq.write_table(remaining, file, compression="zstd")


def _files(dataset: Dataset) -> list[str]:
    return storage.list_files(dataset.fs, dataset.file(_FOLDER), ".parquet")


def _read(dataset: Dataset, path: str) -> pa.Table:
    return storage.read_parquet(dataset.fs, path, REMOVED.names)
