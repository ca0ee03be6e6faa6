"""Take the clips of removed sources out of a shard folder: tars, records, clips.parquet and index.json.

The bytes of all other samples are copied as they are, in their order; a tar that loses its last sample stays as an
empty one, so that names keep their numbers. While tars are rewritten, the folder has neither index.json nor
clips.parquet, so that nothing reads it as complete.
"""

import hashlib
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from clipmill import storage
from clipmill.columns import with_values
from clipmill.errors import UserError
from clipmill.formats import SHARDS
from clipmill.shard_folder import (
    INDEX,
    FailedClip,
    Members,
    ShardRecord,
    index_of,
    read_plan,
    read_record,
    write_index,
    write_plan,
    write_record,
)
from curation.dataset.schemas import source_of
from curation.shards.places import CATALOG, check_catalog, files_of, write_catalog
from curation.shards.summed import Summed

_COPY_BYTES = 1 << 20
_OF_RUNS = {"run.json", "heartbeat.json"}
_ASIDE = {INDEX: "before-removal.json", CATALOG: "before-removal.parquet"}


@dataclass(frozen=True, kw_only=True)
class HeldShard:
    """A tar with samples of removed sources."""

    name: str
    samples: int


def shards_with(folder_url: str, source_ids: Collection[str]) -> list[HeldShard]:
    """The tars of a folder that hold samples of these sources, in order. Raises UserError if a record is damaged."""
    held = []
    for name, record in _records(folder_url).items():
        samples = sum(source_of(key) in source_ids for key in _keys(folder_url, name, record))
        if samples:
            held.append(HeldShard(name=name, samples=samples))
    return held


def remove_from_shards(
    folder_url: str, source_ids: Collection[str], version: int, check: Callable[[], None] = lambda: None
) -> None:
    """Rewrite the tars of a folder that hold samples of these sources, and what lists them.

    A folder that `clipmill shard` had not finished is emptied instead: a rerun writes it. After a kill, call it again.
    `version` of the dataset is the one that lacks the sources; `check` raises if another run owns the folder.
    """
    fs, folder = storage.filesystem(folder_url)
    if not any(storage.exists(fs, f"{folder}/{name}") for name in (INDEX, _ASIDE[INDEX])):
        _empty(folder_url, check)
        return
    if not any(storage.exists(fs, f"{folder}/{name}") for name in (CATALOG, _ASIDE[CATALOG])):
        check_catalog(folder_url)
    for name, aside in _ASIDE.items():
        if storage.exists(fs, f"{folder}/{name}"):
            check()
            storage.write_bytes(fs, f"{folder}/{aside}", storage.read_bytes(fs, f"{folder}/{name}"))
            storage.remove(fs, f"{folder}/{name}")
    records = {}
    for name, record in _records(folder_url).items():
        check()
        if record is None:  # a tar that no index ever listed
            storage.remove(fs, f"{folder}/{name}")
        else:
            records[name] = _rewritten(folder_url, record, source_ids, check)
    check()
    _write_lists(folder_url, records, source_ids, version)
    for aside in _ASIDE.values():
        storage.remove(fs, f"{folder}/{aside}")
    storage.remove_leftovers(fs, folder)


def check_rewritable(folder_url: str) -> None:
    """Raise UserError if a finished folder lacks a tar or a record, or lists samples that its records do not have."""
    fs, folder = storage.filesystem(folder_url)
    if not storage.exists(fs, f"{folder}/{INDEX}"):
        return
    check_catalog(folder_url)
    records = _records(folder_url)
    samples = storage.read_parquet(fs, f"{folder}/{CATALOG}", ["shard", "key"]).to_pylist()
    listed = {(row["shard"], row["key"]) for row in samples}
    there = {(n, key) for n, r in records.items() if r is not None and r.members is not None for key in r.members.keys}
    if listed != there or None in records.values():
        raise UserError(
            f"{folder_url} is damaged: {CATALOG} lists {len(listed):,} samples, the tars and their records have "
            f"{len(there):,} of them. Write the shards again, delete the folder, or only list its tars (--shards list)"
        )


def is_being_rewritten(folder_url: str) -> bool:
    """Whether a run died while it rewrote the folder."""
    fs, folder = storage.filesystem(folder_url)
    return any(storage.exists(fs, f"{folder}/{aside}") for aside in _ASIDE.values())


