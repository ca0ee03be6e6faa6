"""The embeddings of a dataset as one matrix in a memory-mapped file: what search, clusters and `like` read.

    search/embeddings.arrow    Arrow IPC, uncompressed: clip_id, its part and row in clips/, embedding (D fp16 numbers)

The file is derived from the tables and made anew when they change. A dataset in an object store, or one that cannot be
written, is read into a temporary file. Sizes: N clips with an embedding, D = width of an embedding, B = block.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.description import fingerprint
from curation.dataset.joined import JoinedColumn, joined_columns
from curation.dataset.sql import batches, list_of, quoted, without_wildcards
from curation.dataset.unit_embeddings import unit_embeddings

if TYPE_CHECKING:
    from curation.dataset.tables import Dataset

BLOCK_ROWS = 16_384
"""Rows per block; the last one may have fewer."""
_FOLDER, _FILE = "search", "embeddings.arrow"
_INPUTS, _PARTS = b"clipmill.inputs", b"clipmill.parts"
_METHOD = 1
"""Incremented when the same tables would give another file."""


@dataclass(frozen=True, kw_only=True)
class ClipEmbeddings:
    """The embeddings of the clips that have one, L2-normalized, in the order of the file."""

    batches: Sequence[pa.RecordBatch]
    parts: Sequence[str]
    width: int

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    @cached_property
    def blocks_BD(self) -> list[NDArray[np.float16]]:
        """Views of the file, each (B, D)."""
        return [self._block(batch) for batch in self.batches]

    @cached_property
    def clip_ids(self) -> pa.ChunkedArray:
        """(N,)."""
        return pa.chunked_array([batch["clip_id"] for batch in self.batches], pa.string())

    def rows_of(self, clip_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """The increasing numbers of the rows of these clips; clips without an embedding have none."""
        return np.flatnonzero(pc.is_in(self.clip_ids, clip_ids).to_numpy()).astype(np.int64)

    def embedding(self, clip_id: str) -> NDArray[np.float32] | None:
        """(D,) of one clip; None if it has none."""
        for batch, block_BD in zip(self.batches, self.blocks_BD, strict=True):
            row = pc.index(batch["clip_id"], clip_id).as_py()
            if row >= 0:
                return block_BD[row].astype(np.float32)
        return None

    def take(self, rows_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, D)."""
        found_ND = np.empty((len(rows_N), self.width), np.float32)
        block_N, row_N = np.divmod(rows_N, BLOCK_ROWS)
        for block in np.unique(block_N):
            of_block = block_N == block
            found_ND[of_block] = self.blocks_BD[block][row_N[of_block]]
        return found_ND

    def places(self, rows_N: NDArray[np.int64]) -> list[tuple[str, int]]:
        """Part of clips/ and row in it."""
        block_N, row_N = np.divmod(rows_N, BLOCK_ROWS)
        return [
            (self.parts[self.batches[block]["part"][row].as_py()], self.batches[block]["row"][row].as_py())
            for block, row in zip(block_N.tolist(), row_N.tolist(), strict=True)
        ]

    def part_rows(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(N,) numbers of the parts in `parts`, and (N,) rows in them."""
        part_N, row_N = (np.concatenate([batch[name].to_numpy() for batch in self.batches]) for name in ("part", "row"))
        return part_N, row_N

    def _block(self, batch: pa.RecordBatch) -> NDArray[np.float16]:
        numbers: NDArray[np.float16] = batch["embedding"].flatten().to_numpy(zero_copy_only=True)
        return numbers.reshape(batch.num_rows, self.width)


@contextmanager
def open_embeddings(
    dataset: "Dataset", connection: duckdb.DuckDBPyConnection | None = None
) -> Iterator[ClipEmbeddings]:
    """The embeddings of all committed clips, for a `with` block. A connection that is open anyway saves opening one.

    Memory holds one block at a time. Raises UserError if the dataset has no embedding, or embeddings of two widths.
    """
    with nullcontext(connection) if connection else dataset.connect() as opened:
        inputs = _inputs(dataset, opened)
    path = Path(dataset.file(_FOLDER, _FILE))
    if not storage.is_local(dataset.fs):
        with _temporary(dataset, inputs) as temporary, _mapped(temporary) as embeddings:
            yield embeddings
        return
    if not _is_current(path, inputs, dataset.parts("clips")):
        try:
            with storage.atomic_write(dataset.fs, str(path)) as file:
                _write(dataset, inputs, file)
        except UserError:
            # A folder without write permission, or a disk without room for a copy; an error of the tables comes again.
            with _temporary(dataset, inputs) as temporary, _mapped(temporary) as embeddings:
                yield embeddings
            return
    with _mapped(path) as embeddings:
        yield embeddings


def check_embeddings(dataset: "Dataset") -> None:
    """Raise UserError if no clip has an embedding, without reading them."""
    with dataset.connect() as connection:
        view, name, _ = embedding_column(dataset, joined_columns(connection))
        query = f"SELECT 1 FROM {quoted(view)} WHERE {quoted(name)} IS NOT NULL LIMIT 1"
        if connection.execute(query).fetchone() is None:
            raise _no_embedding(dataset)


def _no_embedding(dataset: "Dataset") -> UserError:
    return UserError(
        f"no clip of {dataset.url} has an embedding to compare: it was curated without CLIP, or it is empty. Curate "
        "with CLIP into a new folder."
    )


def embedding_column(dataset: "Dataset", known: dict[str, JoinedColumn]) -> JoinedColumn:
    """Where the embeddings of a dataset are. Raises UserError if it has none."""
    if "embedding" not in known:
        raise UserError(
            f"{dataset.url} has no column 'embedding': it was written by a release without CLIP scores. Create a new "
            "dataset, or add embeddings: Parquet files with clip_id and embedding in its folder scores/clip/."
        )
    return known["embedding"]


def _inputs(dataset: "Dataset", connection: duckdb.DuckDBPyConnection) -> str:
    """Digest of the files that the embeddings are in, taken before they are read."""
    view, name, _ = embedding_column(dataset, joined_columns(connection))
    tables = sorted({"clips", dataset.views()[view]})
    files = {table: dataset.part_versions(table) for table in tables}
    return fingerprint({"method": _METHOD, "column": [view, name], "files": files})


def _is_current(path: Path, inputs: str, parts: Sequence[str]) -> bool:
    """Whether the file was made from these inputs. A missing or damaged one is made anew."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            if (reader.schema.metadata or {}).get(_INPUTS) != inputs.encode():
                return False
            _check(reader, parts)
            return True
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException):
        return False


