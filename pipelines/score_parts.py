"""Collects scored pieces in the driver, and writes each part of a score's table when it is complete."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from clipmill import storage
from clipmill.columns import with_values
from curation.dataset.score_versions import stamped
from curation.dataset.tables import Dataset
from pipelines.fence import Fence
from pipelines.score_stages import Piece, ScoredPiece

_WRITES_AT_ONCE = 8
_FLUSH_S = 60.0
"""Rows of incomplete parts are written this often: what a kill may cost."""


class PartWriter:
    """A context manager. Rows of a part that is there already are kept, but for clips that are scored again; in the
    columns `summed` those count on."""

    def __init__(
        self, dataset: Dataset, table_name: str, fence: Fence, pieces: Sequence[Piece], summed: Sequence[str] = ()
    ) -> None:
        self._dataset, self._table_name, self._fence, self._summed = dataset, table_name, fence, summed
        self._missing: dict[str, int] = {}
        for piece in pieces:
            self._missing[piece.part] = self._missing.get(piece.part, 0) + len(piece.rows)
        self._waiting: dict[str, list[pa.Table]] = {}
        self._writes: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(_WRITES_AT_ONCE)
        self._flushed_s = time.monotonic()
        self._failed = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, scored: ScoredPiece, *, version: int, weights_digest: str | None) -> None:
        """Take a piece; its part is written once all its pieces are there. Raises the error of an earlier write."""
        table = stamped(scored.table, version, weights_digest)
        (kind,) = (name for name in table.column_names if name.endswith("_error_kind"))
        self._failed += table.num_rows - table[kind].null_count
        self._waiting.setdefault(scored.part, []).append(table)
        self._missing[scored.part] -= table.num_rows
        if not self._missing[scored.part]:
            self._write(scored.part)
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._flushed_s = time.monotonic()
            for part in list(self._waiting):
                self._write(part)

    def finish(self) -> int:
        """Write what is left and wait; returns the number of rows without a score."""
        for part in list(self._waiting):
            self._write(part)
        for write in self._writes.values():
            write.result()
        return self._failed

    def _write(self, part: str) -> None:
        before = self._writes.get(part)
        if before is not None:
            before.result()
        for name in [name for name, write in self._writes.items() if write.done()]:
            self._writes.pop(name).result()
        self._writes[part] = self._pool.submit(self._commit, part, self._waiting.pop(part))

    def _commit(self, part: str, tables: list[pa.Table]) -> None:
        new = pa.concat_tables(tables)
        path = self._dataset.file(self._table_name, f"{part}.parquet")
        if storage.exists(self._dataset.fs, path):
            old = self._dataset.read_part(self._table_name, part)
            kept = old.filter(pc.invert(pc.is_in(old["clip_id"], new["clip_id"].combine_chunks())))
            new = pa.concat_tables([kept, _counting_on(new, old, self._summed)])
        self._fence.check()
        self._dataset.write_part(self._table_name, part, new.sort_by("clip_id"))


def _counting_on(new: pa.Table, old: pa.Table, summed: Sequence[str]) -> pa.Table:
    """The new rows, with the values of older rows of the same clips added in some columns."""
    before = {row["clip_id"]: row for row in old.select(["clip_id", *summed]).to_pylist()}
    earlier = [before.get(clip_id) or {} for clip_id in new["clip_id"].to_pylist()]
    for name in summed:
        pairs = zip(new[name].to_pylist(), (row.get(name) for row in earlier), strict=True)
        values = [None if (now, then) == (None, None) else (now or 0) + (then or 0) for now, then in pairs]
        new = with_values(new, name, values)
    return new