def _records(folder_url: str) -> dict[str, ShardRecord | None]:
    """Tar -> its record; None if it has none."""
    fs, folder = storage.filesystem(folder_url)
    names = (path.rpartition("/")[2] for path in storage.list_files(fs, folder, ".tar"))
    try:
        return {name: read_record(folder_url, name) for name in names}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"a record in {folder_url} is damaged ({error}): rerun `clipmill shard` first") from error


def _keys(folder_url: str, name: str, record: ShardRecord | None) -> Collection[str]:
    """Every clip that a tar or its record names."""
    failed = {clip.clip_id for clip in record.failed} if record else set()
    if record is not None and record.members is not None:
        return {*record.members.keys, *failed}
    fs, folder = storage.filesystem(folder_url)
    with _explained(fs, f"{folder}/{name}"), fs.open(f"{folder}/{name}", "rb") as file:
        return failed | {key for key, _, _ in _samples(file)}


@contextmanager
def _explained(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Translate errors of reading a tar into a UserError."""
    try:
        with storage.explained("read", fs, path):
            yield
    except tarfile.TarError as error:
        raise UserError(
            f"{storage.shown(fs, path)} is damaged ({error}): rerun `clipmill shard`, which writes it again, or delete "
            "the folder"
        ) from error


def _empty(folder_url: str, check: Callable[[], None]) -> None:
    fs, folder = storage.filesystem(folder_url)
    for suffix in (".tar", ".json", CATALOG):
        for path in storage.list_files(fs, folder, suffix):
            if path.rpartition("/")[2] not in _OF_RUNS:
                check()
                storage.remove(fs, path)
    storage.remove_leftovers(fs, folder)


def _rewritten(
    folder_url: str, record: ShardRecord, source_ids: Collection[str], check: Callable[[], None]
) -> ShardRecord:
    """The record of a tar without these sources, which is rewritten if it or its record has some.

    All is derived from the tar itself: a killed run may have replaced it, but not its record.
    """
    if not any(source_of(key) in source_ids for key in _keys(folder_url, record.name, record)):
        return record
    fs, folder = storage.filesystem(folder_url)
    path = f"{folder}/{record.name}"
    keys: list[str] = []
    ranges: dict[str, list[tuple[int, int] | None]] = {}
    with _explained(fs, path), fs.open(path, "rb") as old, storage.atomic_write(fs, path) as new:
        summed = Summed(new)
        for key, (start, end), files in _samples(old):
            if source_of(key) in source_ids:
                continue
            moved = summed.bytes - start
            _copy(old, start, end, summed)
            keys.append(key)
            for extension in {*ranges, *files}:
                before = ranges.setdefault(extension, [None] * (len(keys) - 1))
                before.append((files[extension][0] + moved, files[extension][1]) if extension in files else None)
        expected = {
            key for key in (record.members.keys if record.members else keys) if source_of(key) not in source_ids
        }
        if expected != set(keys):
            raise tarfile.ReadError(f"expected {len(expected)} samples of other sources, got {len(keys)}")
        summed.write(b"\0" * _padding(summed.bytes))
        check()
    rewritten = replace(
        record,
        samples=len(keys),
        bytes=summed.bytes,
        sha256=summed.digest.hexdigest(),
        fingerprint=None,
        failed=tuple(clip for clip in record.failed if source_of(clip.clip_id) not in source_ids),
        members=Members(keys=tuple(keys), ranges={name: tuple(found) for name, found in sorted(ranges.items())}),
    )
    write_record(folder_url, rewritten)
    return rewritten


def _samples(file: BinaryIO) -> Iterator[tuple[str, tuple[int, int], dict[str, tuple[int, int]]]]:
    """Key, bytes from its first header to its last padding, and files by extension, of each sample of a tar."""
    key, start, files = None, 0, dict[str, tuple[int, int]]()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        end = 0
        for member in tar:
            name, _, extension = member.name.partition(".")
            if name != key:
                if key is not None:
                    yield key, (start, member.offset), files
                key, start, files = name, member.offset, {}
            files[extension] = (member.offset_data, member.size)
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if key is not None:
            yield key, (start, end), files


def _copy(old: BinaryIO, start: int, end: int, new: Summed) -> None:
    position = old.tell()
    old.seek(start)
    for at in range(start, end, _COPY_BYTES):
        new.write(old.read(min(_COPY_BYTES, end - at)))
    old.seek(position)


def _padding(size: int) -> int:
    """Zeros at the end of a tar: two blocks, and up to a whole record."""
    return 2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE


def _write_lists(
    folder_url: str, records: Mapping[str, ShardRecord], source_ids: Collection[str], version: int
) -> None:
    """plan.json, clips.parquet and, last, index.json of the tars that are left."""
    fs, folder = storage.filesystem(folder_url)
    gone, dataset_version = storage.read_json(fs, f"{folder}/{_ASIDE[INDEX]}", _listed)
    table = _catalog(storage.read_parquet(fs, f"{folder}/{_ASIDE[CATALOG]}"), records, source_ids)
    clips_of, written = _clips(table), []
    for name, record in records.items():
        written.append(_with_totals(record, clips_of.get(name, {})))
        if written[-1] != record:
            write_record(folder_url, written[-1])
    gone = [clip for clip in gone if source_of(clip.clip_id) not in source_ids]
    clips = sum(map(len, clips_of.values()))
    plan = _plan(folder_url, written, clips_of, version)
    write_plan(folder_url, plan)
    write_catalog(folder_url, table)
    totals = {
        "duration_s": round(sum(record.duration_s or 0.0 for record in written), 6),
        "selected": plan["clips"] + len(gone),
        "clips": clips,
        "gone": len(gone),
        "uncaptioned": sum(not caption for of_shard in clips_of.values() for _, caption in of_shard.values()),
    }
    more = {"dataset_version": dataset_version, "gone": [asdict(clip) for clip in gone]}
    write_index(folder_url, index_of(plan, written, totals=totals, **more))


def _clips(table: pa.Table) -> dict[str, dict[str, tuple[float, str]]]:
    """Tar -> its clips, in order, with duration in seconds and caption. A clip may have several pictures."""
    clips: dict[str, dict[str, tuple[float, str]]] = {}
    for row in table.select(["shard", "clip_id", "duration_s", "caption"]).to_pylist():
        clips.setdefault(row["shard"], {})[row["clip_id"]] = row["duration_s"], row["caption"]
    return clips


def _with_totals(record: ShardRecord, clips: Mapping[str, tuple[float, str]]) -> ShardRecord:
    """The record with its number of clips and their footage, if it was rewritten."""
    if record.fingerprint is not None:
        return record
    duration_s = round(sum(duration_s for duration_s, _ in clips.values()), 6)
    return replace(record, duration_s=duration_s, clips=record.clips and len(clips))


def _listed(index: dict[str, Any]) -> tuple[list[FailedClip], int]:
    """What only index.json records: selected clips that are in no tar, and the dataset's version."""
    return [FailedClip(**clip) for clip in index["gone"]], int(index["dataset_version"])


def _catalog(table: pa.Table, records: Mapping[str, ShardRecord], source_ids: Collection[str]) -> pa.Table:
    """The rows that are left, with the places of their files in the rewritten tars."""
    rows = [i for i, clip_id in enumerate(table["clip_id"].to_pylist()) if source_of(clip_id) not in source_ids]
    table = table.take(pa.array(rows, pa.int64()))
    row_of = {name: {key: i for i, key in enumerate(r.members.keys)} for name, r in records.items() if r.members}
    places = []
    for shard, key in zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True):
        places.append({"shard_bytes": records[shard].bytes, **files_of(records[shard], row_of[shard][key])})
    for name in ("shard_bytes", "extension", "offset", "size", "files"):
        table = with_values(table, name, [place[name] for place in places])
    return table


def _plan(
    folder_url: str, records: Sequence[ShardRecord], clips_of: Mapping[str, Iterable[str]], version: int
) -> dict[str, Any]:
    """plan.json for the clips that are left, with the versions of the dataset that took some out."""
    plan = read_plan(folder_url, SHARDS) or {}
    ids, clips = hashlib.sha256(), 0
    for record in records:
        planned = [*clips_of.get(record.name, ()), *(clip.clip_id for clip in record.failed)]
        clips += len(planned)
        ids.update("\n".join([record.name, *planned, ""]).encode())
    removed = sorted({*plan.get("removed", []), version})
    return {**plan, "clips": clips, "clips_sha256": ids.hexdigest(), "removed": removed}
