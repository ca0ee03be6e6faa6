"""First, middle and last picture of each clip as one small WebP strip, so that thousands fit into a file."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curation.dataset.tables import Dataset

BUDGET_BYTES = 26 << 20
"""Most bytes of all strips of a page, before base64 adds a third."""
READ_BYTES = 2 << 30
"""Bytes of preview files read for a page; in larger datasets, only some clips have pictures."""
_SIZES = ((320, 70), (240, 65), (200, 60), (160, 55), (128, 50), (96, 45), (80, 40), (64, 35), (64, 20), (48, 15))
"""Long side of a picture in pixels and WebP quality, best first."""
_TRIED = 48
_LARGEST_SIDE_PX = 8192
_BATCH_ROWS = 256

Jpegs = tuple[bytes | None, bytes | None, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Concatenated strips as base64: clip i is `strips[offsets[i]:offsets[i + 1]]`, empty if it has no pictures."""

    strips: str
    offsets: list[int]

    @property
    def text(self) -> str:
        """Offsets as base64 of little-endian int32, a dot, the strips."""
        return f"{base64.b64encode(np.array(self.offsets, '<i4').tobytes()).decode()}.{self.strips}"

    @property
    def clips(self) -> int:
        """Clips with pictures."""
        return sum(start < end for start, end in pairwise(self.offsets))


def pictures(dataset: Dataset, clip_ids: Sequence[str], *, budget_bytes: int = BUDGET_BYTES) -> Pictures:
    """Strips of these clips, in the largest size at which all fit into the budget."""
    place = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    strips: list[bytes] = [b""] * len(clip_ids)
    used, encode = 0, None
    with ThreadPoolExecutor() as pool:
        for batch in _previews(dataset, place):
            if encode is None:
                long_side_px, quality = _size(batch, len(clip_ids), budget_bytes)
                encode = partial(strip, long_side_px=long_side_px, quality=quality)
            for (i, _), content in zip(batch, pool.map(encode, (jpegs for _, jpegs in batch)), strict=True):
                if used + len(content) <= budget_bytes:
                    strips[i] = content
                    used += len(content)
    offsets, length = [0], 0
    for content in strips:
        length += 4 * ((len(content) + 2) // 3)  # of its base64
        offsets.append(length)
    return Pictures(strips="".join(base64.b64encode(content).decode() for content in strips), offsets=offsets)


def strip(jpegs: Jpegs, long_side_px: int, quality: int) -> bytes:
    """The pictures side by side as WebP, resized to the first one; empty if one of them cannot be read."""
    tiles = [tile for jpeg in jpegs if (tile := _tile(jpeg, long_side_px)) is not None]
    if len(tiles) != len(jpegs):
        return b""
    width, height = tiles[0].size
    joined = Image.new("RGB", (width * len(tiles), height))
    for i, tile in enumerate(tiles):
        joined.paste(tile if tile.size == (width, height) else tile.resize((width, height)), (i * width, 0))
    written = io.BytesIO()
    joined.save(written, "WEBP", quality=quality, method=2)
    return written.getvalue()


def _previews(dataset: Dataset, place: Mapping[str, int]) -> Iterator[list[tuple[int, Jpegs]]]:
    """Batches of (place of the clip, its JPEGs) from at most `READ_BYTES` of files, in an order that favors no source:
    of a dataset too large to be read, the clips with pictures are a random sample."""
    read_bytes, parts = 0, dataset.parts("previews")
    for part in Random(0).sample(parts, len(parts)):
        path = dataset.file("previews", f"{part}.parquet")
        ids = dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist()
        if not any(clip_id in place for clip_id in ids):
            continue
        size_bytes = dataset.fs.size(path)
        if read_bytes and read_bytes + size_bytes > READ_BYTES:
            return
        read_bytes += size_bytes
        with dataset.fs.open(path, "rb") as file:
            for rows in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=["clip_id", "first", "middle", "last"]):
                wanted = [i for i, clip_id in enumerate(rows["clip_id"].to_pylist()) if clip_id in place]
                batch = [
                    (place[row["clip_id"]], (row["first"], row["middle"], row["last"]))
                    for row in rows.take(pa.array(wanted, pa.int64())).to_pylist()
                ]
                if batch:
                    yield batch


def _size(batch: Sequence[tuple[int, Jpegs]], clips: int, budget_bytes: int) -> tuple[int, int]:
    """The largest size at which all clips fit, estimated from the first batch."""
    tried = [jpegs for _, jpegs in batch[:: max(1, len(batch) // _TRIED)]]
    for long_side_px, quality in _SIZES[:-1]:
        mean_bytes = sum(len(strip(jpegs, long_side_px, quality)) for jpegs in tried) / len(tried)
        if mean_bytes * clips <= 0.8 * budget_bytes:
            return long_side_px, quality
    return _SIZES[-1]


def _tile(jpeg: bytes | None, long_side_px: int) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(jpeg or b""), formats=["JPEG"]) as image:
            if max(image.size) > _LARGEST_SIDE_PX:
                return None
            wide = image.width >= image.height  # with both sides given, Pillow would not decode at reduced size
            image.draft("RGB", (long_side_px, 1) if wide else (1, long_side_px))
            tile = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for unreadable files
        return None
    shrink = long_side_px / max(tile.size)
    if shrink < 1:
        size = (max(1, round(tile.width * shrink)), max(1, round(tile.height * shrink)))
        tile = tile.resize(size, Image.Resampling.BOX)
    return tile
