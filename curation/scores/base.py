"""Base of scorers, and their view of a clip.

A scorer computes columns from pictures, embeddings or frames of a clip. Scorers are independent of Ray and of
thresholds; `curation.selection` filters. A captioner is a scorer too: see `curation.captioners.base`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill import config as configuration
from clipmill.pipeline import Need, Resources
from curation.inputs.caption import Caption
from curation.scores.columns import SCORES
from curation.video.resize import Image


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """CLIP embeddings of one clip, L2-normalized, float32; `error` if there are none."""

    frames_FD: NDArray[np.float32] | None = None
    """One row per thumbnail: first, middle and last frame."""
    captions_CD: NDArray[np.float32] | None = None
    """One row per caption; of NaN where the caption has no text."""
    mean_D: NDArray[np.float32] | None = None
    """Mean of the thumbnails' rows, as exactly as the dataset stores it; not of length 1."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """Input of a scorer for one clip: what it needs, the rest is empty. Images are upright (height, width, 3) uint8
    BGR."""

    thumbnails: tuple[Image, ...] = ()
    """First, middle and last frame, at most `thumbnail_long_side_px` (640) on the longer side."""
    previews: Sequence[Image] = ()
    """The same frames as they are stored for browsing, at half that size. Decoded at each access: keep what is needed
    twice."""
    captions: tuple[Caption, ...] = field(default=())
    embeddings: Embeddings | None = None
    frames: tuple[Image, ...] = ()
    """In display order, as many as `Frames` asks for; clips with fewer repeat some."""
    frame_times_s: tuple[float, ...] = ()
    """Their times from the start of the clip."""
    file: bytes = b""
    """The clip as an MP4, as it would be in a shard."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The requested columns of the clip."""


def needs_clip(needs: Sequence[Need]) -> bool:
    """Whether the CLIP model has to run."""
    return "embeddings" in needs or "mean_embedding" in needs


class NoSettings(configuration.Config):
    """Settings of a scorer that has none."""


class Scorer:
    """Base of scorers: a scorer is one file with a subclass, found by its address or entry point.

    docs/adding-a-scorer.md has a complete one. Rows are independent of each other and of thresholds.
    """

    name: ClassVar[str]
    """Name in commands and configurations, and of its table."""
    version: ClassVar[int] = 1
    """Incremented when the same clips, settings and weights would give other values: a new version of the score."""
    columns: tuple[pa.Field, ...]
    """Its columns, with meaning, unit and polarity in their metadata (see `clipmill.columns.column`)."""
    needs: tuple[Need, ...] = ("previews",)
    """Inputs, which decide the cost. "previews": the stored pictures. "thumbnails": the same frames at the size of the
    scan. "embeddings": of CLIP, which runs once for all scorers that need them. "mean_embedding": those of captions,
    and the mean of the frames' that a dataset stores. "captions". A `Frames`, or "file": decoded from the span. Or a
    column of the clips."""
    resources: Resources = Resources()
    """Resources of one worker; they determine the placement on a cluster."""
    Config: ClassVar[type[configuration.Config]] = NoSettings
    """Its settings, validated when made."""
    may_change: ClassVar[tuple[str, ...]] = ()
    """Settings that do not affect the values, such as a batch size or where the weights lie."""
    embedding_width: int | None = None
    """Required width of the embeddings, set by `load`; None for any."""
    weights_digest: str | None = None
    """Digest of its weights, set by `load`; other weights are another version. None without weights."""
    folder: ClassVar[str] = SCORES
    """Folder of its tables in a dataset."""
    kept_on_error: tuple[str, ...] = ()
    """Columns that count the cost of an attempt: failed rows keep them, and a retry adds to them."""
    clips_at_least: int = 1
    """Preferred number of clips per call: as many as it can process at a time."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @property
    def root(self) -> str:
        """Folder of its versions in a dataset."""
        return f"{self.folder}/{self.name}"

    def load(self, device: str = "cpu") -> None:
        """Load models onto `device` ("cpu", "cuda"), once per process, before the first `score`.

        Raises UserError when weights are missing or unfit, with what was expected, where it was searched for, and
        how to install it manually. Also called once before a run starts.
        """

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """One mapping of column name to value per clip, in order.

        An exception fails only the clip that raises it: the batch is scored again clip by clip, and that clip
        gets null and the message. `{name}_error` in the mapping does the same.
        """
        raise NotImplementedError
