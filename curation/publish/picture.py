"""A contact sheet of a selection: the middle frames of some of its clips, from the stored previews."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageOps

from clipmill.jpeg import jpeg_size
from curation.dataset.schemas import source_of
from curation.dataset.tables import Dataset

_COLUMNS, _ROWS = 5, 4
_CELL_PX, _GAP_PX = (320, 180), 4
_AROUND = "#e8e8e8"
"""Padding for other aspect ratios: black would look like bars in the clip."""
_PARTS = 40
_LARGEST_SIDE_PX = 8192


def contact_sheet(dataset: Dataset, clip_ids: Collection[str]) -> bytes | None:
    """JPEG of up to 20 clips, of as many sources as there are, the same on every run. None if none has a preview."""
    cells = _cells(dataset, clip_ids)
    if not cells:
        return None
    columns = min(_COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    width, height = _CELL_PX
    sheet = Image.new("RGB", (columns * (width + _GAP_PX) - _GAP_PX, rows * (height + _GAP_PX) - _GAP_PX), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, ((i % columns) * (width + _GAP_PX), (i // columns) * (height + _GAP_PX)))
    written = io.BytesIO()
    sheet.save(written, "JPEG", quality=85)
    return written.getvalue()


def _cells(dataset: Dataset, clip_ids: Collection[str]) -> list[Image.Image]:
    """Pictures of one clip per source, then of a second one, and so on."""
    wanted = set(clip_ids)
    rows_of: dict[str, dict[str, int]] = {}
    """Part -> its clips, with their row numbers."""
    for part in sorted(dataset.parts("previews"), key=_hash)[:_PARTS]:
        ids = dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist()
        rows_of[part] = {clip_id: row for row, clip_id in enumerate(ids) if clip_id in wanted}
    rank: dict[str, int] = {}
    clips_of: Counter[str] = Counter()
    for clip_id in sorted((clip_id for rows in rows_of.values() for clip_id in rows), key=_hash):
        rank[clip_id] = clips_of[source_of(clip_id)]
        clips_of[source_of(clip_id)] += 1
    chosen = set(sorted(rank, key=rank.__getitem__)[: _COLUMNS * _ROWS])
    cells = {}
    for part, rows in rows_of.items():
        numbers = [row for clip_id, row in rows.items() if clip_id in chosen]
        if numbers:
            for row in dataset.read_part("previews", part, ["clip_id", "middle"], np.array(numbers)).to_pylist():
                cells[row["clip_id"]] = _cell(row["middle"])
    return [cell for _, cell in sorted(cells.items(), key=lambda item: _hash(item[0])) if cell is not None]


def _cell(jpeg: bytes | None) -> Image.Image | None:
    size = jpeg_size(jpeg or b"")
    if size is None or max(size) > _LARGEST_SIDE_PX:
        return None
    try:
        with Image.open(io.BytesIO(jpeg or b""), formats=["JPEG"]) as image:
            return ImageOps.pad(image.convert("RGB"), _CELL_PX, color=_AROUND)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for unreadable files
        return None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
