"""List inputs: files, folders, globs, any fsspec URL, or a .txt/.csv/.parquet list with an optional caption column.

What is wrong with an input that cannot even be found is a value on its `Source`, not an exception.
"""

import hashlib
import io
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from curation.errors import SourceError, UserError
from curation.storage import address, explained, filesystem, is_local, read_bytes

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts"),
    *(".mpg", ".mpeg", ".vob", ".flv", ".f4v", ".ogv", ".wmv", ".asf", ".mxf"),
)
"""What counts as a video when a folder is listed. A file that is named or listed explicitly may be called anything."""

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_URI_COLUMNS = ("uri", "url", "path", "file", "video")
_CAPTION_COLUMNS = ("caption", "text", "title")
_STATS_IN_FLIGHT = 32


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input. `error` is set for one that cannot be used; `captions` came with it."""

    uri: str
    """A plain absolute path or a URL. A local name that is not UTF-8 is a percent-encoded file:// URL."""
    size_bytes: int | None = None
    mark: str = ""
    """What tells this version of the file from a later one: etag, or modification time in nanoseconds."""
    captions: tuple[str, ...] = ()
    error: SourceError | None = None

    @property
    def source_id(self) -> str:
        """16 hex digits from uri, size and modification mark: the same for as long as the file is."""
        text = f"{self.uri}\0{self.size_bytes}\0{self.mark}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def list_sources(inputs: Sequence[str]) -> Iterator[Source]:
    """Every input once, in the order given, with all captions given for it; folders and globs in order of name.

    Raises UserError for a list without an address column, an unknown protocol, or a list that cannot be read.
    """
    found: dict[str, Source] = {}
    for source in _stat_all(_expand(inputs)):
        if before := found.get(source.uri):
            captions = dict.fromkeys((*before.captions, *source.captions))
            found[source.uri] = replace(before, captions=tuple(captions))
        else:
            found[source.uri] = source
    yield from found.values()


def open_source(uri: str) -> BinaryIO:
    """Open an input for reading with random access. Raises SourceError (missing, unreadable)."""
    fs, path = _locate(uri)
    try:
        if is_local(fs):
            return open(path, "rb")
        return fs.open(path, "rb", cache_type="readahead", block_size=8 << 20)
    except Exception as error:
        raise _unusable(error) from error


@dataclass(frozen=True)
class _Candidate:
    fs: fsspec.AbstractFileSystem
    path: str
    captions: tuple[str, ...] = ()
    info: dict[str, Any] | None = None


def _expand(inputs: Iterable[str]) -> Iterator[_Candidate | Source]:
    for given in inputs:
        fs, path = _locate(given)
        with explained("read", fs, path):
            yield from _expand_one(fs, path, given)


def _expand_one(fs: fsspec.AbstractFileSystem, path: str, given: str) -> Iterator[_Candidate | Source]:
    if path.lower().endswith(LIST_SUFFIXES):
        yield from _read_list(fs, path, given)
    elif _is_folder(fs, path):
        yield from _list_folder(fs, path)
    elif any(c in path for c in "*?[") and not fs.exists(path):
        yield from _glob(fs, path, given)
    else:
        yield _Candidate(fs, path)


