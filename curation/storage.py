"""Files on a local disk or in an object store, through fsspec; every file is written whole or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from curation.errors import UserError

_WHOLE_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"}
"""Stores in which an object appears when its upload is completed, never before."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLIENT_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs")
_TEMPORARY_SUFFIX = ".tmp"


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system behind a local path or a URL such as `s3://bucket/folder`, and the path inside it.

    Raises UserError for an unknown protocol, or one whose package is not installed.
    """
    if "://" not in url:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(
            f"{url!r} is no address that fsspec knows: {error}. Expected a path or, for example, s3://bucket/x."
        ) from error
    return fs, path.rstrip("/") or path


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of `fs` are plain paths on this machine."""
    return isinstance(fs, LocalFileSystem)


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`path` as a person or another program would give it: a plain path, or a URL with its protocol."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


@contextmanager
def atomic_write(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """A binary file to write into, which appears under `path` when the block ends, and not at all if it fails.

    On a disk: a temporary name in the same folder, synced, then renamed. On an object store: one upload, completed
    at the end and aborted on an error. Folders are made as needed. Raises UserError when nothing can be written
    there (no permission, no space); errors of the caller's own block pass unchanged.
    """
    whole_object = not _protocols(fs).isdisjoint(_WHOLE_OBJECT_STORES)
    target = path if whole_object else _temporary_name(path)
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
            raise _cannot("write", address(fs, path), error) from error
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


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a file or folder is at `path` right now (no cached listing is asked)."""
    with explained("read", fs, path):
        fs.invalidate_cache(path)
        return bool(fs.exists(path))


def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove one file. That it is already gone is no error."""
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


def _temporary_name(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex[:12]}{_TEMPORARY_SUFFIX}"


def _is_temporary(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


def _open_for_writing(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    file: BinaryIO = open(path, "xb") if is_local(fs) else fs.open(path, "wb")  # noqa: SIM115
    return file


def _rename(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    if not is_local(fs):
        fs.mv(source, target)
        return
    os.replace(source, target)
    folder = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name, too, survives a power cut
    finally:
        os.close(folder)


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
        raise _cannot(action, address(fs, path), error) from error
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(_CLIENT_LIBRARIES):
            raise _cannot(action, address(fs, path), error) from error
        raise


def _cannot(action: str, path: str, error: Exception) -> UserError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        advice = " Nothing was left under that name. Make room and run the same command again."
    else:
        advice = " Check the address and the permissions." if action == "write" else ""
    return UserError(f"cannot {action} {path}: {reason.rstrip('.')}.{advice}")
