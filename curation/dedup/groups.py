"""Groups of near-duplicates: clips in order of preference, and the kept clip that each of them joins.

Clips are processed from best to worst: each joins the best kept clip that it is similar to, or is kept. So every copy
is similar to its representative, and chains of small differences do not join dissimilar clips. Sizes: N clips, D =
width of an embedding, P pairs.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from clipmill.config import Config
from clipmill.errors import UserError

CLIP_COLUMNS = ("clip_id", "source_id", "width", "height", "aesthetic", "duration_s", "embedding")
"""Columns read of a clip. `embedding` is a list of D numbers, or null."""

_SLACK = 0.002
"""Bound on the error of the cosine from inner products of fp16 vectors."""
_EXACT_AT_ONCE = 4096
_CELLS_PER_ROOT = 4
"""Cells of the approximate index, as a factor of the square root of the number of clips."""
_TRAINING_PER_CELL = 40


class DuplicatesConfig(Config):
    """Settings of the near-duplicate search, and which clip of a group is kept."""

    min_cosine: float = Field(0.95, gt=0, le=1)
    """Minimum cosine similarity of duplicates. The default is for CLIP ViT-L/14; see docs/duplicates.md."""
    same_source: bool = False
    """Whether clips of one source can be duplicates of each other. Neighboring clips of a long shot look alike."""
    max_duration_ratio: float | None = Field(None, ge=1)
    """Maximum ratio of the lengths of two duplicates; null disables the check."""
    order: tuple[Literal["resolution", "aesthetic", "duration"], ...] = ("resolution", "aesthetic", "duration")
    """Criteria for the best clip of a group, most important first: more pixels, a higher aesthetic score, more seconds.
    Ties are broken by clip_id."""
    exact_up_to: int = Field(200_000, ge=0)
    """Number of clips up to which the search is exact; above it is approximate."""
    probes: int = Field(8, ge=1)
    """Cells of the approximate index to search per clip. More find more duplicates and take longer."""
    block_clips: int = Field(512, ge=1)
    """Number of clips per search batch. Fewer use less memory."""


@dataclass(frozen=True, kw_only=True)
class RankedClips:
    """The clips with an embedding. Their indices, 0 to N - 1, go from best to worst."""

    clip_id: pa.Array
    source_N: NDArray[np.int64]
    duration_s_N: NDArray[np.float64]
    row_N: NDArray[np.int64]
    """Its row in `embeddings_ND`."""
    twin_N: NDArray[np.int64]
    """The best clip with an equal embedding and equal constraints; usually itself."""
    embeddings_ND: NDArray[np.float16]
    """L2-normalized; stored in a file."""
    without_embedding: int

    def embeddings(self, clips: NDArray[np.int64]) -> NDArray[np.float32]:
        """(clips, D)."""
        return self.embeddings_ND[self.row_N[clips]].astype(np.float32)

    def cosines(self, first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Deterministic per pair: sums of products of fp16 numbers below 1 are exact in fp64."""
        found_P = np.empty(len(first_P))
        for start in range(0, len(first_P), _EXACT_AT_ONCE):
            part = slice(start, start + _EXACT_AT_ONCE)
            a, b = (self.embeddings_ND[self.row_N[clips[part]]].astype(np.float64) for clips in (first_P, second_P))
            found_P[part] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        return found_P

    def may_join(
        self, first_P: NDArray[np.int64], second_P: NDArray[np.int64], config: DuplicatesConfig
    ) -> NDArray[np.bool_]:
        """Whether two clips may be duplicates, apart from their embeddings."""
        allowed_P = np.full(len(first_P), True)
        if not config.same_source:
            allowed_P &= self.source_N[first_P] != self.source_N[second_P]
        if config.max_duration_ratio is not None:
            first_s, second_s = self.duration_s_N[first_P], self.duration_s_N[second_P]
            allowed_P &= np.maximum(first_s, second_s) <= config.max_duration_ratio * np.minimum(first_s, second_s)
        return allowed_P


def read_ranked(batches: Iterable[pa.RecordBatch], file: BinaryIO, config: DuplicatesConfig) -> RankedClips:
    """Sort the clips of the batches; their embeddings are written to `file`, which must stay open.

    Raises UserError for embeddings of two widths.
    """
    seen, width, tables = 0, 0, []
    for batch in batches:
        seen += batch.num_rows
        usable, embeddings_ND = _unit_embeddings(batch, width)
        if len(embeddings_ND):
            width = embeddings_ND.shape[1]
            file.write(embeddings_ND.tobytes())
            rest = batch.select(CLIP_COLUMNS[:-1]).filter(usable)
            tables.append(rest.append_column("twin", _twin_keys(rest, embeddings_ND, config)))
    file.flush()
    if not tables:
        nothing = np.empty(0, np.int64)
        return RankedClips(
            clip_id=pa.array([], pa.string()),
            source_N=nothing,
            duration_s_N=np.empty(0),
            row_N=nothing,
            twin_N=nothing,
            embeddings_ND=np.empty((0, 0), np.float16),
            without_embedding=seen,
        )
    table = pa.Table.from_batches(tables)
    row_N = _best_first(table, config)
    table = table.take(pa.array(row_N)).combine_chunks()
    source_N, twin_N = (_codes(table[name]) for name in ("source_id", "twin"))
    return RankedClips(
        clip_id=table["clip_id"].chunk(0),
        source_N=source_N,
        duration_s_N=table["duration_s"].to_numpy().astype(np.float64),
        row_N=row_N,
        twin_N=np.unique(twin_N, return_index=True)[1][twin_N],
        embeddings_ND=np.memmap(file, np.float16, "r", shape=(len(row_N), width)),
        without_embedding=seen - len(row_N),
    )


