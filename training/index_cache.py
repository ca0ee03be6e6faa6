"""Cache the index of shards across runs: in the run's folder or, for tars of other tools, beside them for all runs.

An index beside tars is untrusted, since it may be copied along with them: ranges are checked against the tar's size.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from clipmill.atomic import atomic_path
from clipmill.errors import UserError
from clipmill.local_files import open_regular
from clipmill.shard_folder import FailedClip, Members, ShardRecord, parse_record, record_json
from training.shards import MAX_FILE_BYTES, MAX_NAME_BYTES, Keys, Shard

BESIDE = "clipmill.index"
"""Name of the index in a folder of other tools' tars."""
INCOMPLETE = "incomplete"
"""Error kind of samples whose files are missing or unusable."""
_FORMAT = b"clipmill shard index 5"
_MAX_SLACK_BYTES = 1 << 20

Stamp = tuple[int, str]
"""Size in bytes of a tar, and its mtime in ns or, in a store, its version."""
Known = dict[str, tuple[Stamp, Shard]]
"""Path -> the tar's stamp when it was indexed, and its samples."""


def read_index(cache: Path | None, folders: Sequence[str]) -> Known:
    """Entries of the run's cache and of the indexes in these folders. Missing and damaged files are ignored."""
    known: Known = {}
    for folder in folders:
        known |= _read(Path(folder) / BESIDE, folder)
    return known | (_read(cache, "") if cache is not None else {})


def write_index(cache: Path | None, folders: Sequence[str], known: Known, fresh: Sequence[str]) -> None:
    """Store `known`, of which `fresh` are new: beside the tars in `folders` if these are writable, the rest in the
    run's cache. Raises OSError if the cache cannot be written.
    """
    pending = set(fresh)
    for folder in {os.path.dirname(path) for path in fresh} & set(folders):
        inside = {path: entry for path, entry in known.items() if os.path.dirname(path) == folder}
        with suppress(OSError):
            _write(Path(folder) / BESIDE, {path: entry for path, entry in inside.items() if os.path.exists(path)})
            pending -= inside.keys()
    if cache is not None and pending:
        _write(cache, known)


def _read(file: Path, folder: str) -> Known:
    known: Known = {}
    with suppress(OSError, UserError, ValueError, RecursionError, OverflowError):
        with open_regular(str(file)) as opened:
            header, *lines = opened.read(_most_bytes(folder) if folder else -1).splitlines()
        if header != _FORMAT:
            return {}
        for line in lines:
            record = parse_record(line)
            shard = _shard_of(record, folder)
            known[shard.path] = (record.bytes, record.fingerprint or ""), shard
    return known


def _most_bytes(folder: str) -> int:
    """Size limit of an index: no sample takes more space in it than in its tar."""
    with os.scandir(folder) as entries:
        return _MAX_SLACK_BYTES + sum(entry.stat().st_size for entry in entries if entry.name.endswith(".tar"))


def _write(file: Path, known: Mapping[str, tuple[Stamp, Shard]]) -> None:
    beside = file.name == BESIDE
    with atomic_path(file) as temporary, temporary.open("wb") as opened:
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
        sizes = ranges_NE2[:, e, 1]
        if (sizes > MAX_FILE_BYTES[extension]).any() or (ranges_NE2[:, e].sum(-1) > record.bytes).any():
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
