"""Files on a local disk or in an object store, through fsspec; every file is written whole or not at all."""

import asyncio
import errno
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from clipmill.addresses import redacted, without_credentials
from clipmill.atomic import is_temporary, rename, temporary_name
from clipmill.errors import UserError

T = TypeVar("T")

_WHOLE_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"}
"""Stores in which an object appears when its upload is completed, never before."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLIENT_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs")
_READ_DEADLINE_S = 60.0
_KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
_SHARED_MEMORY = "/dev/shm/"


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system behind a local path or a URL such as `s3://bucket/folder`, and the path inside it.

    Raises UserError for an unknown protocol, or one whose package is not installed.
    """
    if "://" not in url:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{redacted(url)!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(
            f"{redacted(url)!r} is not an address that fsspec knows: {redacted(str(error))}. Expected a path or, for "
            "example, s3://bucket/x."
        ) from error
    return fs, path.rstrip("/") or path


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of `fs` are plain paths on this machine."""
    return isinstance(fs, LocalFileSystem)


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`path` as a person or another program would give it: a plain path, or a URL with its protocol."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def shown(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`address` as it may stand in an error, a log or a table: without password, signature or token."""
    return without_credentials(address(fs, path))


@contextmanager
def atomic_write(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """A binary file to write into, which appears under `path` when the block ends, and not at all if it fails.

    On a disk: a temporary name in the same folder, synced, then renamed. On an object store: one upload, completed
    at the end and aborted on an error. Folders are made as needed. Raises UserError when nothing can be written
    there (no permission, no space); errors of the caller's own block pass unchanged.
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
    """Write a small file, whole or not at all. Raises UserError when that is impossible."""
    with atomic_write(fs, path) as file:
        file.write(content)


def read_bytes(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The whole content of a small file. Raises FileNotFoundError, or UserError when it cannot be read."""
    with explained("read", fs, path):
        content: bytes = fs.cat_file(path)
        return content


def read_limited(
    fs: fsspec.AbstractFileSystem, path: str, *, max_bytes: int, deadline_s: float = _READ_DEADLINE_S
) -> bytes:
    """The content of a file from a stranger: a regular file, of at most `max_bytes`, within `deadline_s`.

    Raises FileNotFoundError, or UserError for anything else that is in the way.
    """
    content: bytes
    with explained("read", fs, path):
        if is_local(fs):
            with open_regular(path) as file:
                # read() allocates what it is asked for, not what there is
                content = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
        elif isinstance(fs, HTTPFileSystem):
            content = within(deadline_s, fs, lambda: _http_head(fs, path, max_bytes + 1))
        else:
            content = within(deadline_s, fs, lambda: call(fs, "cat_file", path, start=0, end=max_bytes + 1))
    if len(content) > max_bytes:
        raise UserError(f"{shown(fs, path)} is larger than {max_bytes:,} bytes, the most that is read of such a file")
    return content


def read_json(
    fs: fsspec.AbstractFileSystem, path: str, parse: Callable[[dict[str, Any]], T], *, max_bytes: int = 1 << 30
) -> T:
    """What `parse` makes of one of our own JSON files, which holds an object.

    Raises FileNotFoundError, or UserError `PATH is damaged: ...` when the file is not such JSON, or when `parse`
    misses a key or meets a value of another type.
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


def read_parquet(fs: fsspec.AbstractFileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns (a nested one by its full name, as in "captions.list.element.error").

    Raises FileNotFoundError, or UserError `PATH is damaged: ...`.
    """
    with explained("read", fs, path), fs.open(path, "rb") as file:
        try:
            table = pq.ParquetFile(file).read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, ValueError) as error:
            raise _damaged(fs, path, " ".join(str(error).split())) from error
    missing = {name.split(".")[0] for name in columns or ()} - set(table.column_names)
    if missing:
        raise _damaged(fs, path, f"it has no column {min(missing)!r}")
    return table


def open_regular(path: str) -> BinaryIO:
    """Open a local file for reading, links followed, if it is a regular file and not one of the kernel's.

    What counts is the file that was opened, whatever the name means a moment later. Raises OSError, and UserError
    for a folder, a device, a pipe, and all below /proc, /sys and /dev but /dev/shm.
    """
    _check_regular(os.stat(path).st_mode)  # before opening: opening a device can already do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        check_not_of_kernel(path_of(descriptor, path))
        return open(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def path_of(descriptor: int, path: str) -> str:
    """Where an open file lies, links resolved; `path` is the name it was opened by."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.path.realpath(path)


def check_not_of_kernel(real_path: str) -> None:
    """Raise UserError for a resolved path below /proc, /sys or /dev, where files answer with what they like."""
    if real_path.startswith(_KERNEL_FOLDERS) and not real_path.startswith(_SHARED_MEMORY):
        raise UserError(f"it is below /{real_path.split('/')[1]}, where nothing is read")


def within(deadline_s: float, fs: fsspec.AbstractFileSystem, question: Callable[[], Any]) -> Any:
    """The answer to a question that is put to a store, or TimeoutError when there is none within `deadline_s`.

    `question` gives the answer, or for an asynchronous file system the coroutine that does, which is cancelled.
    """
    answer: Future[Any] = Future()
    if fs.async_impl:
        answer = asyncio.run_coroutine_threadsafe(asyncio.wait_for(question(), deadline_s), fs.loop)
    else:

        def ask() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(None if fs.async_impl else deadline_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {deadline_s:g} s") from error


def call(fs: fsspec.AbstractFileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method's result, or its coroutine for an asynchronous file system: a question for `within`."""
    return getattr(fs, f"_{method}" if fs.async_impl else method)(*args, **kwargs)


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a file or folder is at `path` right now (no cached listing is asked)."""
    with explained("read", fs, path):
        fs.invalidate_cache(path)
        return bool(fs.exists(path))


def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove one file. A file that is already gone is not an error."""
    with explained("remove", fs, path), suppress(FileNotFoundError):
        fs.rm_file(path)


def list_files(fs: fsspec.AbstractFileSystem, folder: str, suffix: str = "") -> list[str]:
    """Sorted paths of the files directly in `folder` whose names end in `suffix`; [] where there is no folder.

    Unfinished files of `atomic_write` are not among them.
    """
    return [path for path in _entries(fs, folder, kind="file") if path.endswith(suffix) and not _is_temporary(path)]


def list_folders(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Sorted paths of the folders directly in `folder`; [] where there is no folder."""
    return _entries(fs, folder, kind="directory")


def remove_leftovers(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Remove what killed writers left in `folder` under temporary names, and say what that was.

    Only for when no other process writes there: a live writer would lose its file.
    """
    leftovers = [path for path in _entries(fs, folder, kind="file") if _is_temporary(path)]
    for path in leftovers:
        remove(fs, path)
    return leftovers


async def _http_head(fs: HTTPFileSystem, url: str, size_bytes: int) -> bytes:
    """The first bytes of a resource. fsspec's own `cat_file` reads all that a server sends, which may have no end."""
    session = await fs.set_session()
    headers = {"Range": f"bytes=0-{size_bytes - 1}", "Accept-Encoding": "identity"}
    async with session.get(fs.encode_url(url), **{**fs.kwargs, "headers": fs.kwargs.get("headers", {}) | headers}) as r:
        fs._raise_not_found_for_status(r, url)
        content = bytearray()
        async for chunk in r.content.iter_chunked(1 << 16):
            content += chunk
            if len(content) >= size_bytes:
                break
        return bytes(content[:size_bytes])


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError("this is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError("this is a device or a pipe, not a file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("the same key is there twice")
    return values


def _damaged(fs: fsspec.AbstractFileSystem, path: str, reason: str) -> UserError:
    return UserError(f"{shown(fs, path)} is damaged: {reason[:300]}")


def _entries(fs: fsspec.AbstractFileSystem, folder: str, *, kind: str) -> list[str]:
    with explained("read", fs, folder):
        fs.invalidate_cache(folder)
        try:
            entries = fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []
    # An object store lists an empty marker object of the folder's own name among its entries.
    return sorted(
        e["name"].rstrip("/") for e in entries if e["type"] == kind and e["name"].strip("/") != folder.strip("/")
    )


def _protocols(fs: fsspec.AbstractFileSystem) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _temporary_path(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{temporary_name(name)}"


def _is_temporary(path: str) -> bool:
    return is_temporary(path.rpartition("/")[2])


def _open_for_writing(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    file: BinaryIO = open(path, "xb") if is_local(fs) else fs.open(path, "wb")  # noqa: SIM115
    return file


def _rename(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    if is_local(fs):
        rename(source, target)
    else:
        fs.mv(source, target)


def _abandon(fs: fsspec.AbstractFileSystem, file: Any, target: str, *, whole_object: bool) -> None:
    """Drop an unfinished file. Nothing may be raised here: the error that led here is the one to be seen."""
    with suppress(Exception):
        if not whole_object:
            with suppress(Exception):
                file.close()
            fs.rm_file(target)
        elif not file.closed:
            file.discard()
    if whole_object:
        # fsspec's buffered files upload what they hold when they are closed or collected; a closed one does not.
        with suppress(Exception):
            file.closed = True


@contextmanager
def explained(action: str, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Turn what a disk, a store or its client raises in the block into a UserError that names the address."""
    try:
        yield
    except FileNotFoundError as error:
        if action == "read":
            raise
        raise _cannot(action, shown(fs, path), error) from error
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(_CLIENT_LIBRARIES):
            raise _cannot(action, shown(fs, path), error) from error
        raise


def reason_of(error: BaseException) -> str:
    """What went wrong, in the words of the system or the client, without credentials."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return redacted(reason)


def _cannot(action: str, path: str, error: Exception) -> UserError:
    reason = reason_of(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        advice = " Nothing was left under that name. Make room and run the same command again."
    else:
        advice = " Check the address and the permissions." if action == "write" else ""
    return UserError(f"cannot {action} {path}: {reason.rstrip('.')}.{advice}")
