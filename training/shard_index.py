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
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clipmill import storage
from clipmill.archives import compression_of
from clipmill.errors import UserError
from clipmill.ranges import Range, StoredObject
from clipmill.shard_folder import ShardRecord, check_shard_format
from clipmill.text import is_unicode, with_bytes_escaped
from training.file_samples import index_files, is_files
from training.folder_layouts import COMPRESSED_TARS, check_not_compressed, tars_in
from training.index_cache import Stamp, read_index, write_index
from training.notes import Notes
from training.remote_shards import RemoteHeaders, find_remote_shards, is_remote
from training.shards import MAX_FILE_BYTES, MAX_NAME_BYTES, MEDIA, MEDIUM_OF, Keys, Shard, ShardIndex
from training.stored_files import index_stored_files, is_stored_files

MAX_HEADER_BYTES = 1 << 20
"""Limit for one member: its header and the preceding pax and GNU headers."""
_SHOWN_CHARACTERS = 60
_BLOCK_BYTES = 512
_THREADS = 8


def index_shards(shards: str | Path | Iterable[str | Path], *, cache: str | Path | None = None) -> ShardIndex:
    """Index `shards`: a folder, a tar, a glob pattern, or several of these, local or as fsspec URLs; a local folder of
    videos, or a list of paths and captions.

    `cache` is a file that stores the index across runs; the index of other tools' tars is stored beside them if their
    folder can be written, in a store, too. Shards whose size, mtime or version changed are indexed again. Damage inside
    a tar is recorded, not raised. Raises UserError if no shard is found, or if their format is of an unsupported
    clipmill version; for a store, the errors of `training.remote_shards.find_remote_shards`.
    """
    entries = [str(shards)] if isinstance(shards, str | Path) else [str(entry) for entry in shards]
    of_files = [entry for entry in entries if not _has_tars(entry) and is_files(entry)]
    in_store = [entry for entry in entries if is_remote(entry) and is_stored_files(entry)]
    tars = [entry for entry in entries if entry not in {*of_files, *in_store}]
    found, file = _find(tars) if tars or not entries else {}, Path(cache) if cache is not None else None
    ours = {folder: check_shard_format(folder) for folder in dict.fromkeys(map(os.path.dirname, found))}
    foreign = {
        os.path.dirname(path): os.path.dirname(stored.url if stored else path)
        for path, (stored, _) in found.items()
        if not ours[os.path.dirname(path)] and not path.startswith(("http://", "https://"))
    }
    known = read_index(file, foreign)
    with ThreadPoolExecutor(_THREADS) as pool:
        stamps = dict(zip(found, pool.map(_stamp, found, (stored for stored, _ in found.values())), strict=True))
        fresh = [path for path in found if path not in known or known[path][0] != stamps[path]]
        read = pool.map(lambda path: index_shard(path, *found[path], ours=ours[os.path.dirname(path)]), fresh)
        known |= {path: (stamps[path], shard) for path, shard in zip(fresh, read, strict=True)}
    if fresh:
        write_index(file, foreign, known, fresh)
    files: list[Shard] = [shard for entry in dict.fromkeys(of_files) for shard in index_files(entry)]
    files += [shard for entry in dict.fromkeys(in_store) for shard in index_stored_files(entry)]
    return ShardIndex(shards=(*(replace(known[path][1], stored=found[path][0]) for path in found), *files))


def _has_tars(entry: str) -> bool:
    return os.path.isdir(entry) and bool(tars_in(entry))


def find_shards(shards: str | Path | Iterable[str | Path]) -> list[str]:
    """Paths, or addresses without credentials, of the requested tars, without duplicates. Raises UserError, naming the
    searched location, if none."""
    return list(_find(shards))


def _find(shards: str | Path | Iterable[str | Path]) -> dict[str, tuple[StoredObject | None, ShardRecord | None]]:
    """By path: the object of a tar in a store, and its record there."""
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
        matches, sought = tars_in(entry), "no *.tar in the folder"
    elif os.path.isfile(entry):
        matches, sought = [entry], ""
    else:
        matches, sought = sorted(filter(os.path.isfile, glob.glob(entry))), "no file, folder or match for"
    if not matches or entry.endswith(COMPRESSED_TARS):
        check_not_compressed(entry)
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


def index_shard(
    path: str, stored: StoredObject | None = None, record: ShardRecord | None = None, *, ours: bool = False
) -> Shard:
    """Index one tar, in a store from its `record` if there is one. Damage is recorded in `problem`, and the samples
    before it are kept. If clipmill did not write the tar (`ours`), its .txt and .json are read, too, to note what the
    samples lack. Raises OSError; for a store, the errors of `clipmill.ranges.read_range`."""
    if stored is not None:
        indexed = _of_members(path, stored, record) if record is not None else None
        return indexed or _index_headers(path, stored.size_bytes, RemoteHeaders(stored), stored, ours=ours)
    with open(path, "rb", buffering=0) as file:
        return _index_headers(path, os.path.getsize(path), file, ours=ours)


def _index_headers(
    path: str,
    size_bytes: int,
    tar_file: BinaryIO | RemoteHeaders,
    stored: StoredObject | None = None,
    *,
    ours: bool,
) -> Shard:
    samples = _Samples(ours=ours)
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
                problem = samples.add(member, tar_file) or problem
                tar.members.clear()  # tarfile keeps every header that it has read
                end, file.left_bytes = tar.offset, MAX_HEADER_BYTES
        problem = problem or _end_problem(tar_file, end, size_bytes)
    except (OSError, UserError):
        raise
    except Exception as error:  # tarfile lets through whatever its parsing of damaged fields raises
        where = f"damaged header at byte {end:,} of {size_bytes:,}" if end else "no readable tar"
        problem = _compression(tar_file) or f"{where}: {_shown(str(error) or type(error).__name__)}"
    if problem:
        samples.drop_unfinished()
    return replace(_shard(path, size_bytes, samples, problem), stored=stored)


