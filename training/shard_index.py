"""Byte offset index of the samples in tar shards, from the tar headers or, in a store, from an index.json beside them.

Reading by offset instead of streaming lets training resume in the middle of a shard, split few shards among many ranks,
and visit every sample exactly once per epoch. Shards are untrusted: the memory of the index depends only on the number
of samples, not on names or headers.
"""

import glob
import os
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from clipmill import storage
from clipmill.atomic import atomic_path
from clipmill.errors import UserError
from clipmill.ranges import StoredObject
from clipmill.shard_folder import FailedClip, Members, ShardRecord, check_shard_format, parse_record, record_json
from training.remote_shards import RemoteHeaders, find_remote_shards, is_remote
from training.shards import Keys, Range, Shard, ShardIndex

MEDIA = ("mp4", "jpg", "latent.safetensors")
"""A sample needs one of these, and always `json`."""
MAX_FILE_BYTES: Mapping[str, int] = {
    "json": 16 << 20,
    "mp4": 1 << 30,
    "jpg": 256 << 20,
    "latent.safetensors": 1 << 30,
}
"""Maximum file size by extension; a sample with a larger one is broken. Other extensions are ignored."""
MAX_NAME_BYTES = 255
MAX_HEADER_BYTES = 1 << 20
"""Limit for one member: its header and the preceding pax and GNU headers."""
_SHOWN_CHARACTERS = 60
_BLOCK_BYTES = 512
_THREADS = 8
INCOMPLETE = "incomplete"
"""Error kind of samples whose files are missing or unusable."""
_CACHE_FORMAT = b"clipmill shard index 4"

Stamp = tuple[int, str]
"""Size in bytes of a tar, and its mtime in ns or, in a store, its version."""


def index_shards(shards: str | Path | Iterable[str | Path], *, cache: str | Path | None = None) -> ShardIndex:
    """Index `shards`: a folder, a tar, a glob pattern, or several of these, local or as fsspec URLs.

    `cache` is a file that stores the index across runs; shards whose size, mtime or version changed are indexed again.
    Damage inside a tar is recorded, not raised. Raises UserError if no shard is found, or if an older or newer clipmill
    wrote them in a format that this one does not read; for a store, the errors of
    `training.remote_shards.find_remote_shards`.
    """
    found = _find(shards)
    for folder in dict.fromkeys(map(os.path.dirname, found)):
        check_shard_format(folder)
    known = _read_cache(cache)
    with ThreadPoolExecutor(_THREADS) as pool:
        stamps = dict(zip(found, pool.map(_stamp, found, (stored for stored, _ in found.values())), strict=True))
        fresh = [path for path in found if path not in known or known[path][0] != stamps[path]]
        read = dict(zip(fresh, pool.map(lambda path: index_shard(path, *found[path]), fresh), strict=True))
    indexed = [read[path] if path in read else replace(known[path][1], stored=found[path][0]) for path in found]
    if cache is not None and read:
        _write_cache(Path(cache), known | {path: (stamps[path], shard) for path, shard in read.items()})
    return ShardIndex(shards=tuple(indexed))


def find_shards(shards: str | Path | Iterable[str | Path]) -> list[str]:
    """Paths, or addresses without credentials, of the requested tars, without duplicates. Raises UserError, naming the
    searched location, if none."""
    return list(_find(shards))


def _find(shards: str | Path | Iterable[str | Path]) -> dict[str, tuple[StoredObject | None, ShardRecord | None]]:
    """By path: where a tar lies if in a store, and its record there."""
    wanted = [str(shards)] if isinstance(shards, str | Path) else [str(entry) for entry in shards]
    if not wanted:
        raise UserError(
            "no shards: expected a folder, tar files or a pattern such as 'shards/*.tar', got an empty list"
        )
    found: dict[str, tuple[StoredObject | None, ShardRecord | None]] = {}
    for entry in wanted:
        if is_remote(entry):
            found |= find_remote_shards(entry)
        else:
            found |= dict.fromkeys(_find_local(storage.filesystem(entry)[1] if "://" in entry else entry), (None, None))
    return found


def _find_local(entry: str) -> list[str]:
    if os.path.isdir(entry):
        matches, sought = sorted(str(path) for path in Path(entry).glob("[!.]*.tar")), "no *.tar in the folder"
    elif os.path.isfile(entry):
        matches, sought = [entry], ""
    else:
        matches, sought = sorted(filter(os.path.isfile, glob.glob(entry))), "no file, folder or match for"
    if not matches:
        raise UserError(f"no shards: {sought} {entry} (current directory: {os.getcwd()})")
    return [os.path.abspath(match) for match in matches]


