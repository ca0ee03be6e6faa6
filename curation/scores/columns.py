"""The columns that the built-in scorers fill, apart from the scorers: reading a table loads no model and no OpenCV."""

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from clipmill.columns import column

EMBEDDING_COLUMNS = (
    column(
        "embedding",
        pa.list_(pa.float16()),
        "mean of the CLIP embeddings of the first, middle and last frame, each of length 1; scaled to length 1",
    ),
    column("embedding_error", pa.string(), "why embedding is null"),
)

SIMILARITY_COLUMNS = (
    column(
        "similarity",
        pa.float32(),
        "cosine of CLIP's embeddings of frame and caption, mean of three frames; mean over the clip's captions",
        unit="cosine, -1 to 1",
        better="higher",
        bounds=(-1, 1),
    ),
    column(
        "similarity_captions",
        pa.list_(pa.float32()),
        "the same for each caption, in their order; null for a caption without text",
        unit="cosine, -1 to 1",
    ),
    column("similarity_error", pa.string(), "why similarity is null"),
)

AESTHETIC_COLUMNS = (
    column(
        "aesthetic",
        pa.float32(),
        "aesthetic head on CLIP's embeddings, mean of three frames; LAION's heads give about 1 to 10",
        unit="head's scale",
        better="higher",
    ),
    column("aesthetic_error", pa.string(), "why aesthetic is null"),
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
        "the same share in the first, middle and last frame",
        unit="share, 0 to 1",
    ),
    column("text_area_error", pa.string(), "why text_area is null"),
)

SCORE_COLUMNS: Mapping[str, tuple[pa.Field, ...]] = MappingProxyType(
    {"similarity": SIMILARITY_COLUMNS, "aesthetic": AESTHETIC_COLUMNS, "text_area": TEXT_AREA_COLUMNS}
)
"""Name of a scorer -> its columns, in the order in which the scorers run."""