def _of_members(path: str, stored: StoredObject, record: ShardRecord) -> Shard | None:
    """The samples listed by the record of a tar, in the order of the tar; None if the record is invalid."""
    assert record.members is not None
    samples = _Samples(ours=True)
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
        if (
            extension in MAX_FILE_BYTES
            and extension != "txt"
            and files.setdefault(extension, (offset, size)) != (offset, size)
        ):
            return None
    return replace(_shard(path, stored.size_bytes, samples, None), stored=stored)


def _compression(file: BinaryIO | RemoteHeaders) -> str | None:
    file.seek(0)
    kind = compression_of(file.read(8))
    return kind and f"compressed with {kind}; samples are read at their offset in a plain tar: decompress it first"


class _Samples:
    """Groups the members of a tar by sample."""

    def __init__(self, *, ours: bool) -> None:
        self.ours = ours
        self.members: dict[str, dict[str, Range]] = {}
        self.broken: dict[str, str] = {}
        """Printable key -> reason."""
        self.notes = Notes()
        self._names: dict[tuple[str, str], str] = {}
        """Key and extension -> the extension in the tar, if different."""

    def add(self, member: tarfile.TarInfo, file: BinaryIO | RemoteHeaders) -> str | None:
        """Split names as webdataset does: the key ends at the first dot of the basename. Returns a problem with the
        tar, if any.
        """
        folder, _, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not (member.isreg() and stem and dot):
            return None
        key = f"{folder}/{stem}" if folder else stem
        reason = _unusable(key)
        if reason is None and member.issparse():
            reason = f"{_shown(suffix)} is a sparse file, which is not supported"
        if reason is not None:
            self.broken[_shown(key)] = reason
            return None
        suffix = suffix.lower()
        extension = suffix if self.ours else MEDIUM_OF.get(suffix, suffix)
        files = self.members.setdefault(key, {})
        if extension not in MAX_FILE_BYTES or (self.ours and extension == "txt"):
            return None
        if extension in files:
            if suffix == self._names.get((key, extension), extension):
                return f"{_shown(member.name)} is duplicated; using the first one"
            self.notes.several.add(key)
            return None
        if suffix != extension:
            self._names[key, extension] = suffix
        files[extension] = member.offset_data, member.size
        if not self.ours and extension in ("txt", "json") and member.size <= MAX_FILE_BYTES[extension]:
            file.seek(member.offset_data)
            self.notes.look(key, {extension: file.read(member.size)})
        return None

    def drop_unfinished(self) -> None:
        """Count the last sample of a damaged tar as broken if it lacks what describes all others."""
        *others, last = self.members or ("",)
        for extension in ("json", "txt"):
            if others and all(extension in self.members[key] for key in others if self.members[key]):
                if extension not in self.members[last]:
                    self.broken[last] = f"missing {extension}, at the end of a damaged tar"
                return


def _unusable(key: str) -> str | None:
    """The reason why a name is not usable as a key; None if it is."""
    if not is_unicode(key):
        return "name is not UTF-8"
    if (size_bytes := len(key.encode())) > MAX_NAME_BYTES:
        return f"name has {size_bytes:,} bytes, more than {MAX_NAME_BYTES}"
    return None


def _shown(text: str) -> str:
    """Printable form of a name from a tar; long names are truncated and get a digest to stay distinct."""
    name = with_bytes_escaped(text)
    if len(name) <= MAX_NAME_BYTES:
        return name
    digest = blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{name[:_SHOWN_CHARACTERS]}...{digest}"


def _end_problem(file: BinaryIO | RemoteHeaders, end: int, size_bytes: int) -> str | None:
    """Check that the archive ends in a block of zeros, since tarfile treats a damaged header as the end."""
    file.seek(end)
    block = file.read(_BLOCK_BYTES)
    if any(block):
        return f"damaged header at byte {end:,} of {size_bytes:,}"
    return None if len(block) == _BLOCK_BYTES else f"truncated after a file, at {size_bytes:,} bytes: no end of archive"


def _shard(path: str, size_bytes: int, samples: _Samples, problem: str | None) -> Shard:
    if not samples.ours:
        samples.members = samples.notes.without_failures(samples.members)
    reasons = {key: _lacking(files, ours=samples.ours) for key, files in samples.members.items()}
    broken = {key: reason for key, reason in reasons.items() if reason is not None} | samples.broken
    whole = [key for key, reason in reasons.items() if reason is None and key not in samples.broken]
    for key in whole:
        if "mp4" in samples.members[key]:
            samples.members[key].pop("jpg", None)  # a thumbnail
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
        noted={} if samples.ours else samples.notes.counts(whole),
    )


def _lacking(files: Mapping[str, Range], *, ours: bool) -> str | None:
    if "json" not in files and (ours or "latent.safetensors" in files):
        return "missing json"
    if not any(medium in files for medium in MEDIA):
        return f"missing {', '.join(MEDIA)}"
    for extension, (_, size) in files.items():
        if size > MAX_FILE_BYTES[extension]:
            return f"its {extension} has {size:,} bytes, more than {MAX_FILE_BYTES[extension]:,}"
    return None
