"""Embeddings as rows of length 1, of the clips that have one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.errors import UserError


def unit_embeddings(batch: pa.RecordBatch, width: int = 0) -> tuple[pa.BooleanArray, NDArray[np.float16]]:
    """Which clips of a batch (clip_id, embedding) have a usable embedding, and those, (clips, D), at length 1.

    An embedding that is null, not finite, or zero is not usable. `width` is D, 0 if not known yet. Raises UserError for
    two widths.
    """
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