def _check(reader: pa.RecordBatchFileReader, parts: Sequence[str]) -> None:
    """Raise ValueError, KeyError or ArrowException for anything that `_write` does not write: a dataset may be of
    others. Does not read the embeddings."""
    embedding = reader.schema.field("embedding").type
    columns = [("clip_id", pa.string()), ("part", pa.int32()), ("row", pa.int32()), ("embedding", embedding)]
    of_numbers = pa.types.is_fixed_size_list(embedding) and embedding.value_type == pa.float16()
    if list(zip(reader.schema.names, reader.schema.types, strict=True)) != columns or not of_numbers:
        raise ValueError("other columns")
    if json.loads(reader.schema.metadata[_PARTS]) != list(parts):
        raise ValueError("other parts")
    sizes = []
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("nulls")
        least, most = (pc.min_max(batch["part"])[name].as_py() for name in ("min", "max"))
        if least < 0 or most >= len(parts) or pc.min(batch["row"]).as_py() < 0:
            raise ValueError("places that do not exist")
        sizes.append(batch.num_rows)
    if not sizes or any(size != BLOCK_ROWS for size in sizes[:-1]) or not 0 < sizes[-1] <= BLOCK_ROWS:
        raise ValueError("other blocks")


@contextmanager
def _mapped(path: Path) -> Iterator[ClipEmbeddings]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        schema = reader.schema
        yield ClipEmbeddings(
            batches=[reader.get_batch(i) for i in range(reader.num_record_batches)],
            parts=json.loads(schema.metadata[_PARTS]),
            width=schema.field("embedding").type.list_size,
        )


@contextmanager
def _temporary(dataset: "Dataset", inputs: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clipmill-embeddings-") as folder:
        path = Path(folder, _FILE)
        with path.open("wb") as file:
            _write(dataset, inputs, file)
        yield path


def _write(dataset: "Dataset", inputs: str, file: BinaryIO) -> None:
    parts = dataset.parts("clips")
    number_of = {
        storage.address(dataset.fs, dataset.file("clips", f"{part}.parquet")): i for i, part in enumerate(parts)
    }
    waiting: list[pa.RecordBatch] = []
    writer: pa.RecordBatchFileWriter | None = None
    try:
        for batch in _usable(dataset, number_of):
            if writer is None:
                metadata = {_INPUTS: inputs.encode(), _PARTS: json.dumps(parts).encode()}
                writer = pa.ipc.new_file(file, batch.schema.with_metadata(metadata))
            waiting.append(batch)
            if sum(each.num_rows for each in waiting) >= BLOCK_ROWS:
                joined = pa.Table.from_batches(waiting).combine_chunks().to_batches()[0]
                whole = joined.num_rows // BLOCK_ROWS * BLOCK_ROWS
                for start in range(0, whole, BLOCK_ROWS):
                    writer.write_batch(joined.slice(start, BLOCK_ROWS).replace_schema_metadata(None))
                waiting = [joined.slice(whole)]
        if writer is None:
            raise _no_embedding(dataset)
        rest = pa.Table.from_batches(waiting).combine_chunks()
        for batch in rest.to_batches():
            writer.write_batch(batch)
    finally:
        if writer is not None:
            writer.close()


def _usable(dataset: "Dataset", number_of: dict[str, int]) -> Iterator[pa.RecordBatch]:
    """clip_id, part, row and embedding of the clips that have one; no batch is empty."""
    width = 0
    with dataset.connect() as connection:
        view, name, _ = embedding_column(dataset, joined_columns(connection))
        if not number_of:
            return
        rows = f"read_parquet({list_of(map(without_wildcards, number_of))}, filename = true, file_row_number = true)"
        joined = "" if view == "clips" else f" JOIN {quoted(view)} AS scored USING (clip_id)"
        of = "clips" if view == "clips" else "scored"
        query = (
            f"SELECT clips.clip_id::VARCHAR AS clip_id, clips.filename, clips.file_row_number::INTEGER AS row, "
            f"{of}.{quoted(name)}::FLOAT[] AS embedding FROM {rows} AS clips{joined} "
            f"WHERE {of}.{quoted(name)} IS NOT NULL"
        )
        for batch in batches(connection, query, BLOCK_ROWS):
            usable, embeddings_ND = unit_embeddings(batch, width)
            if not len(embeddings_ND):
                continue
            width = embeddings_ND.shape[1]
            kept = batch.filter(usable)
            parts = [number_of[file] for file in kept["filename"].to_pylist()]
            numbers = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_ND.ravel()), width)
            yield pa.record_batch(
                {
                    "clip_id": kept["clip_id"],
                    "part": pa.array(parts, pa.int32()),
                    "row": kept["row"],
                    "embedding": numbers,
                }
            )