def _stamp(path: str, stored: StoredObject | None) -> Stamp:
    if stored is not None:
        return stored.size_bytes, stored.version
    stat = os.stat(path)
    return stat.st_size, str(stat.st_mtime_ns)


class _Headers:
    """A tar read header by header; raises ReadError for a member with oversized headers before loading them."""

    def __init__(self, file: BinaryIO | RemoteHeaders) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.left_bytes = MAX_HEADER_BYTES
        """Remaining budget for the headers of the next member."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left_bytes:
            raise tarfile.ReadError(f"headers exceed {MAX_HEADER_BYTES:,} bytes")
        self.left_bytes -= size
        return self._file.read(size)


def index_shard(path: str, stored: StoredObject | None = None, record: ShardRecord | None = None) -> Shard:
    """Index one tar, in a store by its `record` if there is one. Damage is recorded in `problem`, and the samples
    before it are kept. Raises OSError; for a store, the errors of `clipmill.ranges.read_range`."""
    if stored is not None:
        indexed = _of_members(path, stored, record) if record is not None else None
        return indexed or _index_headers(path, stored.size_bytes, RemoteHeaders(stored), stored)
    with open(path, "rb", buffering=0) as file:
        return _index_headers(path, os.path.getsize(path), file)


def _index_headers(
    path: str, size_bytes: int, tar_file: BinaryIO | RemoteHeaders, stored: StoredObject | None = None
) -> Shard:
    samples = _Samples()
    problem, end = None, 0
    try:
        file = _Headers(tar_file)
        with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.isreg() and member.offset_data + member.size > size_bytes and not member.issparse():
                    problem = f"truncated inside {_shown(member.name)}, at {size_bytes:,} bytes"
                    break
                if tar.offset <= end:
                    problem = f"damaged header at byte {end:,} of {size_bytes:,}"
                    break
                problem = samples.add(member) or problem
                tar.members.clear()  # tarfile keeps every header that it has read
                end, file.left_bytes = tar.offset, MAX_HEADER_BYTES
        problem = problem or _end_problem(tar_file, end, size_bytes)
    except (OSError, UserError):
        raise
    except Exception as error:  # tarfile lets through whatever its parsing of damaged fields raises
        where = f"damaged header at byte {end:,} of {size_bytes:,}" if end else "no readable tar"
        problem = f"{where}: {_shown(str(error) or type(error).__name__)}"
    return replace(_shard(path, size_bytes, samples, problem), stored=stored)


def _of_members(path: str, stored: StoredObject, record: ShardRecord) -> Shard | None:
    """The samples of a tar as its record lists them, in the order of the tar; None if the record cannot be right."""
    assert record.members is not None
    samples = _Samples()
    files_in_tar = [
        (key, extension, place)
        for extension, places in record.members.ranges.items()
        for key, place in zip(record.members.keys, places, strict=True)
        if place is not None
    ]
    for key, extension, (offset, size) in sorted(files_in_tar, key=lambda file: file[2]):
        if offset + size > stored.size_bytes or _unusable(key) is not None:
            return None
        files = samples.members.setdefault(key, {})
        if extension in MAX_FILE_BYTES and files.setdefault(extension, (offset, size)) != (offset, size):
            return None
    return replace(_shard(path, stored.size_bytes, samples, None), stored=stored)


class _Samples:
    """Groups the members of a tar by sample."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Range]] = {}
        self.broken: dict[str, str] = {}
        """Printable key -> reason."""

    def add(self, member: tarfile.TarInfo) -> str | None:
        """Split names as webdataset does: the key ends at the first dot of the basename. Returns a problem with the
        tar, if any.
        """
        folder, _, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not (member.isreg() and stem and dot):
            return None
        key = f"{folder}/{stem}" if folder else stem
        reason = _unusable(key)
        if reason is None and member.issparse():
            reason = f"{_shown(extension)} is a sparse file, which is not supported"
        if reason is not None:
            self.broken[_shown(key)] = reason
            return None
        extension = extension.lower()
        if extension not in MAX_FILE_BYTES:
            self.members.setdefault(key, {})
            return None
        files = self.members.setdefault(key, {})
        if extension in files:
            return f"{_shown(member.name)} is duplicated; using the first one"
        files[extension] = member.offset_data, member.size
        return None


