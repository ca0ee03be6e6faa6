"""Clips in order of preference, the best first, with what is compared of them in a file.

Sizes: N clips, B of them in a block, D = width of an embedding, P pairs, S cells searched per clip.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.dataset.unit_embeddings import unit_embeddings
from curation.dedup.config import DuplicatesConfig

CLIP_COLUMNS = ("clip_id", "source_id", "width", "height", "aesthetic", "duration_s", "embedding")
"""Columns read of a clip. `embedding` is a list of D numbers, or null."""

_EXACT_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class ClipBlock:
    """Some clips, as an index takes them. Can be sent to any node."""

    number_B: NDArray[np.int64]
    """Their places in the order of preference."""
    source_B: NDArray[np.int64]
    duration_s_B: NDArray[np.float64]
    embedding_BD: NDArray[np.float16]
    cells_BS: NDArray[np.int64] | None = None
    """In the approximate search, the cells to search, the nearest first; a kept clip lies in the first."""

    def __len__(self) -> int:
        return len(self.number_B)

    def take(self, rows: NDArray[Any]) -> "ClipBlock":
        """Some of them: row numbers, or a mask."""
        return ClipBlock(
            number_B=self.number_B[rows],
            source_B=self.source_B[rows],
            duration_s_B=self.duration_s_B[rows],
            embedding_BD=self.embedding_BD[rows],
            cells_BS=None if self.cells_BS is None else self.cells_BS[rows],
        )


@dataclass(frozen=True, kw_only=True)
class RankedClips:
    """The clips with an embedding. Their numbers, 0 to N - 1, go from best to worst."""

    clip_id: pa.Array
    source_N: NDArray[np.int64]
    duration_s_N: NDArray[np.float64]
    row_N: NDArray[np.int64]
    """Its row in `embeddings_ND`."""
    twin_N: NDArray[np.int64]
    """The best clip with an equal embedding and equal constraints; usually itself."""
    digest_N: NDArray[np.uint64]
    """Of everything that decides about a clip: its embedding, its place in the order, its constraints."""
    embeddings_ND: NDArray[np.float16]
    """L2-normalized; stored in a file."""
    without_embedding: int

    @property
    def width(self) -> int:
        """D."""
        return self.embeddings_ND.shape[1]

    def block(self, number_B: NDArray[np.int64]) -> ClipBlock:
        """These clips."""
        return ClipBlock(
            number_B=number_B,
            source_B=self.source_N[number_B],
            duration_s_B=self.duration_s_N[number_B],
            embedding_BD=self.embeddings_ND[self.row_N[number_B]],
        )

    def cosines(self, first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of pairs of clips; see `exact_cosines`."""
        found_P = np.empty(len(first_P))
        for start in range(0, len(first_P), _EXACT_AT_ONCE):
            part = slice(start, start + _EXACT_AT_ONCE)
            a, b = (self.embeddings_ND[self.row_N[clips[part]]] for clips in (first_P, second_P))
            found_P[part] = exact_cosines(a, b)
        return found_P


def exact_cosines(first_PD: NDArray[Any], second_PD: NDArray[Any]) -> NDArray[np.float64]:
    """Deterministic per pair: sums of products of fp16 numbers below 1 are exact in fp64."""
    found_P = np.empty(len(first_PD))
    for start in range(0, len(first_PD), _EXACT_AT_ONCE):
        part = slice(start, start + _EXACT_AT_ONCE)
        a, b = first_PD[part].astype(np.float64), second_PD[part].astype(np.float64)
        found_P[part] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found_P


def may_join(
    first_source_P: NDArray[np.int64],
    second_source_P: NDArray[np.int64],
    first_s_P: NDArray[np.float64],
    second_s_P: NDArray[np.float64],
    config: DuplicatesConfig,
) -> NDArray[np.bool_]:
    """Whether two clips may be duplicates, apart from their embeddings: by their sources and durations."""
    allowed_P = np.full(len(first_source_P), True)
    if not config.same_source:
        allowed_P &= first_source_P != second_source_P
    if config.max_duration_ratio is not None:
        longer_s, shorter_s = np.maximum(first_s_P, second_s_P), np.minimum(first_s_P, second_s_P)
        allowed_P &= longer_s <= config.max_duration_ratio * shorter_s
    return allowed_P


