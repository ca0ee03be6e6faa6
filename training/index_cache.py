"""Cache the index of shards across runs: in the run's folder or, for tars of other tools, beside them for all runs.

An index beside tars is untrusted, since it may be copied along with them: ranges are checked against the tar's size.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from clipmill import storage
from clipmill.errors import UserError
from clipmill.shard_folder import FailedClip, Members, ShardRecord, parse_record, record_json
from training.shards import MAX_FILE_BYTES, MAX_NAME_BYTES, Keys, Shard

BESIDE = "clipmill.index"
"""Name of the index in a folder of other tools' tars."""
INCOMPLETE = "incomplete"
"""Error kind of samples whose files are missing or unusable."""
_FORMAT = b"clipmill shard index 5"
_MAX_SLACK_BYTES = 1 << 20
_MAX_STORED_BYTES = 1 << 30

Stamp = tuple[int, str]
"""Size in bytes of a tar, and its mtime in ns or, in a store, its version."""
Known = dict[str, tuple[Stamp, Shard]]
"""Path -> the tar's stamp when it was indexed, and its samples."""


def read_index(cache: Path | None, folders: Mapping[str, str]) -> Known:
    """Entries of the run's cache and of the indexes in these folders: path or address without credentials -> path or
    URL. Missing and damaged files are ignored.
    """
    known: Known = {}
    for folder, url in folders.items():
        known |= _read(f"{url}/{BESIDE}", folder)
    return known | (_read(str(cache), "") if cache is not None else {})


def write_index(cache: Path | None, folders: Mapping[str, str], known: Known, fresh: Sequence[str]) -> None:
    """Store `known`, of which `fresh` are new: beside the tars in `folders` (as in `read_index`) if these are writable,
    the rest in the run's cache. Raises UserError if the cache cannot be written.
    """
    pending = set(fresh)
    for folder in {os.path.dirname(path) for path in fresh} & folders.keys():
        inside = {path: entry for path, entry in known.items() if os.path.dirname(path) == folder}
        there = {path: entry for path, entry in inside.items() if "://" in path or os.path.exists(path)}
        with suppress(OSError, UserError):
            _write(f"{folders[folder]}/{BESIDE}", there)
            pending -= inside.keys()
    if cache is not None and pending:
        _write(str(cache), known)


def _read(file: str, folder: str) -> Known:
    known: Known = {}
    with suppress(OSError, UserError, ValueError, RecursionError, OverflowError):
        content = storage.read_limited(*storage.filesystem(file), max_bytes=_most_bytes(folder))
        header, *lines = content.splitlines()
        if header != _FORMAT:
            return {}
        for line in lines:
            record = parse_record(line)
            shard = _shard_of(record, folder)
            known[shard.path] = (record.bytes, record.fingerprint or ""), shard
    return known


def _most_bytes(folder: str) -> int:
    """Size limit of an index beside tars: on a disk, no sample takes more space in it than in its tar. The run's own
    has none.
    """
    if not folder:
        return sys.maxsize - 1
    if "://" in folder:
        return _MAX_STORED_BYTES
    with os.scandir(folder) as entries:
        return _MAX_SLACK_BYTES + sum(entry.stat().st_size for entry in entries if entry.name.endswith(".tar"))


def _write(file: str, known: Mapping[str, tuple[Stamp, Shard]]) -> None:
    fs, target = storage.filesystem(file)
    beside = os.path.basename(target) == BESIDE
    with storage.atomic_write(fs, target) as opened:
        opened.write(_FORMAT + b"\n")
        for path, ((_, version), shard) in known.items():
            opened.write(record_json(_record_of(shard, version, os.path.basename(path) if beside else path)) + b"\n")


def _record_of(shard: Shard, version: str, name: str) -> ShardRecord:
    ranges = {
        extension: tuple(None if offset < 0 else (offset, size) for offset, size in ranges_N2.tolist())
        for extension, ranges_N2 in zip(shard.extensions, shard.ranges_NE2.transpose(1, 0, 2), strict=True)
    }
    return ShardRecord(
        name=quote_from_bytes(os.fsencode(name)),  # names of files need not be UTF-8
        samples=len(shard),
        bytes=shard.size_bytes,
        fingerprint=version,
        problem=shard.problem,
        failed=tuple(FailedClip(clip_id=key, error_kind=INCOMPLETE, error=reason) for key, reason in shard.broken),
        noted=dict(shard.noted) or None,
        members=Members(keys=tuple(shard.keys[row] for row in range(len(shard))), ranges=ranges),
    )


def _shard_of(record: ShardRecord, folder: str) -> Shard:
    """The shard of a record; `folder` is given for a record that names a tar beside it.

    Raises ValueError for a record without members, and for ranges beyond the size of the tar.
    """
    members, name = record.members, os.fsdecode(unquote_to_bytes(record.name))
    if (
        members is None
        or (folder and "/" in name)
        or not members.ranges.keys() <= MAX_FILE_BYTES.keys()
        or any(len(key.encode()) > MAX_NAME_BYTES for key in members.keys)
    ):
        raise ValueError("expected the members of a tar")
    ranges_NE2 = np.full((len(members.keys), len(members.ranges), 2), -1, np.int64)
    for e, (extension, ranges) in enumerate(members.ranges.items()):
        ranges_NE2[:, e] = [(-1, -1) if place is None else place for place in ranges]
        offsets, sizes = ranges_NE2[:, e].T
        # Not their sum, which overflows.
        if (sizes > MAX_FILE_BYTES[extension]).any() or (offsets > record.bytes - sizes).any():
            raise ValueError("expected ranges within the tar")
    return Shard(
        path=os.path.join(folder, name),
        size_bytes=record.bytes,
        keys=Keys.of(members.keys),
        extensions=tuple(members.ranges),
        ranges_NE2=ranges_NE2,
        problem=record.problem,
        broken=tuple((clip.clip_id, clip.error) for clip in record.failed),
        noted=record.noted or {},
    )
