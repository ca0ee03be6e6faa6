"""Columns of the built-in scorers, apart from the scorers: reading a table loads no model and no OpenCV."""

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from clipmill.columns import column

SCORES, CAPTIONS = "scores", "captions"
"""Folders of a dataset with tables of scorers and of captioners, each in NAME/vN."""
FAILED, LEFT_OUT, NOT_SCORED = "failed", "left_out", "not_scored"
"""Why a score is null: scoring the clip failed, the dataset was curated without the score, or the version that counts
does not cover the clip."""


def error_kind_column(score: str) -> pa.Field:
    """The column that states the kind of the error in `SCORE_error`."""
    return column(f"{score}_error_kind", pa.string(), f"why {score} is null: {FAILED} or {LEFT_OUT}")


EMBEDDING_COLUMNS = (
    column(
        "embedding",
        pa.list_(pa.float16()),
        "mean of the L2-normalized CLIP embeddings of the first, middle and last frame, L2-normalized",
    ),
    column(
        "embedding_norm",
        pa.float32(),
        "length of that mean before it is normalized, 1 if the three frames are alike: times the cosine of a text to "
        "embedding, it is the mean cosine to the frames",
        bounds=(0, 1),
    ),
    column("embedding_error", pa.string(), "error message if embedding is null"),
    error_kind_column("embedding"),
)

SIMILARITY_COLUMNS = (
    column(
        "similarity",
        pa.float32(),
        "cosine similarity of the CLIP embeddings of frame and caption, averaged over three frames and all captions",
        unit="cosine, -1 to 1",
        better="higher",
        bounds=(-1, 1),
    ),
    column(
        "similarity_captions",
        pa.list_(pa.float32()),
        "similarity of each caption, in order; null for a caption without text",
        unit="cosine, -1 to 1",
    ),
    column("similarity_error", pa.string(), "error message if similarity is null"),
)

AESTHETIC_COLUMNS = (
    column(
        "aesthetic",
        pa.float32(),
        "aesthetic head on CLIP's embeddings, mean of three frames; LAION's heads give about 1 to 10",
        unit="head's scale",
        better="higher",
    ),
    column("aesthetic_error", pa.string(), "error message if aesthetic is null"),
)

TEXT_AREA_COLUMNS = (
    column(
        "text_area",
        pa.float32(),
        "share of the frame covered by text boxes, the largest of three frames; 0 means no text",
        unit="share, 0 to 1",
        better="lower",
        bounds=(0, 1),
    ),
    column(
        "text_area_frames",
        pa.list_(pa.float32()),
        "text area of the first, middle and last frame",
        unit="share, 0 to 1",
    ),
    column(
        "text_boxes",
        pa.list_(pa.struct([("frame", pa.int16()), ("corners", pa.list_(pa.float32()))])),
        "text boxes in those frames (0 first, 1 middle, 2 last): corners x, y, x, y, ... as shares of width and height",
    ),
    column("text_area_error", pa.string(), "error message if text_area is null"),
)

SCORE_COLUMNS: Mapping[str, tuple[pa.Field, ...]] = MappingProxyType(
    {"similarity": SIMILARITY_COLUMNS, "aesthetic": AESTHETIC_COLUMNS, "text_area": TEXT_AREA_COLUMNS}
)
"""Name of a scorer -> its columns, in the order in which the scorers run. The pipeline adds `NAME_error_kind`."""
