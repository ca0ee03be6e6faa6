"""Read footage of clips in a child process with limits: frames, thumbnails, or the clips as files."""

import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from clipmill.errors import SourceError
from clipmill.pipeline import Frames, Need
from curation.dataset.schemas import SCAN_COLUMNS
from curation.inputs.signed import signed_address
from curation.scan.isolation import Isolated
from curation.shards.clip_row import ClipRow
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shards.frames import read_frames, read_thumbnails
from curation.video.decode import Limits
from pipelines.clip_batch import ClipBatch

FOOTAGE_COLUMNS = tuple(name for name in SCAN_COLUMNS if name != "source_captions")
"""Columns of a clip by which its footage is found."""
_ASPECT = 9 / 16
_BATCH_BYTES = 64 << 20
_FILE_BYTES = 4 << 20
"""Of a clip of usual size, for dividing work; larger ones are read all the same."""
_CLIPS_AT_MOST = 256
_EVERY_FRAME = 256
"""Frames of a clip of usual length."""
_of_thread = threading.local()


def is_footage(need: Need) -> bool:
    """Whether a need is met by reading the clip from its source."""
    return isinstance(need, Frames) or need == "file"


def clips_at_once(needs: Sequence[Need], at_least: int = 1) -> int:
    """Number of clips to read at a time: as many as fill about 64 MB with their `needs`, but at least `at_least`."""
    sizes = [_bytes_per_clip(need) for need in needs if is_footage(need)]
    return max(at_least, min(_CLIPS_AT_MOST, _BATCH_BYTES // max(1, sum(sizes))))


def _bytes_per_clip(need: Need) -> int:
    if not isinstance(need, Frames):
        return _FILE_BYTES
    return round((need.count or _EVERY_FRAME) * need.long_side_px**2 * _ASPECT * 3)


def read_footage(batch: ClipBatch, needs: Sequence[Need], limits: Limits) -> None:
    """Fill in frames and files of clips; of a clip whose source cannot be read, the reason."""
    for need in needs:
        if isinstance(need, Frames):
            batch.footage[need] = _filled(batch, need, limits, read_frames, need.count, need.long_side_px, limits)
        elif need == "file":
            files = _filled(batch, need, limits, extract_clips, "clips", ExtractionConfig(limits=limits))
            batch.footage[need] = [file and file.content for file in files]


def remake_thumbnails(batch: ClipBatch, long_side_px: int, limits: Limits) -> None:
    """Fill in the thumbnails as the scan made them."""
    found = _filled(batch, "thumbnails", limits, read_thumbnails, long_side_px, limits)
    batch.thumbnails = [tuple(jpegs or ()) for jpegs in found]


def _filled(batch: ClipBatch, need: Need, limits: Limits, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What the function reads of each clip; None with an entry in `unread` where it fails."""
    found = _read(batch.rows, limits, function, *args)
    batch.unread |= {(i, need): error for i, error in enumerate(found) if isinstance(error, SourceError)}
    return [None if isinstance(each, SourceError) else each for each in found]


def _read(rows: Sequence[ClipRow], limits: Limits, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function in the child returns for the clips of each source, in the order of the rows."""
    answers: dict[str, Any] = {}
    in_order = sorted(rows, key=lambda row: (row["uri"], row["start_pts"]))
    for uri, of_source in groupby(in_order, key=lambda row: row["uri"]):
        clips: list[dict[str, Any]] = [{name: row.get(name) for name in FOOTAGE_COLUMNS} for row in of_source]
        found = _ask(signed_address(uri), clips, limits, function, *args)
        answers |= {clip["clip_id"]: each for clip, each in zip(clips, found, strict=True)}
    return [answers[row["clip_id"]] for row in rows]


def _ask(uri: str, clips: Sequence[ClipRow], limits: Limits, function: Callable[..., Any], *args: Any) -> list[Any]:
    try:
        return list(_child(limits).run_on(uri, function, uri, clips, *args))
    except SourceError as error:  # the child hung or died, or all clips together are too large for one answer
        if len(clips) == 1:
            return [error]
        return [answer for clip in clips for answer in _ask(uri, [clip], limits, function, *args)]


def _child(limits: Limits) -> Isolated:
    """The child of this thread: an `Isolated` belongs to one."""
    if getattr(_of_thread, "limits", None) != limits:
        _of_thread.limits, _of_thread.child = limits, Isolated(limits)
    child: Isolated = _of_thread.child
    return child