def _unit_embeddings(batch: pa.RecordBatch, width: int) -> tuple[pa.BooleanArray, NDArray[np.float16]]:
    """Which clips of a batch have a usable embedding, and those, (clips, D), at length 1. `width` 0: not known yet."""
    lengths = pc.fill_null(pc.list_value_length(batch["embedding"]), 0).to_numpy(zero_copy_only=False)
    usable = lengths > 0
    width = width or next(iter(lengths[usable]), 0)
    for i in np.flatnonzero(usable & (lengths != width))[:1]:
        raise UserError(
            f"embeddings of different models cannot be compared: clip {batch['clip_id'][int(i)]} has "
            f"{lengths[i]} dimensions, others have {width}. Score all clips with one CLIP model, in a new dataset."
        )
    numbers = batch["embedding"].filter(pa.array(usable)).flatten().to_numpy(zero_copy_only=False)
    found_ND = numbers.astype(np.float32).reshape(int(usable.sum()), width)
    length_N = np.linalg.norm(found_ND, axis=1)
    finite_N = np.isfinite(length_N) & (length_N > 0)
    usable[usable] = finite_N
    return pa.array(usable), (found_ND[finite_N] / length_N[finite_N, None]).astype(np.float16)


def _twin_keys(batch: pa.RecordBatch, embeddings_ND: NDArray[np.float16], config: DuplicatesConfig) -> pa.Array:
    """Equal for two clips of the same embedding that may join, and stand for, the very same clips."""
    columns = ([] if config.same_source else ["source_id"]) + (["duration_s"] if config.max_duration_ratio else [])
    others = zip(*(batch[name].to_pylist() for name in columns), strict=True) if columns else [()] * batch.num_rows
    keys = []
    for embedding_D, other in zip(embeddings_ND, others, strict=True):
        key = hashlib.blake2b(embedding_D.tobytes(), digest_size=16)
        key.update(repr(other).encode())
        keys.append(key.digest())
    return pa.array(keys, pa.binary(16))


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


def keepers(clips: RankedClips, config: DuplicatesConfig) -> tuple[NDArray[np.int64], bool]:
    """(N,): the clip that is kept in place of each, itself if it is kept; and whether the search was approximate."""
    number_N = np.arange(len(clips.row_N))
    keeper_N = number_N.copy()
    searched = number_N[clips.twin_N == number_N]
    approximate = len(searched) > config.exact_up_to
    index = _index(clips, searched, approximate, config)
    indexed = np.empty(len(searched), np.int64)
    for start in range(0, len(searched), config.block_clips):
        block = searched[start : start + config.block_clips]
        query, neighbour = _near(clips, index, block, indexed, config)
        best = np.full(len(block), len(searched))
        np.minimum.at(best, query, neighbour)  # places in the index are in the order of the clips
        joins = best < len(searched)
        keeper_N[block[joins]] = indexed[best[joins]]
        new_keepers = _join_within(clips, block[~joins], keeper_N, config)
        indexed[index.ntotal : index.ntotal + len(new_keepers)] = new_keepers
        index.add(clips.embeddings(new_keepers))
    # A twin of a kept clip is kept too, unless the two may join.
    twin_N = clips.twin_N
    follows_N = (keeper_N[twin_N] != twin_N) | clips.may_join(number_N, twin_N, config)
    keeper_N[follows_N] = keeper_N[twin_N[follows_N]]
    return keeper_N, approximate


def _join_within(
    clips: RankedClips, block: NDArray[np.int64], keeper_N: NDArray[np.int64], config: DuplicatesConfig
) -> NDArray[np.int64]:
    """Join the clips of one block, none of which joins an earlier one, in `keeper_N`. Returns those that are kept."""
    index = faiss.IndexFlatIP(clips.embeddings_ND.shape[1])
    index.add(clips.embeddings(block))
    later, earlier = _near(clips, index, block, block, config)
    before = earlier < later
    later, earlier = later[before], earlier[before]
    is_keeper = np.full(len(block), True)
    for i in np.lexsort((earlier, later)):
        if is_keeper[later[i]] and is_keeper[earlier[i]]:
            is_keeper[later[i]] = False
            keeper_N[block[later[i]]] = block[earlier[i]]
    return block[is_keeper]


def _near(
    clips: RankedClips, index: Any, block: NDArray[np.int64], indexed: NDArray[np.int64], config: DuplicatesConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The P pairs (place in `block`, place in the index) of clips that may be duplicates of each other."""
    if not index.ntotal or not len(block):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    limits, products_P, found_P = index.range_search(clips.embeddings(block), config.min_cosine - _SLACK)
    query_P = np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
    allowed_P = clips.may_join(block[query_P], indexed[found_P], config)
    query_P, found_P, products_P = query_P[allowed_P], found_P[allowed_P], products_P[allowed_P]
    near_P = products_P > config.min_cosine + _SLACK
    close = np.flatnonzero(~near_P)
    near_P[close] = clips.cosines(block[query_P[close]], indexed[found_P[close]]) >= config.min_cosine
    return query_P[near_P], found_P[near_P]


def _index(clips: RankedClips, searched: NDArray[np.int64], approximate: bool, config: DuplicatesConfig) -> Any:
    """An empty index of inner products: exact, or of cells around centroids that are the same for the same clips."""
    width = clips.embeddings_ND.shape[1]
    if not approximate:
        return faiss.IndexFlatIP(width)
    cells = max(1, min(round(_CELLS_PER_ROOT * math.sqrt(len(searched))), len(searched) // _TRAINING_PER_CELL))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    sample = np.linspace(0, len(searched) - 1, min(len(searched), _TRAINING_PER_CELL * cells)).astype(np.int64)
    index.train(clips.embeddings(searched[sample]))
    index.nprobe = min(config.probes, cells)
    return index