def read_ranked(batches: Iterable[pa.RecordBatch], file: BinaryIO, config: DuplicatesConfig) -> RankedClips:
    """Sort the clips of the batches; their embeddings are written to `file`, which must stay open.

    Raises UserError for embeddings of two widths.
    """
    seen, width, tables = 0, 0, []
    for batch in batches:
        seen += batch.num_rows
        usable, embeddings_ND = unit_embeddings(batch, width)
        if len(embeddings_ND):
            width = embeddings_ND.shape[1]
            file.write(embeddings_ND.tobytes())
            rest = batch.select(CLIP_COLUMNS[:-1]).filter(usable)
            twin, digest = _keys(rest, embeddings_ND, config)
            tables.append(rest.append_column("twin", twin).append_column("digest", digest))
    file.flush()
    if not tables:
        nothing = np.empty(0, np.int64)
        return RankedClips(
            clip_id=pa.array([], pa.string()),
            source_N=nothing,
            duration_s_N=np.empty(0),
            row_N=nothing,
            twin_N=nothing,
            digest_N=np.empty(0, np.uint64),
            embeddings_ND=np.empty((0, 0), np.float16),
            without_embedding=seen,
        )
    table = pa.Table.from_batches(tables)
    row_N = _best_first(table, config)
    table = table.select(["clip_id", "source_id", "duration_s", "twin", "digest"]).take(pa.array(row_N))
    table = table.combine_chunks()
    source_N, twin_N = (_codes(table[name]) for name in ("source_id", "twin"))
    return RankedClips(
        clip_id=table["clip_id"].chunk(0),
        source_N=source_N,
        duration_s_N=table["duration_s"].to_numpy().astype(np.float64),
        row_N=row_N,
        twin_N=np.unique(twin_N, return_index=True)[1][twin_N],
        digest_N=table["digest"].to_numpy(),
        embeddings_ND=np.memmap(file, np.float16, "r", shape=(len(row_N), width)),
        without_embedding=seen - len(row_N),
    )


def _keys(
    batch: pa.RecordBatch, embeddings_ND: NDArray[np.float16], config: DuplicatesConfig
) -> tuple[pa.Array, pa.Array]:
    """Of each clip, a key that is equal for two clips of the same embedding that may join, and stand for, the very same
    clips; and the digest of all its columns."""
    constraints = ([] if config.same_source else ["source_id"]) + (["duration_s"] if config.max_duration_ratio else [])
    both = zip(_rows(batch, constraints), _rows(batch, CLIP_COLUMNS[:-1]), strict=True)
    twins, digests = [], []
    for embedding_D, (constrained, all_columns) in zip(embeddings_ND, both, strict=True):
        twin = hashlib.blake2b(embedding_D.tobytes(), digest_size=16)
        digest = twin.copy()
        twin.update(repr(constrained).encode())
        digest.update(repr(all_columns).encode())
        twins.append(twin.digest())
        digests.append(int.from_bytes(digest.digest()[:8]))
    return pa.array(twins, pa.binary(16)), pa.array(digests, pa.uint64())


def _rows(batch: pa.RecordBatch, columns: Iterable[str]) -> list[tuple[Any, ...]]:
    listed = [batch[name].to_pylist() for name in columns]
    return list(zip(*listed, strict=True)) if listed else [()] * batch.num_rows


def _best_first(table: pa.Table, config: DuplicatesConfig) -> NDArray[np.int64]:
    """Row order from best to worst; missing values rank last."""
    columns = {
        "resolution": pc.multiply(table["width"].cast(pa.int64()), table["height"].cast(pa.int64())),
        "aesthetic": table["aesthetic"],
        "duration": table["duration_s"],
    }
    criteria = pa.table({name: columns[name] for name in config.order} | {"clip_id": table["clip_id"]})
    keys = [*((name, "descending") for name in config.order), ("clip_id", "ascending")]
    return pc.sort_indices(criteria, sort_keys=keys).to_numpy().astype(np.int64)


def _codes(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal values get equal codes, from 0 on, in the order in which they appear."""
    return values.chunk(0).dictionary_encode().indices.to_numpy().astype(np.int64)
