"""What a scorer is: a small class that looks at a clip's three thumbnails and answers with columns.

A scorer knows neither Ray nor thresholds. Every clip gets every score once; `curation.selection` filters.
A captioner looks at the same views and answers with a caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline import Resources
from curation.inputs.captions import Caption
from curation.video.resize import Image


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What CLIP says of one clip, L2-normalised, float32; `error` instead where it could not say anything."""

    frames_FD: NDArray[np.float32] | None = None
    """One row per thumbnail: first, middle and last frame."""
    captions_CD: NDArray[np.float32] | None = None
    """One row per caption; of NaN where the caption has no text."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """What a scorer sees of one clip: upright (height, width, 3) uint8 BGR thumbnails and its captions.

    `thumbnails` holds the first, middle and last frame, at most 640 px on the longer side.
    """

    thumbnails: tuple[Image, ...]
    captions: tuple[Caption, ...] = field(default=())
    embeddings: Embeddings | None = None
    """For scorers that need "embeddings"."""


class Scorer(Protocol):
    """The protocol of a score: add one file, one line of the registry in `curation.scores`, and a test."""

    name: str
    """What the command line and the error columns call it."""
    columns: tuple[pa.Field, ...]
    """The columns it fills, with meaning, unit and polarity in their metadata (see `clipmill.columns.column`)."""
    needs: tuple[str, ...]
    """What it looks at: "thumbnails", "captions", "embeddings", or a column that an earlier stage gives. CLIP runs once
    for all scorers that need embeddings, which run in its workers, and not at all if none does."""
    resources: Resources
    """What one worker of it takes; placement on a cluster follows from it."""
    embedding_width: int | None
    """How wide those embeddings have to be, once it is loaded; None if it does not matter."""
    weights_digest: str | None
    """Of weights that are chosen by configuration, once loaded: a dataset keeps to one. None if there are none."""

    def load(self, device: str) -> None:
        """Load models onto `device` ("cpu", "cuda"), once per process, before the first `score`.

        Raises UserError when weights are missing or unfit, with what was wanted, where it was looked for, and how to
        place them by hand. It is called once before a run starts its work, too.
        """

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """One mapping of column name to value per clip, in order.

        A clip that cannot be scored gets null columns and a reason in `{name}_error`; it never ends the batch.
        """


class Captioner(Protocol):
    """The protocol of a captioner: one file, one line of the registry in `curation.captioners`, and a test."""

    name: str
    """The source that its captions carry."""
    needs: tuple[str, ...]
    """As a scorer's."""
    resources: Resources
    """As a scorer's; what depends on its weights is known once it is loaded."""
    weights_digest: str | None
    """As a scorer's."""

    def load(self, device: str) -> None:
        """As a scorer's."""

    def caption(self, batch: Sequence[ClipView]) -> list[Caption]:
        """One caption per clip, in order; without text and with the reason where it failed. It never ends the batch."""
