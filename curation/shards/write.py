"""Selected spans -> WebDataset tar files: the division into shards, the writing of one, the check on a rerun.

A sample is `{clip_id}.mp4` (or `.jpg`), `.txt` (the newest caption) and `.json` (see
`curation.shards.sample`). Each shard has a small record beside it, `clips-000000.json`, written after it: the tar's
checksum is known to a rerun from there, and shards can be written on many machines that share nothing but the folder.
"""

import hashlib
import json
import math
import operator
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pyarrow as pa
from pydantic import Field

from clipmill import storage
from clipmill.config import Config
from clipmill.errors import SourceError, UserError
from clipmill.public import public_addresses, public_text
from clipmill.shard_folder import FailedClip, Members, ShardRecord, read_record, write_record
from clipmill.spool import Spool
from curation.inputs.signed import signed_address
from curation.shards.clip_row import ClipRow, ExtractedClip
from curation.shards.existing import ExistingClips
from curation.shards.extract import ExtractionConfig, Kind, extract_clips
from curation.shards.resample import needs_resampling
from curation.shards.sample import PICTURE_MARK, caption_of, sample_json
from curation.shards.summed import Summed

_FOOTAGE_PER_CALL_S = 60.0
_SPOOL_IN_MEMORY_BYTES = 64 << 20
_COPY_BYTES = 1 << 20


class ShardConfig(Config):
    """Division of a selection into shards."""

    seed: int = 0
    """Seed of the shuffle across sources."""
    clips_per_shard: int = Field(100, ge=1)
    """Maximum number of samples per clip shard; all shards get nearly the same number."""
    images_per_shard: int = Field(1000, ge=1)
    """Maximum number of samples per image shard."""
    extraction: ExtractionConfig = Field(default_factory=ExtractionConfig)
    """Extraction of each clip or image."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A planned shard: its file name and the rows of its clips, in order of writing."""

    name: str
    kind: Kind
    clips: pa.Table
    existing: ExistingClips | None = None
    """Those of its clips that are in other shards already."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the rows: identifies the content of the shard."""
        digest = hashlib.sha256(self.kind.encode())
        for row in self.clips.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """The record of a complete shard, or why it must be written."""

    record: ShardRecord | None
    problem: str | None


Run = Callable[..., Any]
"""Calls a function with arguments: itself, or in a child process as `curation.scan.isolation.Isolated.run` does."""


