"""Samples stored as plain files: a folder of videos, each with a .txt or .json, or a list of paths and captions.

Names, links and lists are untrusted: only regular files are opened, captions must be below the folder, and an unusable
row or file affects only its own sample.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from clipmill.errors import UserError
from clipmill.local_files import open_regular, path_of
from clipmill.text import is_unicode, with_bytes_escaped
from training.list_rows import LIST_SUFFIXES, Row, read_list
from training.metadata import normalized, sample_metadata
from training.note_names import OUTSIDE, REPEATED, SEVERAL, lacking
from training.sample_error import SampleError
from training.shards import MAX_FILE_BYTES, MAX_NAME_BYTES, MEDIUM_OF, Keys, Shard

PER_SHARD = 1000
_THREADS = 8
LISTS = ("metadata.jsonl", "metadata.csv")
"""Lists of the Hub's folders of videos (VideoFolder, ImageFolder)."""
LIST_FOLDERS = ("", "data", "train", "data/train")
_MAX_CAPTIONS = 100
SIDECARS = ("json", "txt")
_KEPT = ("captions", "conditioning", "shape")
"""Keys of a JSON beside a video that training reads; its other ones, of any size, are not indexed."""


@dataclass(frozen=True, kw_only=True)
class ShardOfFiles(Shard):
    """Up to a thousand samples stored as plain files. `path` is not that of a file; it names the shard."""

    texts: Keys
    """JSON of each sample: captions and conditioning."""
    version: str
    """Digest of names, sizes, versions or modification times, and texts."""

    @property
    def fingerprint(self) -> str:
        return self.version


@dataclass(frozen=True, kw_only=True)
class FileShard(ShardOfFiles):
    """Files of a disk."""

    folder: str
    """Folder of the paths."""
    paths: Keys
    """Of the videos and pictures, relative to the folder or absolute."""

    def read(self, row: int) -> dict[str, bytes]:
        """As `Shard.read`; EOFError also for a file that is missing or has changed size since it was indexed."""
        path = os.path.join(self.folder, self.paths[row])
        column = int((self.ranges_NE2[row, :, 0] >= 0).argmax())
        size = int(self.ranges_NE2[row, column, 1])
        try:
            with open_regular(path) as file:
                content = file.read(size + 1)
        except (FileNotFoundError, UserError) as error:
            raise EOFError(f"{path}: {error}") from error
        if len(content) != size:
            raise EOFError(f"{path} changed since it was indexed with {size:,} bytes")
        return {self.extensions[column]: content, "json": self.texts[row].encode()}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video or image with its captions, or the reason why it is unusable."""

    key: str
    path: str
    text: str = "{}"
    size: int = 0
    mark: int | str = 0
    """Modification time in ns; in a store, the version."""
    problem: str | None = None
    notes: Sequence[str] = ()

    @property
    def extension(self) -> str:
        return extension_of(self.path)


def is_files(entry: str) -> bool:
    """Whether `entry` is a list, or a folder of files rather than of tars."""
    if os.path.isfile(entry):
        return entry.lower().endswith(LIST_SUFFIXES)
    return os.path.isdir(entry) and (_list_in(entry) is not None or next(_media_in(entry), None) is not None)


def index_files(entry: str) -> list[FileShard]:
    """The samples of a list or a folder, by key, a thousand to a shard.

    Raises UserError for a list without paths, or that cannot be read.
    """
    entry = os.path.abspath(entry)
    file = entry if os.path.isfile(entry) else _list_in(entry)
    folder = os.path.dirname(file) if file else entry
    samples, broken = listed_samples(file) if file else (list(samples_of(_media_in(folder))), [])
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = list(pool.map(partial(_looked_at, folder, captions_beside=file is None), samples))
    name = Path(file or entry).stem or "files"
    broken += [(sample.key, sample.problem) for sample in samples if sample.problem]
    whole = sorted((sample for sample in samples if not sample.problem), key=lambda sample: sample.key)
    parts = [whole[i : i + PER_SHARD] for i in range(0, len(whole), PER_SHARD)] or [[]]
    shards = [_shard(f"{folder}/{name}-{i:06d}", folder, part) for i, part in enumerate(parts)]
    return [replace(shards[0], broken=tuple(broken)), *shards[1:]]


def _shard(path: str, folder: str, samples: Sequence[Sample]) -> FileShard:
    return FileShard(**columns_of(path, samples), folder=folder, paths=Keys.of(sample.path for sample in samples))


def columns_of(path: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Fields of a shard of files, on a disk or in a store."""
    extensions = tuple(sorted({sample.extension for sample in samples}))
    ranges_NE2 = np.full((len(samples), len(extensions), 2), -1, np.int64)
    digest = blake2b(digest_size=16)
    for row, sample in enumerate(samples):
        ranges_NE2[row, extensions.index(sample.extension)] = 0, sample.size
        digest.update(repr((sample.key, sample.path, sample.size, sample.mark, sample.text)).encode())
    noted: dict[str, int] = {}
    for note in (note for sample in samples for note in sample.notes):
        noted[note] = noted.get(note, 0) + 1
    return {
        "path": path,
        "size_bytes": sum(sample.size for sample in samples),
        "keys": Keys.of(sample.key for sample in samples),
        "extensions": extensions,
        "ranges_NE2": ranges_NE2,
        "noted": noted,
        "texts": Keys.of(sample.text for sample in samples),
        "version": digest.hexdigest(),
    }


