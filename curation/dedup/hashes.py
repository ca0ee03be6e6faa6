"""Perceptual hashes as vectors: of two hashes of n bits, d of which differ, the cosine is 1 - 2 d / n."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.dedup.config import HASH_BITS

HASH = "picture_hash"
"""Column of the score of the same name: per picture, hexadecimal digits, or null."""


def hash_vectors(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of clips with their hashes in `embedding` replaced by vectors of 1 and -1, 256 numbers per picture.

    A picture without a hash is a vector of zeros; a clip without any has null.
    """
    rows = [_vector(hashes) for hashes in batch["embedding"].to_pylist()]
    vectors = pa.array(rows, pa.list_(pa.float32()))
    return batch.set_column(batch.schema.get_field_index("embedding"), "embedding", vectors)


def _vector(hashes: Sequence[str | None] | None) -> NDArray[np.float32] | None:
    """(256 per picture,), or None without hashes or if one cannot be read."""
    if hashes is None or not any(hashes):
        return None
    try:
        return np.concatenate([_bits(digits) for digits in hashes])
    except ValueError:
        return None


def _bits(digits: str | None) -> NDArray[np.float32]:
    if digits is None:
        return np.zeros(HASH_BITS, np.float32)
    if len(digits) != HASH_BITS // 4:
        raise ValueError(f"expected {HASH_BITS // 4} hexadecimal digits, got {len(digits)}")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    return bits.astype(np.float32) * 2 - 1
