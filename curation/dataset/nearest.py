"""Cosine similarity of a query to every clip of a dataset, by inner products of fp16 rows (faiss)."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import faiss
import numpy as np
from numpy.typing import NDArray

from clipmill.errors import UserError

if TYPE_CHECKING:
    from curation.dataset.embeddings import ClipEmbeddings

_AT_ONCE = 1024
"""Rows that faiss copies at once: they stay in the processor's cache, and the copy's memory is reused."""


def unit_query(query: NDArray[np.floating], width: int) -> NDArray[np.float32]:
    """A query, (D,), at length 1. Raises UserError if it has another width than the embeddings, or no length."""
    if query.shape != (width,):
        raise UserError(
            f"the query has {query.size} dimensions, the embeddings of the dataset have {width}: embed it with the "
            "dataset's CLIP model"
        )
    length = float(np.linalg.norm(query.astype(np.float64)))
    if not np.isfinite(length) or not length:
        raise UserError("the query has no direction: its embedding is zero or not finite")
    return (query / length).astype(np.float32)


def cosines(embeddings: "ClipEmbeddings", query_D: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N,) cosines of all clips to a query (D,), which is the same for equal rows whatever the blocks.

    Raises UserError for a query of another width.
    """
    unit_D = unit_query(query_D, embeddings.width)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda block_BD: _products(block_BD, unit_D), embeddings.blocks_BD))
    return np.clip(np.concatenate(found), -1, 1) if found else np.empty(0, np.float32)


def nearest(cosine_N: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """The rows of the `most` highest cosines, highest first; equal ones in order of their rows. NaN never counts."""
    usable = np.flatnonzero(~np.isnan(cosine_N))
    if len(usable) > most:
        bound = np.partition(cosine_N[usable], len(usable) - most)[len(usable) - most]
        usable = usable[cosine_N[usable] >= bound]
    return usable[np.argsort(-cosine_N[usable], kind="stable")][:most]


def _products(block_BD: NDArray[np.float16], query_D: NDArray[np.float32]) -> NDArray[np.float32]:
    quantizer = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexScalarQuantizer(block_BD.shape[1], quantizer, faiss.METRIC_INNER_PRODUCT)
    codes_BD = block_BD.view(np.uint8).reshape(len(block_BD), -1)
    found_B = np.full(len(block_BD), np.nan, np.float32)
    for start in range(0, len(block_BD), _AT_ONCE):
        codes = codes_BD[start : start + _AT_ONCE]
        index.reset()
        index.add_sa_codes(codes)  # a copy
        products, rows = index.search(query_D[None], len(codes))  # of all rows, which is faster than a range search
        known = rows[0] >= 0
        found_B[start + rows[0][known]] = products[0][known]
    return found_B
