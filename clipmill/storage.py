"""Files on a local disk or in an object store, through fsspec; writes are atomic."""

import errno
import json
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from clipmill.addresses import redacted, without_credentials
from clipmill.archives import ArchiveFileSystem, split_link, version_of
from clipmill.atomic import create_file, is_temporary, rename, temporary_name
from clipmill.errors import UserError
from clipmill.local_files import open_regular
from clipmill.parquet_rows import rows_of
from clipmill.proxies import proxy_options
from clipmill.store_requests import call, http_head, within
from clipmill.web_listing import WebFileSystem

T = TypeVar("T")

_WHOLE_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"}
"""Stores in which an object appears only when its upload completes."""
_TYPE_ARGUMENT = {"s3": "ContentType", "s3a": "ContentType", "gs": "content_type", "gcs": "content_type"}
"""Argument for the media type of an object: without it, a browser downloads a page instead of showing it."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLIENT_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs")
_READ_DEADLINE_S = 60.0
_SMALL_BYTES = 1 << 30


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system behind a local path or a URL such as `s3://bucket/folder` or `zip://a.mp4::archive.zip`, and the
    path inside it.

    Raises UserError for an unknown protocol, or one whose package is not installed.
    """
    if "://" not in url:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    link, archive = split_link(url)
    if archive:
        kind, _, member = link.partition("://")
        return archive_filesystem(*filesystem(archive), kind.lower()), member.strip("/")
    if url.startswith(("http://", "https://")):
        return WebFileSystem(**proxy_options(url)), url.rstrip("/") or url
    if url.startswith(("gs://", "gcs://")):  # not by gRPC, which does not survive the forks of the loader
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read when gcsfs is imported
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{redacted(url)!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(
            f"{redacted(url)!r} is not a valid fsspec URL: {redacted(str(error))}. Expected a path or, for "
            "example, s3://bucket/x."
        ) from error
    return fs, path.rstrip("/") or path


def archive_filesystem(fs: fsspec.AbstractFileSystem, path: str, kind: str) -> fsspec.AbstractFileSystem:
    """The files in an archive, zip or tar."""

    def opened() -> BinaryIO:
        return open_regular(path) if is_local(fs) else fs.open(path, "rb", cache_type="readahead", block_size=1 << 20)

    return ArchiveFileSystem(kind, fs, path, address(fs, path), opened)


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of `fs` are local paths on this machine."""
    return isinstance(fs, LocalFileSystem)


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`path` as an address for users and other programs: a local path, or a URL with its protocol."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def shown(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`address` for errors, logs and tables: without password, signature or token."""
    return without_credentials(address(fs, path))


@contextmanager
def atomic_write(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """A binary file to write into; it appears under `path` when the block ends, and not at all if the block fails.

    Local disk: a temporary file in the same folder, synced, then renamed. Object store: one upload, completed at the
    end or aborted on error. Creates folders as needed. Raises UserError if writing fails (permissions, disk full);
    errors of the caller's block pass through.
    """
    whole_object = not _protocols(fs).isdisjoint(_WHOLE_OBJECT_STORES)
    target = path if whole_object else _temporary_path(path)
    with explained("write", fs, path):
        if not whole_object:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        file = _open_for_writing(fs, target)
    try:
        yield file
        with explained("write", fs, path):
            if is_local(fs):
                file.flush()
                os.fsync(file.fileno())
            file.close()
            if not whole_object:
                _rename(fs, target, path)
    except BaseException as error:
        _abandon(fs, file, target, whole_object=whole_object)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise _cannot("write", shown(fs, path), error) from error
        raise


def write_bytes(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a small file atomically. Raises UserError if that fails."""
    with atomic_write(fs, path) as file:
        file.write(content)


def create_bytes(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a small file atomically unless `path` exists: of several writers, one succeeds.

    Stores without conditional writes only check first. Raises FileExistsError, or UserError if writing fails.
    """
    if not is_local(fs) and _protocols(fs).isdisjoint(_WHOLE_OBJECT_STORES):
        if exists(fs, path):
            raise FileExistsError(path)
        write_bytes(fs, path, content)
        return
    with explained("create", fs, path):
        if is_local(fs):
            create_file(path, content)
        else:
            fs.pipe_file(path, content, mode="create")


def json_bytes(value: Any) -> bytes:
    """A value as the content of one of our JSON files."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(fs: fsspec.AbstractFileSystem, path: str, value: Any) -> None:
    """Write one of our JSON files atomically. Raises UserError if that fails."""
    write_bytes(fs, path, json_bytes(value))


def read_bytes(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """Read a small file. Raises FileNotFoundError, or UserError if it cannot be read."""
    if isinstance(fs, HTTPFileSystem):
        return read_limited(fs, path, max_bytes=_SMALL_BYTES)
    with explained("read", fs, path):
        content: bytes = fs.cat_file(path)
        return content


def read_limited(
    fs: fsspec.AbstractFileSystem, path: str, *, max_bytes: int, deadline_s: float = _READ_DEADLINE_S
) -> bytes:
    """Read an untrusted file: a regular file of at most `max_bytes`, within `deadline_s`.

    Raises FileNotFoundError, or UserError for anything else.
    """
    content: bytes
    with explained("read", fs, path):
        if is_local(fs):
            with open_regular(path) as file:
                # read() allocates the requested size, not the file's
                content = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
        elif isinstance(fs, HTTPFileSystem):
            content = within(deadline_s, fs, lambda: http_head(fs, path, max_bytes + 1))
        else:
            content = within(deadline_s, fs, lambda: call(fs, "cat_file", path, start=0, end=max_bytes + 1))
    if len(content) > max_bytes:
        raise UserError(f"{shown(fs, path)} is larger than the limit of {max_bytes:,} bytes")
    return content


def read_json(
    fs: fsspec.AbstractFileSystem, path: str, parse: Callable[[dict[str, Any]], T], *, max_bytes: int = _SMALL_BYTES
) -> T:
    """Parse one of our own JSON files, which must contain an object.

    Raises FileNotFoundError, or UserError `PATH is damaged: ...` if it is not valid JSON, or if `parse` misses a key or
    finds a value of the wrong type.
    """
    content = read_limited(fs, path, max_bytes=max_bytes)
    try:
        values = json.loads(content.decode(), object_pairs_hook=_unique)
        if not isinstance(values, dict):
            raise TypeError(f"expected an object, got {type(values).__name__}")
        return parse(values)
    except UserError:
        raise
    except KeyError as error:
        raise _damaged(fs, path, f"it has no {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _damaged(fs, path, str(error) or type(error).__name__) from error


def read_json_if_exists(fs: fsspec.AbstractFileSystem, path: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """As `read_json`; None if there is no such file."""
    try:
        return read_json(fs, path, parse)
    except FileNotFoundError:
        return None


def read_parquet(
    fs: fsspec.AbstractFileSystem,
    path: str,
    columns: Sequence[str] | None = None,
    rows: NDArray[np.integer] | None = None,
) -> pa.Table:
    """Read a Parquet file, or some of its columns (nested ones by full name, such as "captions.list.element.error").

    `rows`: read only the rows with these increasing numbers; those beyond the end are ignored. Raises
    FileNotFoundError, or UserError `PATH is damaged: ...`.
    """
    with explained("read", fs, path), fs.open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            table = parquet.read(columns and list(columns)) if rows is None else rows_of(parquet, rows, columns)
        except (pa.ArrowException, ValueError) as error:
            raise _damaged(fs, path, " ".join(str(error).split())) from error
    missing = {name.split(".")[0] for name in columns or ()} - set(table.column_names)
    if missing:
        raise _damaged(fs, path, f"it has no column {min(missing)!r}")
    return table


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a file or folder exists at `path` now, bypassing listing caches."""
    with explained("read", fs, path):
        fs.invalidate_cache(path)
        return bool(fs.exists(path))


def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove one file. A missing file is not an error."""
    with explained("remove", fs, path), suppress(FileNotFoundError):
        fs.rm_file(path)


def list_files(fs: fsspec.AbstractFileSystem, folder: str, suffix: str = "") -> list[str]:
    """Sorted paths of the files directly in `folder` that end in `suffix`; [] if the folder does not exist.

    Excludes unfinished files of `atomic_write`.
    """
    return [path for path in list_folder(fs, folder)[0] if path.endswith(suffix)]


def file_versions(fs: fsspec.AbstractFileSystem, folder: str, suffix: str = "") -> dict[str, str]:
    """The files of `list_files`, each with its size and its version in the store (etag or modification time).

    A replaced file has another version, and so does a copy.
    """
    versions = {}
    for entry in _listed(fs, folder):
        path = entry["name"].rstrip("/")
        if entry["type"] == "file" and path.endswith(suffix) and not _is_temporary(path):
            versions[path] = f"{entry['size']} {version_of(entry)}"
    return dict(sorted(versions.items()))


def list_folders(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Sorted paths of the folders directly in `folder`; [] if it does not exist."""
    return list_folder(fs, folder)[1]


def list_folder(fs: fsspec.AbstractFileSystem, folder: str) -> tuple[list[str], list[str]]:
    """The files of `list_files` and the folders of `list_folders`, in one request."""
    entries = _listed(fs, folder)
    return [path for path in _paths(entries, "file") if not _is_temporary(path)], _paths(entries, "directory")


def remove_leftovers(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Remove temporary files that killed writers left in `folder`; returns their names.

    Call it only when no other process writes there: a live writer would lose its file.
    """
    leftovers = [path for path in _paths(_listed(fs, folder), "file") if _is_temporary(path)]
    for path in leftovers:
        remove(fs, path)
    return leftovers


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key")
    return values


def _damaged(fs: fsspec.AbstractFileSystem, path: str, reason: str) -> UserError:
    return UserError(f"{shown(fs, path)} is damaged: {reason[:300]}")


def _paths(entries: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    return sorted(entry["name"].rstrip("/") for entry in entries if entry["type"] == kind)


def _listed(fs: fsspec.AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    with explained("read", fs, folder):
        fs.invalidate_cache(folder)
        try:
            entries = fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []
    # An object store may list an empty marker object with the folder's own name.
    return [entry for entry in entries if entry["name"].strip("/") != folder.strip("/")]


def _protocols(fs: fsspec.AbstractFileSystem) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _temporary_path(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{temporary_name(name)}"


def _is_temporary(path: str) -> bool:
    return is_temporary(path.rpartition("/")[2])


def _open_for_writing(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    if is_local(fs):
        return open(path, "xb")
    media_type, _ = mimetypes.guess_type(path)
    arguments = {_TYPE_ARGUMENT[name]: media_type for name in _protocols(fs) & _TYPE_ARGUMENT.keys() if media_type}
    file: BinaryIO = fs.open(path, "wb", **arguments)
    return file


def _rename(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    if is_local(fs):
        rename(source, target)
    else:
        fs.mv(source, target)


def _abandon(fs: fsspec.AbstractFileSystem, file: Any, target: str, *, whole_object: bool) -> None:
    """Drop an unfinished file. Raises nothing: the error that led here takes precedence."""
    with suppress(Exception):
        if not whole_object:
            with suppress(Exception):
                file.close()
            fs.rm_file(target)
        elif not file.closed:
            file.discard()
    if whole_object:
        # fsspec's buffered files upload their content when closed or collected, unless they are already closed.
        with suppress(Exception):
            file.closed = True


@contextmanager
def explained(action: str, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Translate errors of a disk, a store or its client in the block into a UserError that names the address."""
    try:
        yield
    except FileNotFoundError as error:
        if action == "read":
            raise
        raise _cannot(action, shown(fs, path), error) from error
    except FileExistsError as error:
        if action == "create":
            raise
        raise _cannot(action, shown(fs, path), error) from error
    except UserError:
        raise
    except Exception as error:
        if is_of_store(error):
            raise _cannot(action, shown(fs, path), error) from error
        raise


def is_of_store(error: BaseException) -> bool:
    """Whether a disk, a store or its client raised an error."""
    return isinstance(error, OSError) or type(error).__module__.startswith(_CLIENT_LIBRARIES)


def reason_of(error: BaseException) -> str:
    """The error as reported by the system or the client, without credentials."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return redacted(reason or str(error.__cause__ or "") or type(error).__name__)


def _cannot(action: str, path: str, error: Exception) -> UserError:
    reason = reason_of(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        advice = " No partial file was left. Free some space, then rerun the same command."
    else:
        advice = " Check the address and the permissions." if action in ("write", "create") else ""
    return UserError(f"cannot {action} {path}: {reason.rstrip('.')}.{advice}")
