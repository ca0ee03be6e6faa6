"""Protocols of scorers and captioners. A scorer computes columns from a clip's three thumbnails.

Scorers are independent of Ray and of thresholds. Every clip gets every score once; `curation.selection` filters. A
captioner sees the same views and returns a caption.
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
    """CLIP embeddings of one clip, L2-normalized, float32; `error` if there are none."""

    frames_FD: NDArray[np.float32] | None = None
    """One row per thumbnail: first, middle and last frame."""
    captions_CD: NDArray[np.float32] | None = None
    """One row per caption; of NaN where the caption has no text."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """Input of a scorer for one clip: upright (height, width, 3) uint8 BGR thumbnails and captions.

    `thumbnails` holds the first, middle and last frame, at most 640 px on the longer side.
    """

    thumbnails: tuple[Image, ...]
    captions: tuple[Caption, ...] = field(default=())
    embeddings: Embeddings | None = None
    """For scorers that need "embeddings"."""


class Scorer(Protocol):
    """Protocol of a scorer. To add one, add a file, an entry in the registry in `curation.scores`, and a test."""

    name: str
    """Name on the command line and prefix of the error columns."""
    columns: tuple[pa.Field, ...]
    """Its columns, with meaning, unit and polarity in their metadata (see `clipmill.columns.column`)."""
    needs: tuple[str, ...]
    """Inputs: "thumbnails", "captions", "embeddings", or a column of an earlier stage. CLIP runs once for all scorers
    that need embeddings, which run in its workers, and only if at least one does."""
    resources: Resources
    """Resources of one worker; they determine the placement on a cluster."""
    embedding_width: int | None
    """Required width of the embeddings, set by `load`; None for any."""
    weights_digest: str | None
    """Digest of configurable weights, set by `load`; all clips of a dataset must have the same. None without such
    weights."""

    def load(self, device: str) -> None:
        """Load models onto `device` ("cpu", "cuda"), once per process, before the first `score`.

        Raises UserError when weights are missing or unfit, with what was wanted, where it was looked for, and how to
        place them by hand. It is called once before a run starts its work, too.
        """

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """One mapping of column name to value per clip, in order.

        A clip that cannot be scored gets null columns and an error in `{name}_error`; it must not fail the batch.
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