def listed_samples(file: str, content: bytes | None = None) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The samples of a list, of a file or of its `content`, and (row, reason) of unusable rows. Captions of repeated
    files are combined."""
    rows: dict[str, list[Row]] = {}
    broken = []
    for row in read_list(file, normalized, content):
        if row.problem:
            broken.append((f"line {row.line}", row.problem))
        else:
            rows.setdefault(os.path.normpath(row.path), []).append(row)
    samples, keys = [], set[str]()
    for path, same in rows.items():
        key = _free(_key(path), path, keys)
        keys.add(key)
        notes = [REPEATED] if len(same) > 1 else []
        captions = [caption for row in same for caption in row.metadata["captions"]]
        text = json.dumps({**same[0].metadata, "captions": captions[:_MAX_CAPTIONS]})
        samples.append(Sample(key=key, path=same[0].path, text=text, notes=notes))
    return samples, broken


def samples_of(media: Iterable[str]) -> Iterator[Sample]:
    """A sample per video or image; if names differ only in suffix, the first of: mp4, other videos, images."""
    by_stem: dict[str, list[str]] = {}
    for path in media:
        by_stem.setdefault(os.path.splitext(path)[0], []).append(path)
    for stem, paths in by_stem.items():
        first, *others = sorted(paths, key=lambda path: (extension_of(path) != "mp4", not path.endswith(".mp4"), path))
        same_medium = any(extension_of(path) == extension_of(first) for path in others)
        if not is_unicode(first):
            yield Sample(key=with_bytes_escaped(stem), path="", problem="name is not UTF-8")
            continue
        yield Sample(key=_key(first), path=first, notes=[SEVERAL] if same_medium else [])


def _media_in(folder: str) -> Iterator[str]:
    """Relative paths of videos and images, sorted; hidden ones are skipped, and links to folders not followed."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and extension_of(name) in ("mp4", "jpg"):
                yield os.path.relpath(os.path.join(where, name), folder)


def _list_in(folder: str) -> str | None:
    paths = (os.path.join(folder, where, name) for where in LIST_FOLDERS for name in LISTS)
    return next(filter(os.path.isfile, paths), None)


def extension_of(path: str) -> str:
    """The extension of the file in a sample: that of a video or image, or an unsupported one from a list."""
    suffix = os.path.splitext(path)[1][1:].lower()
    return MEDIUM_OF.get(suffix, suffix)


def _key(path: str) -> str:
    """The key of a sample: its path without suffix, and without dots in the name, since webdataset ends keys there."""
    *folders, name = [part for part in os.path.splitext(path)[0].split("/") if part not in ("", ".", "..")] or ["file"]
    folder = "/".join(folders)
    name = name.replace("%", "%25").replace(".", "%2E")
    key = f"{folder}/{name}" if folder else name
    return key if len(key.encode()) <= MAX_NAME_BYTES else f"{_digest(key)}/{name}"[: MAX_NAME_BYTES // 4]


def _free(key: str, path: str, taken: set[str]) -> str:
    return key if key not in taken else f"{key[: MAX_NAME_BYTES // 4]}_{_digest(path)}"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _is_outside(path: str, folder: str) -> bool:
    return not os.path.realpath(path).startswith(f"{os.path.realpath(folder).rstrip('/')}/")


def described(sample: Sample, sidecars: Mapping[str, bytes]) -> Sample:
    """The sample with the captions and conditioning of its .txt and .json. Raises SampleError if they are damaged."""
    metadata = sample_metadata(sidecars)
    return replace(sample, text=json.dumps({name: metadata[name] for name in _KEPT if name in metadata}))


def _looked_at(folder: str, sample: Sample, *, captions_beside: bool) -> Sample:
    """The sample with size, captions and notes, or with the reason why it is unusable."""
    if sample.problem:
        return sample
    path = os.path.join(folder, sample.path)
    try:
        if captions_beside:
            sidecars = {suffix: _sidecar(path, suffix, folder) for suffix in SIDECARS}
            sample = described(sample, {suffix: text for suffix, text in sidecars.items() if text is not None})
        with open_regular(path) as file:
            stat = os.fstat(file.fileno())
        limit = MAX_FILE_BYTES.get(sample.extension)
        if limit is None:
            return replace(sample, problem=f"{os.path.basename(path)} has no video or image extension")
        if stat.st_size > limit:
            return replace(sample, problem=f"{stat.st_size:,} bytes, more than {limit:,}")
        outside = [] if captions_beside or not _is_outside(path, folder) else [OUTSIDE]
        notes = [*sample.notes, *outside, *lacking(json.loads(sample.text))]
        return replace(sample, size=stat.st_size, mark=stat.st_mtime_ns, notes=notes)
    except SampleError as error:
        return replace(sample, problem=error.message)
    except (OSError, UserError, ValueError) as error:
        return replace(sample, problem=getattr(error, "strerror", None) or str(error))


def _sidecar(path: str, suffix: str, folder: str) -> bytes | None:
    """The .txt or .json beside a video; None if missing. Raises UserError for a link to another folder."""
    beside = f"{os.path.splitext(path)[0]}.{suffix}"
    try:
        with open_regular(beside) as file:
            allowed = (os.path.realpath(folder), os.path.dirname(os.path.realpath(path)))
            if not path_of(file.fileno(), beside).startswith(tuple(f"{root.rstrip('/')}/" for root in allowed)):
                raise UserError(f"its {suffix} is a link to a file outside {folder}")
            content = file.read(MAX_FILE_BYTES[suffix] + 1)
    except FileNotFoundError:
        return None
    if len(content) > MAX_FILE_BYTES[suffix]:
        raise UserError(f"its {suffix} has more than {MAX_FILE_BYTES[suffix]:,} bytes")
    return content
