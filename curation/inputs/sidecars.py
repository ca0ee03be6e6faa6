"""Files beside a video with the same name and another suffix: captions and metadata. They are untrusted."""

import codecs
import errno
import os
import posixpath
from collections.abc import Iterator
from functools import lru_cache

from clipmill.archives import split_link
from clipmill.errors import UserError, raise_if_stopped
from clipmill.local_files import open_regular, path_of
from clipmill.storage import is_local, read_limited, reason_of
from curation.inputs.stats import Source, locate

_MAX_SIDECAR_BYTES = 4 << 20
_TOO_LARGE = f"more than {_MAX_SIDECAR_BYTES >> 20} MiB; expected captions only"


def read_sidecar(source: Source, suffix: str) -> str | None:
    """The text of the file NAME + suffix beside the video; None if there is none. One request on an object store.

    Raises UserError if it cannot be read, RunStopped if this machine is out of resources. A store that hides unlisted
    files responds "forbidden" for a missing file, so outside the local disk a forbidden file counts as missing.
    """
    try:
        content = _read(beside(source.location, suffix), source.root)
        return None if content is None else _decode(content)
    except MemoryError:
        raise
    except Exception as error:  # untrusted bytes, and whatever client a store has: a caption is not worth a source
        raise_if_stopped(error)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{type(error).__name__}: {error}") from error


def beside(address: str, suffix: str) -> str:
    """The address with another suffix; a web address keeps its query, a file in an archive its archive."""
    member, archive = split_link(address)
    if archive:
        return f"{beside(member, suffix)}::{archive}"
    if not address.startswith(("http://", "https://")):
        return posixpath.splitext(address)[0] + suffix
    address, mark, query = address.partition("#")[0].partition("?")
    return posixpath.splitext(address)[0] + suffix + mark + query


def _read(address: str, root: str) -> bytes | None:
    """The content; None if the file does not exist. One request on an object store."""
    fs, path = locate(address)
    try:
        if is_local(fs):
            return _read_local(path, root)
        return read_limited(fs, path, max_bytes=_MAX_SIDECAR_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # .json is longer than .mp4
            return None
        raise UserError(reason_of(error)) from error
    except UserError as error:
        if not is_local(fs) and _says_nothing_is_there(error.__cause__):
            return None
        raise


def _read_local(path: str, root: str) -> bytes:
    """The content of a sidecar. A link must resolve below the input's folder, the video's folder, or their content
    store."""
    with open_regular(path) as file:
        real_path, folder = path_of(file.fileno(), path), posixpath.dirname(path)
        if not any(real_path.startswith(f"{place.rstrip('/')}/") for place in _allowed(folder, root or folder)):
            raise UserError(f"link to a file outside {root or folder}; captions are only read from inside")
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > _MAX_SIDECAR_BYTES:
            raise UserError(_TOO_LARGE)
        return file.read(size_bytes)  # no more: a file that grows under us is not a caption


@lru_cache(maxsize=1024)
def _allowed(folder: str, root: str) -> tuple[str, ...]:
    """Folders that may contain a sidecar once links are resolved: git-annex, DVC and Hugging Face use content
    stores."""
    folders = [os.path.realpath(folder), os.path.realpath(root)]
    for above in _ancestors(folders[1]):
        folders += [f"{above}/.git/annex/objects", f"{above}/.dvc/cache"]
        folders += [f"{above}/blobs"] if os.path.isdir(f"{above}/snapshots") else []
    return tuple(folders)


def _ancestors(path: str) -> Iterator[str]:
    """`path` and every folder above it."""
    yield path
    while path != (path := posixpath.dirname(path)):
        yield path


def _says_nothing_is_there(error: BaseException | None) -> bool:
    forbidden, range_not_satisfiable = 403, 416  # the latter: the file is empty
    status = getattr(error, "status", None)
    empty = "InvalidRange" in str(error) or "not satisfiable" in str(error)
    return isinstance(error, PermissionError) or status in (forbidden, range_not_satisfiable) or empty


def _decode(content: bytes) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"not {error.encoding.upper()} at byte {error.start:,} ({error.reason}); save it as UTF-8"
        ) from error
