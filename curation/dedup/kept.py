"""An index of kept clips: which is the best of those that a clip joins?

The index may be divided: `KeptShare` holds some of the kept clips, in this process or on another node. Sizes: B clips
in a block, D = width of an embedding, P pairs, C cells, S cells searched per clip.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from curation.dedup.config import DuplicatesConfig
from curation.dedup.ranked import ClipBlock, RankedClips, exact_cosines, may_join

NONE = int(np.iinfo(np.int64).max)
"""In place of the number of a clip."""

_SLACK = 0.002
"""Bound on the error of the cosine from inner products of fp16 vectors."""
_CELLS_PER_ROOT = 4
"""Cells of the approximate index, as a factor of the square root of the number of clips."""
_TRAINING_PER_CELL = 40
_CLIP = np.dtype([("number", np.int64), ("source", np.int64), ("duration_s", np.float64)])


class KeptIndex(Protocol):
    """What the search needs of an index."""

    block_clips: int
    """Clips to search for at a time."""

    def located(self, block: ClipBlock) -> ClipBlock:
        """The block with its cells, in the approximate search."""

    def best(self, block: ClipBlock) -> NDArray[np.int64]:
        """(B,): number of the best kept clip that each may join and is similar to, or `NONE`."""

    def add(self, block: ClipBlock) -> None:
        """Keep these clips, whose numbers are larger than those of all kept ones."""


MakeIndex = Callable[[RankedClips, DuplicatesConfig, NDArray[np.float32] | None], KeptIndex]
"""Makes an empty index for these clips, with the centroids of its cells, (C, D), or None for the exact search."""


class KeptShare:
    """Kept clips in a faiss index, with 2 D + 32 bytes each, or 4 D + 24 in the exact search."""

    def __init__(self, width: int, config: DuplicatesConfig, centroids_CD: NDArray[np.float32] | None = None) -> None:
        self._config, self._count = config, 0
        self._clips = np.empty(0, _CLIP)
        self._index: Any = faiss.IndexFlatIP(width)
        if centroids_CD is not None:
            self._index = _cells(self._index, width, centroids_CD, config)

    def count(self) -> int:
        """Number of kept clips."""
        return self._count

    def located(self, block: ClipBlock) -> ClipBlock:
        """The block with its cells, in the approximate search."""
        if block.cells_BS is not None or isinstance(self._index, faiss.IndexFlat) or not len(block):
            return block
        _, cells_BS = self._index.quantizer.search(_single(block), self._index.nprobe)
        return replace(block, cells_BS=cells_BS)

    def best(self, block: ClipBlock) -> NDArray[np.int64]:
        """(B,): number of the best clip of this share that each may join and is similar to, or `NONE`."""
        best_B = np.full(len(block), NONE)
        query_P, place_P = self.pairs(block)
        np.minimum.at(best_B, query_P, self._clips["number"][place_P])
        return best_B

    def pairs(self, block: ClipBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The P pairs (row of the block, place in this share) of clips that may join and are similar."""
        if not self._count or not len(block):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        block = self.located(block)
        limits, products_P, place_P = self._range_search(block)
        query_P = np.repeat(np.arange(len(block)), np.diff(limits))
        kept = self._clips[place_P]
        allowed_P = may_join(
            block.source_B[query_P], kept["source"], block.duration_s_B[query_P], kept["duration_s"], self._config
        )
        query_P, place_P, products_P = query_P[allowed_P], place_P[allowed_P], products_P[allowed_P]
        near_P = products_P > self._config.threshold + _SLACK
        close = np.flatnonzero(~near_P)
        if len(close):
            stored = self._index.reconstruct_batch(place_P[close])
            near_P[close] = exact_cosines(block.embedding_BD[query_P[close]], stored) >= self._config.threshold
        return query_P[near_P], place_P[near_P]

    def add(self, block: ClipBlock) -> None:
        """Keep these clips."""
        if not len(block):
            return
        block, count = self.located(block), self._count + len(block)
        if count > len(self._clips):
            self._clips = np.resize(self._clips, max(count, 2 * len(self._clips)))
        added = self._clips[self._count : count]
        added["number"], added["source"], added["duration_s"] = block.number_B, block.source_B, block.duration_s_B
        embeddings_BD = _single(block)
        if block.cells_BS is None:
            self._index.add(embeddings_BD)
        else:
            cell_B = np.ascontiguousarray(block.cells_BS[:, 0])
            pointers = faiss.swig_ptr(embeddings_BD), None, faiss.swig_ptr(cell_B)
            self._index.add_core(len(block), *pointers)
        self._count = count

    def _range_search(self, block: ClipBlock) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        embeddings_BD, radius = _single(block), self._config.threshold - _SLACK
        if block.cells_BS is None:
            limits, products_P, place_P = self._index.range_search(embeddings_BD, radius)
        else:
            unused = np.zeros(block.cells_BS.shape, np.float32)
            limits, products_P, place_P = self._index.range_search_preassigned(
                embeddings_BD, radius, block.cells_BS, unused
            )
        return np.asarray(limits, np.int64), products_P, place_P


class LocalIndex(KeptShare):
    """The whole index, in this process."""

    def __init__(self, clips: RankedClips, config: DuplicatesConfig, centroids_CD: NDArray[np.float32] | None) -> None:
        super().__init__(clips.width, config, centroids_CD)
        self.block_clips = config.block_clips


def train_centroids(clips: RankedClips, searched: NDArray[np.int64], config: DuplicatesConfig) -> NDArray[np.float32]:
    """(C, D): centroids of cells, trained on a deterministic sample of these clips."""
    cells = wanted_cells(len(searched))
    quantizer = faiss.IndexFlatIP(clips.width)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, clips.width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    sample = np.linspace(0, len(searched) - 1, min(len(searched), _TRAINING_PER_CELL * cells)).astype(np.int64)
    index.train(_single(clips.block(searched[sample])))
    centroids_CD: NDArray[np.float32] = quantizer.reconstruct_n(0, cells)
    return centroids_CD


def wanted_cells(clips: int) -> int:
    """Number of cells for so many clips."""
    return max(1, min(round(_CELLS_PER_ROOT * math.sqrt(clips)), clips // _TRAINING_PER_CELL))


def _cells(quantizer: Any, width: int, centroids_CD: NDArray[np.float32], config: DuplicatesConfig) -> Any:
    """An empty index of fp16 vectors in cells around centroids."""
    quantizer.add(np.ascontiguousarray(centroids_CD))
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, len(centroids_CD), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(centroids_CD)  # keeps the centroids that are there
    index.make_direct_map()
    index.nprobe = min(config.probes, len(centroids_CD))
    return index


def _single(block: ClipBlock) -> NDArray[np.float32]:
    return block.embedding_BD.astype(np.float32)
