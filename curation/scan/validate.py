"""Validate a scan returned by a child process: it must fit the tables and belong to the requested source.

The child ran native code on untrusted bytes. Rows of other types would fail when a part is written, and rows with
another source's id would replace that source.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from clipmill.errors import SourceError
from curation.dataset.schemas import CLIPS, SOURCES
from curation.inputs.list_cells import MAX_METADATA_NAMES
from curation.inputs.stats import Source
from curation.scan.rows import identity

if TYPE_CHECKING:
    from curation.scan.one_pass import Scan

_LONGEST_SIDE_PX = 4096
_SCANNED = CLIPS.append(SOURCES.field("captions"))
"""A clip comes with its captions; its source stores them."""
_EXACT_BITS = {16: 11, 32: 24, 64: 53}
"""Width of a floating-point column -> bits of the integers that it accepts, sign included."""


def check_scan(scanned: "Scan", source: Source) -> None:
    """Raises SourceError (crashed) if a row does not match a scan of `source`."""
    expected = identity(source)
    try:
        _check(scanned.source.get("status") == "ok", "status")
        listed = expected.pop("metadata")
        _check(all(scanned.source.get(name) == value for name, value in expected.items()), "source_id")
        _check(listed.items() <= scanned.source["metadata"].items(), "metadata")
        _check(len(scanned.source["metadata"]) <= len(listed) + MAX_METADATA_NAMES, "metadata")
        _check_row(scanned.source, SOURCES)
        times_s = scanned.frame_times_s
        _check(times_s is None or len(times_s) == scanned.source["frames"], "frame_times_s")
        _check(len(scanned.clips) == len(scanned.thumbnails), "thumbnails")
        for clip, thumbnails in zip(scanned.clips, scanned.thumbnails, strict=True):
            _check_row(clip, _SCANNED)
            _check(isinstance(clip["captions"], list), "captions")
            _check(clip["source_id"] == source.source_id and clip["uri"] == source.uri, "source_id")
            _check(clip["clip_id"].startswith(f"{source.source_id}-") and clip["clip_id"].isascii(), "clip_id")
            _check(len(thumbnails) in (0, 3) and len(clip["thumbnail_pts"]) == len(thumbnails), "thumbnails")
            _check(all(map(_is_thumbnail, thumbnails)), "thumbnails")
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_a_scan(f"{type(error).__name__}: {error}") from error


def _check_row(row: Mapping[str, Any], schema: pa.Schema) -> None:
    for name, value in row.items():
        _check(name in schema.names and fits(value, schema.field(name).type), name)


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a plain value has an Arrow type, without conversion; null matches every type."""
    if value is None:
        return True
    if pa.types.is_nested(kind):
        return _fits_nested(value, kind)
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, int):
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            return False
        bits = kind.bit_width if pa.types.is_integer(kind) else _EXACT_BITS[kind.bit_width]
        return -(1 << bits) <= 2 * value < 1 << bits
    return (isinstance(value, float) and pa.types.is_floating(kind)) or (
        isinstance(value, str) and pa.types.is_string(kind)
    )


def _fits_nested(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        pairs = list(value.items()) if isinstance(value, dict) else [(None, None)]
        return all(key is not None and fits(key, kind.key_type) and fits(item, kind.item_type) for key, item in pairs)
    if pa.types.is_list(kind):
        return isinstance(value, list | tuple) and all(fits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        known = isinstance(value, dict) and value.keys() <= types.keys()
        return known and all(fits(item, types[name]) for name, item in value.items())
    return False


def _is_thumbnail(jpeg: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return max(image.size) <= _LONGEST_SIDE_PX
    except (OSError, Image.DecompressionBombError):
        return False


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise _not_a_scan(what[:60])


def _not_a_scan(what: str) -> SourceError:
    return SourceError("crashed", f"invalid rows from the scan process ({what})")
