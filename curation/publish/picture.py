"""A contact sheet of a selection: the middle frames of some of its clips, from the stored previews."""

import hashlib
import io
import math
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageOps

from clipmill.jpeg import jpeg_size
from curation.dataset.tables import Dataset

_COLUMNS, _ROWS = 5, 4
_CELL_PX, _GAP_PX = (320, 180), 4
_AROUND = "#e8e8e8"
"""Beside pictures of another aspect ratio: black would look like bars of the clip."""
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
    most = _COLUMNS * _ROWS
    wanted, parts = set(clip_ids), sorted(dataset.parts("previews"), key=_hash)[:_PARTS]
    of_part = {}
    for part in parts:
        ids = dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist()
        of_part[part] = sorted((clip_id for clip_id in ids if clip_id in wanted), key=_hash)
    everything = [clip_id for ids in of_part.values() for clip_id in ids]
    rank: dict[str, int] = {}
    nth_of_source: dict[str, int] = {}
    for clip_id in sorted(everything, key=_hash):
        source = clip_id.partition("-")[0]
        rank[clip_id] = nth_of_source[source] = nth_of_source.get(source, -1) + 1
    chosen = set(sorted(everything, key=lambda clip_id: (rank[clip_id], _hash(clip_id)))[:most])
    cells = {}
    for part, ids in of_part.items():
        taken = chosen & set(ids)
        if taken:
            listed = dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist()
            at = np.array([i for i, clip_id in enumerate(listed) if clip_id in taken])
            for row in dataset.read_part("previews", part, ["clip_id", "middle"], at).to_pylist():
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