def _locate(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if uri.startswith("file://"):
        return filesystem(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return filesystem(uri)


def _uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    if is_local(fs):
        try:
            path.encode()
        except UnicodeEncodeError:
            return f"file://{quote_from_bytes(os.fsencode(path))}"
    return address(fs, path)


def _is_folder(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    try:
        return bool(fs.isdir(path))
    except (OSError, ValueError):
        return False


def _list_folder(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[_Candidate | Source]:
    found = False
    entries = fs.find(folder, detail=True, withdirs=True)
    for path in sorted(entries):
        inside = path.removeprefix(folder)
        if not _is_video_name(path) or any(part.startswith(".") for part in inside.split("/")):
            continue
        if entries[path]["type"] != "directory":
            found = True
            yield _Candidate(fs, path, info=entries[path])
        elif path != folder and not any(p.startswith(f"{path}/") and _is_video_name(p) for p in entries):
            yield _folder_named_like_a_video(fs, path)
    if not found and _is_video_name(folder):
        yield _folder_named_like_a_video(fs, folder)


def _folder_named_like_a_video(fs: fsspec.AbstractFileSystem, path: str) -> Source:
    return Source(uri=_uri(fs, path), error=SourceError("unreadable", "this is a folder, not a file"))


def _glob(fs: fsspec.AbstractFileSystem, pattern: str, given: str) -> Iterator[_Candidate | Source]:
    paths = sorted(fs.glob(pattern))
    if not paths:
        yield Source(uri=given, error=SourceError("missing", "no file matches this pattern"))
    for path in paths:
        if not _is_folder(fs, path):
            yield _Candidate(fs, path)
        else:
            yield from _list_folder(fs, path)


def _is_video_name(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in VIDEO_SUFFIXES


def _read_list(fs: fsspec.AbstractFileSystem, path: str, given: str) -> Iterator[_Candidate | Source]:
    folder = posixpath.dirname(path)
    for uri, caption in _list_rows(fs, path, given):
        if "://" in uri or posixpath.isabs(uri):
            try:
                entry_fs, entry = _locate(uri)
            except UserError as error:
                yield Source(uri=uri, error=SourceError("unreadable", str(error)))
                continue
        else:
            entry_fs, entry = fs, posixpath.normpath(posixpath.join(folder, uri))
        yield _Candidate(entry_fs, entry, (caption,) if caption else ())


def _list_rows(fs: fsspec.AbstractFileSystem, path: str, given: str) -> Iterator[tuple[str, str | None]]:
    """(address, caption) rows. A .txt has one address per line, a caption after a tab, and # before a comment."""
    try:
        content = read_bytes(fs, path)
        if path.lower().endswith(".txt"):
            for line in content.decode("utf-8-sig").split("\n"):
                if line.strip() and not line.startswith("#"):
                    uri, _, caption = line.partition("\t")
                    yield uri.strip(), caption.strip() or None
            return
        if path.lower().endswith(".csv"):
            newlines = pa.csv.ParseOptions(newlines_in_values=True)
            as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys((*_URI_COLUMNS, *_CAPTION_COLUMNS), pa.string()))
            table = pa.csv.read_csv(io.BytesIO(content), parse_options=newlines, convert_options=as_text)
        else:
            table = pa.parquet.read_table(io.BytesIO(content))
    except FileNotFoundError as error:
        raise UserError(f"the list {given!r} does not exist") from error
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"the list {given!r} cannot be read: {error}") from error
    uri_column = next((name for name in _URI_COLUMNS if name in table.column_names), None)
    if uri_column is None:
        raise UserError(
            f"the list {given!r} has columns {table.column_names}, but none of {list(_URI_COLUMNS)} to say where "
            "the videos are"
        )
    caption_column = next((name for name in _CAPTION_COLUMNS if name in table.column_names), None)
    uris = table.column(table.column_names.index(uri_column)).to_pylist()
    texts: list[object] = [None] * len(uris)
    if caption_column:
        texts = table.column(table.column_names.index(caption_column)).to_pylist()
    for uri, text in zip(uris, texts, strict=True):
        if uri:
            yield str(uri), str(text).strip() if text else None


def _stat_all(candidates: Iterable[_Candidate | Source]) -> Iterator[Source]:
    """Ask for sizes and marks, some at a time: a list may hold a million addresses in an object store."""
    with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
        batch: list[_Candidate | Source] = []
        for candidate in candidates:
            batch.append(candidate)
            if len(batch) == 16 * _STATS_IN_FLIGHT:
                yield from pool.map(_stat, batch)
                batch = []
        yield from pool.map(_stat, batch)


def _stat(candidate: _Candidate | Source) -> Source:
    if isinstance(candidate, Source):
        return candidate
    fs, path = candidate.fs, candidate.path
    uri = _uri(fs, path)
    try:
        info = candidate.info or fs.info(path)
        if info["type"] != "file":
            what = "a folder" if info["type"] == "directory" else "a device or a pipe"
            return Source(uri=uri, error=SourceError("unreadable", f"this is {what}, not a file"))
        mark = str(os.stat(path).st_mtime_ns) if is_local(fs) else _mark(info)
    except Exception as error:
        return Source(uri=uri, captions=candidate.captions, error=_unusable(error))
    return Source(uri=uri, size_bytes=info["size"], mark=mark, captions=candidate.captions)


def _mark(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""


def _unusable(error: Exception) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError("missing", "nothing is at this address")
    if isinstance(error, IsADirectoryError):
        return SourceError("unreadable", "this is a folder, not a file")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return SourceError("unreadable", f"it cannot be opened: {reason}")
