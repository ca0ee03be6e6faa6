"""Samples stored as plain files in an object store or on a web server, as those of `training.file_samples` on a disk.

A folder is listed, and the .txt and .json beside its videos are read; a list may be on a web server, too.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import RunStopped, UserError
from clipmill.range_reader import Pieces
from clipmill.ranges import StoredObject, find_object, name_of, object_of
from clipmill.retries import retried
from training.file_samples import (
    LIST_FOLDERS,
    LISTS,
    PER_SHARD,
    SIDECARS,
    Sample,
    ShardOfFiles,
    columns_of,
    described,
    extension_of,
    listed_samples,
    samples_of,
)
from training.list_rows import LIST_SUFFIXES, MAX_LIST_BYTES
from training.note_names import lacking
from training.remote_shards import STARTUP_RETRY_S, has_tars, startup_reader
from training.sample_error import SampleError
from training.shards import MAX_FILE_BYTES, Keys

_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class StoredFileShard(ShardOfFiles):
    """Files of a store."""

    urls: Keys
    """Of the videos and pictures; may contain credentials."""
    versions: Keys

    def pieces(self, row: int) -> Pieces:
        ((_, size_bytes),) = self.ranges(row).values()
        stored = StoredObject(url=self.urls[row], size_bytes=size_bytes, version=self.versions[row])
        return Pieces(stored=stored, ranges=((0, size_bytes),))

    def members(self, row: int, contents: Sequence[bytes]) -> dict[str, bytes]:
        return {**super().members(row, contents), "json": self.texts[row].encode()}


def is_stored_files(entry: str) -> bool:
    """Whether an address is that of a list, or of a folder with videos or pictures and without shards."""
    if _is_list(entry):
        return True
    if entry.startswith(("http://", "https://")) or entry.endswith(".tar") or any(sign in entry for sign in "*?["):
        return False
    if has_tars(entry):  # a folder, which need not be listed with all that is below it
        return False
    return next(_media(_objects_below(entry)), None) is not None


def index_stored_files(entry: str) -> list[StoredFileShard]:
    """The samples of a list or a folder, by key, a thousand to a shard. Raises UserError for a list without paths, or
    that cannot be read; RunStopped if the store does not answer."""
    if _is_list(entry):
        folder, file = entry.partition("?")[0].rpartition("/")[0], name_of(entry)
        samples, broken, found = _of_list(entry, folder, "")
    else:
        folder, objects = entry.rstrip("/"), _objects_below(entry.rstrip("/"))
        lists = (os.path.join(where, each) for where in LIST_FOLDERS for each in LISTS)
        file = next((path for path in lists if path in objects), "")
        if file:
            samples, broken, found = _of_list(f"{folder}/{file}", folder, os.path.dirname(file))
        else:
            samples, broken, found = _with_sidecars([*samples_of(_media(objects))], objects), [], objects
    samples = [_checked(sample, found) for sample in samples]
    broken += [(sample.key, sample.problem) for sample in samples if sample.problem]
    whole = sorted((sample for sample in samples if not sample.problem), key=lambda sample: sample.key)
    parts = [whole[i : i + PER_SHARD] for i in range(0, len(whole), PER_SHARD)] or [[]]
    path = f"{without_credentials(folder)}/{Path(file or name_of(folder)).stem or 'files'}"
    shards = [_shard(f"{path}-{i:06d}", part, found) for i, part in enumerate(parts)]
    return [replace(shards[0], broken=tuple(broken)), *shards[1:]]


def _shard(path: str, samples: Sequence[Sample], found: Mapping[str, StoredObject]) -> StoredFileShard:
    return StoredFileShard(
        **columns_of(path, samples),
        urls=Keys.of(found[sample.path].url for sample in samples),
        versions=Keys.of(found[sample.path].version for sample in samples),
    )


def _is_list(entry: str) -> bool:
    return name_of(entry).lower().endswith(LIST_SUFFIXES)


def _objects_below(folder: str) -> dict[str, StoredObject]:
    """Relative path -> object of all files in a folder that are not hidden; empty if there is no such folder."""
    fs, root = storage.filesystem(folder)

    def find() -> dict[str, Any]:
        fs.invalidate_cache()
        return dict(fs.find(root, detail=True))

    try:
        found = retried(find, without_credentials(folder), STARTUP_RETRY_S)
    except FileNotFoundError:
        return {}
    relative = {path.removeprefix(root).lstrip("/"): (path, info) for path, info in sorted(found.items())}
    return {
        name: object_of(str(fs.unstrip_protocol(path)), info)
        for name, (path, info) in relative.items()
        if name and not any(part.startswith(".") for part in name.split("/")) and info.get("type") == "file"
    }


def _media(objects: Iterable[str]) -> Iterator[str]:
    return (path for path in objects if extension_of(path) in ("mp4", "jpg"))


def _of_list(url: str, folder: str, below: str) -> tuple[list[Sample], list[tuple[str, str]], dict[str, StoredObject]]:
    """The samples of a list, (row, reason) of unusable ones, and the objects that are there. Paths are relative to the
    folder `below` `folder`."""
    content = storage.read_limited(*storage.filesystem(url), max_bytes=MAX_LIST_BYTES)
    samples, broken = listed_samples(without_credentials(url), content)
    samples = [replace(sample, path=os.path.normpath(os.path.join(below, sample.path))) for sample in samples]
    web = url.startswith(("http://", "https://"))
    inside = [sample.path for sample in samples if not sample.path.startswith(("/", "../"))]

    def look(path: str) -> StoredObject | None:
        try:
            return find_object(f"{folder}/{quote(path) if web else path}", retry_s=STARTUP_RETRY_S)
        except RunStopped:
            raise
        except (FileNotFoundError, UserError):
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = zip(inside, pool.map(look, inside), strict=True)
        return samples, broken, {path: stored for path, stored in found if stored is not None}


def _with_sidecars(samples: Sequence[Sample], objects: Mapping[str, StoredObject]) -> list[Sample]:
    """The samples with the captions and conditioning of the .txt and .json beside them."""
    beside = [
        {
            suffix: objects[path]
            for suffix in SIDECARS
            if (path := f"{os.path.splitext(sample.path)[0]}.{suffix}") in objects
        }
        for sample in samples
    ]
    described_samples = []
    for start in range(0, len(samples), PER_SHARD):
        part = beside[start : start + PER_SHARD]
        wanted = [
            Pieces(stored=stored, ranges=((0, min(stored.size_bytes, MAX_FILE_BYTES[suffix] + 1)),))
            for each in part
            for suffix, stored in each.items()
        ]
        contents = iter(startup_reader().submit(wanted))
        for sample, each in zip(samples[start : start + PER_SHARD], part, strict=True):
            described_samples.append(_described(sample, {suffix: next(contents).result()[0] for suffix in each}))
    return described_samples


def _described(sample: Sample, sidecars: Mapping[str, bytes]) -> Sample:
    for suffix, content in sidecars.items():
        if len(content) > MAX_FILE_BYTES[suffix]:
            return replace(sample, problem=f"its {suffix} has more than {MAX_FILE_BYTES[suffix]:,} bytes")
    try:
        return described(sample, sidecars)
    except SampleError as error:
        return replace(sample, problem=error.message)


def _checked(sample: Sample, found: Mapping[str, StoredObject]) -> Sample:
    """The sample with its size and version, or with the reason why it is unusable."""
    if sample.problem:
        return sample
    if sample.path.startswith(("/", "../")):
        return replace(sample, problem="expected a path below the folder of the list")
    stored, limit = found.get(sample.path), MAX_FILE_BYTES.get(sample.extension)
    if limit is None:
        return replace(sample, problem=f"{os.path.basename(sample.path)} has no video or image extension")
    if stored is None:
        return replace(sample, problem="no such file")
    if stored.size_bytes > limit:
        return replace(sample, problem=f"{stored.size_bytes:,} bytes, more than {limit:,}")
    metadata = json.loads(sample.text)
    return replace(sample, size=stored.size_bytes, mark=stored.version, notes=[*sample.notes, *lacking(metadata)])