def _unusable(key: str) -> str | None:
    """Why a name cannot be a key, if so."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "name is not UTF-8"
    if size_bytes > MAX_NAME_BYTES:
        return f"name has {size_bytes:,} bytes, more than {MAX_NAME_BYTES}"
    return None


def _shown(text: str) -> str:
    """Printable form of a name from a tar; long names are truncated and get a digest to stay distinct."""
    printable = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if len(printable) <= MAX_NAME_BYTES:
        return printable
    digest = blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{printable[:_SHOWN_CHARACTERS]}...{digest}"


def _end_problem(file: BinaryIO | RemoteHeaders, end: int, size_bytes: int) -> str | None:
    """Check that the archive ends in a block of zeros, since tarfile treats a damaged header as the end."""
    file.seek(end)
    block = file.read(_BLOCK_BYTES)
    if any(block):
        return f"damaged header at byte {end:,} of {size_bytes:,}"
    return None if len(block) == _BLOCK_BYTES else f"truncated after a file, at {size_bytes:,} bytes: no end of archive"


def _shard(path: str, size_bytes: int, samples: _Samples, problem: str | None) -> Shard:
    reasons = {key: _lacking(files) for key, files in samples.members.items()}
    broken = {key: reason for key, reason in reasons.items() if reason is not None} | samples.broken
    whole = [key for key, reason in reasons.items() if reason is None and key not in samples.broken]
    occurring = {extension for key in whole for extension in samples.members[key]}
    extensions = tuple(extension for extension in MAX_FILE_BYTES if extension in occurring)
    ranges_NE2 = np.full((len(whole), len(extensions), 2), -1, np.int64)
    for row, key in enumerate(whole):
        for extension, place in samples.members[key].items():
            ranges_NE2[row, extensions.index(extension)] = place
    return Shard(
        path=path,
        size_bytes=size_bytes,
        keys=Keys.of(whole),
        extensions=extensions,
        ranges_NE2=ranges_NE2,
        problem=problem,
        broken=tuple(broken.items()),
    )


def _lacking(files: Mapping[str, Range]) -> str | None:
    if "json" not in files:
        return "missing json"
    if not any(medium in files for medium in MEDIA):
        return f"missing {', '.join(MEDIA)}"
    for extension, (_, size) in files.items():
        if size > MAX_FILE_BYTES[extension]:
            return f"its {extension} has {size:,} bytes, more than {MAX_FILE_BYTES[extension]:,}"
    return None


def _read_cache(cache: str | Path | None) -> dict[str, tuple[Stamp, Shard]]:
    """Read the cache file; empty if missing or damaged, since it can be rebuilt."""
    known: dict[str, tuple[Stamp, Shard]] = {}
    with suppress(FileNotFoundError, ValueError, RecursionError, OverflowError):
        header, *lines = Path(cache).read_bytes().splitlines() if cache is not None else [b""]
        if header != _CACHE_FORMAT:
            return {}
        for line in lines:
            record = parse_record(line)
            shard = _of_record(record)
            known[shard.path] = (record.bytes, record.fingerprint or ""), shard
    return known


def _write_cache(cache: Path, known: Mapping[str, tuple[Stamp, Shard]]) -> None:
    """Write atomically: a record per shard with its mtime or version as fingerprint."""
    with atomic_path(cache) as temporary, temporary.open("wb") as file:
        file.write(_CACHE_FORMAT + b"\n")
        for (_, version), shard in known.values():
            file.write(record_json(_record_of(shard, version)) + b"\n")


def _record_of(shard: Shard, version: str) -> ShardRecord:
    ranges = {
        extension: tuple(None if offset < 0 else (offset, size) for offset, size in ranges_N2.tolist())
        for extension, ranges_N2 in zip(shard.extensions, shard.ranges_NE2.transpose(1, 0, 2), strict=True)
    }
    return ShardRecord(
        name=quote_from_bytes(os.fsencode(shard.path)),  # names of files need not be UTF-8
        samples=len(shard),
        bytes=shard.size_bytes,
        fingerprint=version,
        problem=shard.problem,
        failed=tuple(FailedClip(clip_id=key, error_kind=INCOMPLETE, error=reason) for key, reason in shard.broken),
        members=Members(keys=tuple(shard.keys[row] for row in range(len(shard))), ranges=ranges),
    )


def _of_record(record: ShardRecord) -> Shard:
    """Build the shard of a cached record. Raises ValueError for a record without members."""
    if record.members is None:
        raise ValueError("expected members")
    ranges_NE2 = np.full((len(record.members.keys), len(record.members.ranges), 2), -1, np.int64)
    for e, ranges in enumerate(record.members.ranges.values()):
        ranges_NE2[:, e] = [(-1, -1) if place is None else place for place in ranges]
    return Shard(
        path=os.fsdecode(unquote_to_bytes(record.name)),
        size_bytes=record.bytes,
        keys=Keys.of(record.members.keys),
        extensions=tuple(record.members.ranges),
        ranges_NE2=ranges_NE2,
        problem=record.problem,
        broken=tuple((clip.clip_id, clip.error) for clip in record.failed),
    )