def plan_shards(
    clips: pa.Table | Iterable[ClipRow], *, kind: Kind, config: ShardConfig | None = None
) -> list[ShardPlan]:
    """Divide clips (rows of the joined view) into shards of even size, shuffled across sources.

    Each source's clips are spread evenly over all shards. The result depends only on the clip ids and the seed, not on
    the order of rows. Raises UserError for a duplicate clip_id.
    """
    config = config or ShardConfig()
    table = clips if isinstance(clips, pa.Table) else pa.Table.from_pylist([dict(clip) for clip in clips])
    if not table.num_rows:
        return []
    table = _with_public_addresses(table)
    ids, sources = table["clip_id"].to_pylist(), table["source_id"].to_pylist()
    if len(set(ids)) < len(ids):
        raise UserError("duplicate clip_id in the rows to shard: check the tables in scores/ for repeated clip_ids")
    rank = {clip_id: _hash(config.seed, clip_id) for clip_id in ids}
    order = _spread(ids, sources, rank, config.seed)
    clips_of_images = max(1, config.images_per_shard // config.extraction.frames_per_clip)
    per_shard = config.clips_per_shard if kind == "clips" else clips_of_images
    shards = math.ceil(len(order) / per_shard)
    bounds = [len(order) * i // shards for i in range(shards + 1)]
    plans = []
    for i in range(shards):
        inside = sorted(order[bounds[i] : bounds[i + 1]], key=lambda row: rank[ids[row]])
        plans.append(ShardPlan(name=f"{kind}-{i:06d}.tar", kind=kind, clips=table.take(inside)))
    return plans


def write_shard(
    plan: ShardPlan, folder_url: str, *, selection: str, config: ShardConfig | None = None, run: Run = operator.call
) -> ShardRecord:
    """Write one tar atomically, then its record. Deterministic: the same plan gives the same bytes.

    Clips that cannot be extracted are in the record's `failed` with their reason; the others are written. `run` calls
    the code that reads videos: pass `Isolated(config.extraction.limits).run`, so that a video that hangs or crashes the
    decoder only loses its own clips. Raises UserError if the folder cannot be written or is full.
    """
    from webdataset.writer import TarWriter  # imports torch where there is one: not in children that only read videos

    config = config or ShardConfig()
    fs, folder = storage.filesystem(folder_url)
    duration_s, clips, failed = 0.0, 0, []
    keys: list[str] = []
    ranges: dict[str, list[tuple[int, int] | None]] = {}
    with storage.atomic_write(fs, f"{folder}/{plan.name}") as file:
        summed = Summed(file)
        with TarWriter(summed, encoder=False, mtime=0, user="clipmill", group="clipmill") as tar:
            for row, extracted in extracted_in_order(plan, config.extraction, run):
                if isinstance(extracted, SourceError):
                    failed.append(failed_clip(row["clip_id"], extracted))
                    continue
                for sample in _samples(row, extracted, selection):
                    tar.write(sample)
                    keys.append(sample["__key__"])
                    for extension, found in _ranges(keys[-1], tar.tarstream).items():
                        ranges.setdefault(extension, []).append(found)
                clips, duration_s = clips + 1, duration_s + row["duration_s"]
    record = ShardRecord(
        name=plan.name,
        samples=len(keys),
        clips=clips,
        bytes=summed.bytes,
        sha256=summed.digest.hexdigest(),
        duration_s=duration_s,
        fingerprint=plan.fingerprint,
        failed=tuple(failed),
        members=Members(keys=tuple(keys), ranges={name: tuple(found) for name, found in ranges.items()}),
    )
    write_record(folder_url, record)
    return record


def check_shard(plan: ShardPlan, folder_url: str, *, read: bool = True) -> ShardCheck:
    """Whether a planned shard is complete as recorded: its rows, its size and, with `read`, its checksum.

    A shard with failed clips counts as complete; write it again to retry those clips.
    """
    try:
        record = read_record(folder_url, plan.name)
    except UserError:
        raise
    except ValueError:
        return ShardCheck(record=None, problem="its record is damaged")
    if record is None:
        return ShardCheck(record=None, problem="not written yet")
    problem = _problem(folder_url, plan, record, read=read)
    return ShardCheck(record=None if problem else record, problem=problem)


def _with_public_addresses(table: pa.Table) -> pa.Table:
    """The rows with the columns root and path, which stand for `uri` in the shards."""
    uris = table["uri"].to_pylist()
    addresses = public_addresses(uris)
    table = table.drop_columns([name for name in ("root", "path") if name in table.column_names])
    for name in ("root", "path"):
        table = table.append_column(name, pa.array([getattr(addresses[uri], name) for uri in uris], pa.string()))
    return table


def _spread(ids: list[str], sources: list[str], rank: Mapping[str, int], seed: int) -> list[int]:
    """Row numbers in an order in which each source's clips are evenly spaced, from a random first place on."""
    by_source: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        by_source.setdefault(source, []).append(row)
    positions = []
    for source, rows in by_source.items():
        first = _hash(seed, source) / 2**64
        shuffled = sorted(rows, key=lambda row: rank[ids[row]])
        positions += [((k + first) / len(rows), rank[ids[row]], row) for k, row in enumerate(shuffled)]
    return [row for _, _, row in sorted(positions)]


def _hash(seed: int, text: str) -> int:
    """64 bits that depend on nothing but the arguments, with any version of any library."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "big")


def extracted_in_order(
    plan: ShardPlan, config: ExtractionConfig, run: Run, fps: Fraction | None = None
) -> Iterator[tuple[ClipRow, ExtractedClip | SourceError]]:
    """Every row with its file, at the rate `fps` if one is given and it is transcoded. Clips that are in shards at that
    rate already (`ShardPlan.existing`) are copied.

    Clips of one source are extracted together, and wait on disk until it is their turn.
    """
    rows, existing = plan.clips.to_pylist(), plan.existing
    known = existing.places if existing else {}
    copied = {row["clip_id"] for row in rows if row["clip_id"] in known and not needs_resampling(row, fps)}
    calls = _calls([row for row in rows if row["clip_id"] not in copied])
    waiting: dict[str, Any] = {}
    with Spool(_SPOOL_IN_MEMORY_BYTES) as spool:
        for row in rows:
            clip_id = row["clip_id"]
            there = existing.read(clip_id) if existing and clip_id in copied else None
            if there is not None:
                yield row, there
                continue
            if clip_id not in waiting:
                together = calls.get(clip_id, [row])
                results = _extract_together(row["uri"], together, plan.kind, config, run, fps)
                for other, extracted in zip(together, results, strict=True):
                    waits = other is not row and isinstance(extracted, ExtractedClip)
                    waiting[other["clip_id"]] = _Spooled.put(spool, extracted) if waits else extracted
            extracted = waiting.pop(clip_id)
            yield row, extracted.get(spool) if isinstance(extracted, _Spooled) else extracted


def _extract_together(
    uri: str, together: Sequence[ClipRow], kind: Kind, config: ExtractionConfig, run: Run, fps: Fraction | None
) -> list[ExtractedClip | SourceError]:
    """Clips of one source. Where their files together are too large for one answer, each is extracted by itself."""
    rate = () if fps is None else (fps,)
    try:
        extracted: list[ExtractedClip | SourceError] = run(
            extract_clips, signed_address(uri), together, kind, config, *rate
        )
    except SourceError as error:  # the child that should have extracted them hung or died
        if error.kind == "too_large" and len(together) > 1:
            alone = (_extract_together(uri, [clip], kind, config, run, fps) for clip in together)
            return [result for results in alone for result in results]
        return [error] * len(together)
    return extracted


def _calls(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """clip_id -> the clips extracted in one call: of one source, next to each other, about a minute of footage."""
    calls: dict[str, list[dict[str, Any]]] = {}
    together: list[dict[str, Any]] = []
    footage_s = 0.0
    for row in sorted(rows, key=lambda r: (r["source_id"], r["start_pts"])):
        footage_s += row["duration_s"]
        if not together or row["source_id"] != together[0]["source_id"] or footage_s > _FOOTAGE_PER_CALL_S:
            together, footage_s = [], row["duration_s"]
        together.append(row)
        calls[row["clip_id"]] = together
    return calls


@dataclass(frozen=True, kw_only=True)
class _Spooled:
    """An extracted clip whose content lies in a temporary file."""

    clip: ExtractedClip
    start: int
    size: int

    @classmethod
    def put(cls, spool: Spool, clip: Any) -> "_Spooled":
        start = spool.put(clip.content)
        return cls(clip=replace(clip, content=b""), start=start, size=len(clip.content))

    def get(self, spool: Spool) -> ExtractedClip:
        return replace(self.clip, content=spool.get(self.start, self.size))


def _samples(row: ClipRow, extracted: ExtractedClip, selection: str) -> Iterator[dict[str, Any]]:
    """The clip as a sample, or several pictures of it as one each."""
    for i, (content, shape) in enumerate(extracted.files()):
        key = row["clip_id"] if not extracted.pictures else f"{row['clip_id']}{PICTURE_MARK}{i}"
        yield _sample(key, row, replace(extracted, content=content, shape=shape), selection)


def _sample(key: str, row: ClipRow, extracted: ExtractedClip, selection: str) -> dict[str, Any]:
    metadata = json.dumps(sample_json(row, extracted, selection), ensure_ascii=False)
    return {
        "__key__": key,
        extracted.suffix: extracted.content,
        "txt": caption_of(row).encode(),
        "json": metadata.encode(),
    }


def failed_clip(clip_id: str, error: SourceError) -> FailedClip:
    """The clip in a record, without paths and keys of this machine."""
    return FailedClip(clip_id=clip_id, error_kind=error.kind, error=public_text(error.message))


def _ranges(written_key: str, tar: tarfile.TarFile) -> dict[str, tuple[int, int]]:
    """Extension -> offset and size of each file of the sample that was written last. Files fill whole blocks."""
    ranges, end = {}, tar.offset
    for member in reversed(tar.getmembers()):
        key, _, extension = member.name.partition(".")
        if key != written_key:
            break
        start = end - math.ceil(member.size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        ranges[extension] = start, member.size
        end = start - tarfile.BLOCKSIZE  # before its header
    return dict(sorted(ranges.items()))


def _problem(folder_url: str, plan: ShardPlan, record: ShardRecord, *, read: bool) -> str | None:
    fs, folder = storage.filesystem(folder_url)
    path = f"{folder}/{plan.name}"
    if record.fingerprint != plan.fingerprint:
        return "it was written from different rows"
    if record.members is None:
        return "its record has no byte ranges"
    if not storage.exists(fs, path):
        return "its tar is missing"
    size = fs.size(path)
    if size != record.bytes:
        return f"its size is {size} bytes, expected {record.bytes}"
    if read:
        summed = Summed(None)
        with fs.open(path, "rb") as file:
            while block := file.read(_COPY_BYTES):
                summed.write(block)
        if summed.digest.hexdigest() != record.sha256:
            return "checksum mismatch"
    return None
