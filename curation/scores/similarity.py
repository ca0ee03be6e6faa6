"""Caption similarity: cosine between CLIP's embeddings of three frames and of each caption (paper 3.1 and App. C)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipmill.pipeline import Resources
from curation.scores.base import ClipView, Scorer
from curation.scores.columns import SIMILARITY_COLUMNS


class Similarity(Scorer):
    """Scorer `similarity`: mean over the frames of the cosine to each caption, and the mean of that over captions."""

    name = "similarity"
    columns = SIMILARITY_COLUMNS
    needs = ("mean_embedding", "captions")
    resources = Resources(num_cpus=0)

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Columns similarity, similarity_captions, similarity_error per clip."""
        return [_score_clip(clip) for clip in batch]


def _score_clip(clip: ClipView) -> dict[str, Any]:
    embeddings = clip.embeddings
    if embeddings is None or embeddings.mean_D is None:
        return _unscored(f"no embedding: {embeddings.error if embeddings else 'the CLIP model did not run'}")
    if not any(caption.text for caption in clip.captions):
        reasons = [caption.error for caption in clip.captions if caption.error]
        return _unscored(f"no caption has text: {reasons[0]}" if reasons else "the clip has no caption")
    assert embeddings.captions_CD is not None, "there are captions"
    cosines_C = embeddings.captions_CD @ embeddings.mean_D  # the mean of the frames' cosines
    known_C = np.isfinite(cosines_C)
    if not known_C.any():
        return _unscored("the model returned non-finite values")
    return {
        "similarity": float(cosines_C[known_C].mean()),
        "similarity_captions": [float(c) if known else None for c, known in zip(cosines_C, known_C, strict=True)],
        "similarity_error": None,
    }


def _unscored(reason: str) -> dict[str, Any]:
    return {"similarity": None, "similarity_captions": None, "similarity_error": reason}
