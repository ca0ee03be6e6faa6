"""Clips as files: `data/FOLDER/CLIP_ID.mp4` with `.txt` beside it, for trainers that read folders.

Such trainers ignore metadata: every file is upright H.264 with eight bits, square pixels and no bars, at the requested
frame rate. A clip whose source packets differ is transcoded.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pyarrow as pa

from clipmill import storage
from clipmill.errors import SourceError
from clipmill.shard_folder import Members, ShardRecord, read_record, write_record
from curation.inputs.signed import signed_address
from curation.publish.layouts import path_of
from curation.shards.extract import ClipRow, ExtractedClip, ExtractionConfig, extract_clips
from curation.shards.resample import needs_resampling
from curation.shards.sample import caption_of
from curation.shards.write import Run, ShardPlan, extracted_in_order, failed_clip

_PLAIN = {
    "codec": "h264",
    "pixel_format": "yuv420p",
    "rotation": 0,
    "mirrored": False,
    "sample_aspect_ratio": "1:1",
    "crop": [0, 0, 0, 0],
}


def write_files(
    plan: ShardPlan,
    data_url: str,
    records_url: str,
    *,
    fps: Fraction | None,
    config: ExtractionConfig,
    run: Run = operator.call,
) -> ShardRecord:
    """Write the files of a plan's clips, each whole or not at all, then the record of the plan. Otherwise as
    `curation.shards.write.write_shard`. The record's byte ranges are those of the files: from 0 on."""
    fs, data = storage.filesystem(data_url)
    failed, keys = [], []
    ranges: dict[str, list[tuple[int, int] | None]] = {"mp4": [], "txt": []}
    duration_s = 0.0
    for row, extracted in _plain_clips(plan, fps, config, run):
        if isinstance(extracted, SourceError):
            failed.append(failed_clip(row["clip_id"], extracted))
            continue
        contents = {"mp4": extracted.content, "txt": caption_of(row).encode()}
        for extension, content in contents.items():
            storage.write_bytes(fs, f"{data}/{path_of(row, extension)}", content)
            ranges[extension].append((0, len(content)))
        keys.append(row["clip_id"])
        duration_s += row["duration_s"]
    record = ShardRecord(
        name=plan.name,
        samples=len(keys),
        bytes=sum(size for found in ranges.values() for _, size in filter(None, found)),
        duration_s=duration_s,
        fingerprint=plan.fingerprint,
        failed=tuple(failed),
        members=Members(keys=tuple(keys), ranges={name: tuple(found) for name, found in ranges.items()}),
    )
    write_record(records_url, record)
    return record


def check_files(plan: ShardPlan, records_url: str, sizes: Mapping[str, int]) -> ShardRecord | None:
    """The record of a plan whose files are all there with their sizes; None if they must be written. `sizes`: path
    below `data` -> bytes. A plan with failed clips must be written, which tries them again."""
    try:
        record = read_record(records_url, plan.name)
    except ValueError:
        return None
    if record is None or record.failed or record.members is None or record.fingerprint != plan.fingerprint:
        return None
    rows = {row["clip_id"]: row for row in plan.clips.select(["clip_id", "folder"]).to_pylist()}
    for extension, found in record.members.ranges.items():
        for clip_id, place in zip(record.members.keys, found, strict=True):
            if clip_id not in rows or not place or sizes.get(path_of(rows[clip_id], extension)) != place[1]:
                return None
    return record


def _plain_clips(
    plan: ShardPlan, fps: Fraction | None, config: ExtractionConfig, run: Run
) -> Iterator[tuple[ClipRow, ExtractedClip | SourceError]]:
    for row, first in extracted_in_order(_for_files(plan, fps), config, run, fps):
        extracted = first
        if isinstance(first, ExtractedClip) and not _is_plain(first):
            clip = {**row, "extraction": "transcode"}
            try:
                (extracted,) = run(extract_clips, signed_address(row["uri"]), [clip], plan.kind, config, fps)
            except SourceError as error:
                extracted = error
        yield row, extracted


def _for_files(plan: ShardPlan, fps: Fraction | None) -> ShardPlan:
    """The plan with clips of another rate marked for transcoding. Those at the right rate keep their packets."""
    rows = plan.clips.to_pylist()
    how = ["transcode" if needs_resampling(row, fps) else row["extraction"] for row in rows]
    at = plan.clips.column_names.index("extraction")
    return replace(plan, clips=plan.clips.set_column(at, "extraction", pa.array(how, pa.string())))


def _is_plain(extracted: ExtractedClip) -> bool:
    shape: Mapping[str, Any] = extracted.shape
    return all(shape.get(key) == value for key, value in _PLAIN.items())
