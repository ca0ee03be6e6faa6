"""One input: its address, current size and version, and how to open it. Every request has a deadline."""

import hashlib
import os
import posixpath
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

import fsspec
from fsspec.implementations.http import HTTPFileSystem

from clipmill.addresses import redacted, without_credentials
from clipmill.archives import ArchiveFileSystem, version_of
from clipmill.copies import COPY_BYTES
from clipmill.errors import SourceError, UserError, raise_if_stopped
from clipmill.local_files import open_regular
from clipmill.storage import address, filesystem, is_local, reason_of
from clipmill.store_requests import call, within
from clipmill.text import is_unicode
from clipmill.web_files import open_web_file
from curation.inputs.folders import FOLDER_NOT_FILE

_READ_AHEAD_BYTES = 8 << 20
"""Of sources that are read from beginning to end."""
_STAT_DEADLINE_S = 30.0
_IMPATIENT_DEADLINE_S = 3.0
_PATIENCE = 64
"""Number of unresponsive addresses after which the others get the shorter deadline."""
_HOST_TRIES = 8
"""Number of consecutive unresponsive addresses after which a host is skipped."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input. `error` is set if it cannot be used; `captions` and `metadata` are those listed with it."""

    uri: str
    """A plain absolute path, or a URL without its credentials. A local name that is not UTF-8 is a file:// URL."""
    size_bytes: int | None = None
    version: str = ""
    """Version of the file at this address: etag, or modification time in nanoseconds."""
    captions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    error: SourceError | None = None
    signed: str = field(default="", repr=False)
    """The address with credentials, if it has any: used to open it in this run, never stored or shown."""
    root: str = ""
    """The local folder that contains the input, below which links to captions may point; empty: the file's own
    folder."""

    @property
    def source_id(self) -> str:
        """16 hex digits derived from uri, size and version: stable as long as the file is unchanged."""
        text = f"{self.uri}\0{self.size_bytes}\0{self.version}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def location(self) -> str:
        """The address to open."""
        return self.signed or self.uri


@dataclass(frozen=True)
class Candidate:
    """A possible input, before its existence is checked."""

    fs: fsspec.AbstractFileSystem
    path: str
    captions: tuple[str, ...] = ()
    info: dict[str, Any] | None = None
    root: str = ""
    explicit: bool = False
    """Named on the command line."""
    error: SourceError | None = None
    """Why it cannot be used; no request is sent."""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Patience:
    """Timeout of an address, given the responses of others, so that a list of dead addresses cannot block a run for
    hours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered, self._in_a_row = 0, Counter[str]()

    def deadline_s(self, host: str) -> float | None:
        """None: skip it."""
        with self._lock:
            if self._in_a_row[host] >= _HOST_TRIES:
                return None
            return _STAT_DEADLINE_S if self._unanswered < _PATIENCE else _IMPATIENT_DEADLINE_S

    def note(self, host: str, *, answered: bool) -> None:
        """Record whether an address of this host responded."""
        with self._lock:
            self._in_a_row[host] = 0 if answered else self._in_a_row[host] + 1
            self._unanswered += not answered


def stat_source(uri: str) -> Source:
    """The source at one address now. Raises UserError for an unknown protocol; other errors are set on the Source."""
    fs, path = locate(uri)
    return stat_candidate(Candidate(fs, path), Patience())


def open_source(
    location: str, *, max_copy_bytes: int = COPY_BYTES, read_ahead_bytes: int = _READ_AHEAD_BYTES
) -> BinaryIO:
    """Open an input for reading with random access. Raises SourceError (missing, unreadable), RunStopped.

    From stores and servers, each request asks for `read_ahead_bytes` more than what is wanted now.
    A file that can only be read from beginning to end (compressed in an archive, on a server without ranges) is copied
    to a temporary file of at most `max_copy_bytes`.
    """
    try:
        fs, path = locate(location)
        if is_local(fs):
            return open_regular(path)
        if isinstance(fs, HTTPFileSystem):
            return open_web_file(fs, path, max_copy_bytes=max_copy_bytes, read_ahead_bytes=read_ahead_bytes)
        if isinstance(fs, ArchiveFileSystem):
            return fs.open(path, "rb", max_copy_bytes=max_copy_bytes)
        return fs.open(path, "rb", cache_type="readahead", block_size=read_ahead_bytes)
    except MemoryError:
        raise
    except Exception as error:
        raise _unusable(error) from error


def stat_candidate(candidate: Candidate, patience: Patience) -> Source:
    """Size and version of one candidate. Errors are set on the Source."""
    fs, path, uri = candidate.fs, candidate.path, stored_uri(candidate)
    source = Source(
        uri=uri,
        captions=candidate.captions,
        metadata=candidate.metadata,
        error=candidate.error,
        root=candidate.root,
    )
    if candidate.error is not None:
        return source
    if not is_local(fs) and (full := address(fs, path)) != uri:
        source = replace(source, signed=full)
    try:
        info = candidate.info or (_local_info(path) if is_local(fs) else _remote_info(fs, path, patience))
        if info["type"] != "file":
            what = FOLDER_NOT_FILE if info["type"] == "directory" else "not a regular file: a device or a pipe"
            return replace(source, error=SourceError("unreadable", what))
        return replace(source, size_bytes=info["size"], version=version_of(info))
    except MemoryError:
        raise
    except Exception as error:
        return replace(source, error=_unusable(error))


def _local_info(path: str) -> dict[str, Any]:
    try:
        stat_result = os.stat(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise SourceError("missing", "broken link: its target does not exist or was not fetched") from None
        raise
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}.get(stat.S_IFMT(stat_result.st_mode), "other")
    return {"type": kind, "size": stat_result.st_size, "mtime": stat_result.st_mtime_ns}


def _remote_info(fs: fsspec.AbstractFileSystem, path: str, patience: Patience) -> Any:
    host = address(fs, path).partition("://")[2].partition("/")[0].rpartition("@")[2]
    deadline_s = patience.deadline_s(host)
    if deadline_s is None:
        raise SourceError("unreadable", f"skipped: {host} failed to respond {_HOST_TRIES} times in a row")
    try:
        info = within(deadline_s, fs, lambda: call(fs, "info", path))
    except Exception as error:
        patience.note(host, answered=not isinstance(error, TimeoutError))
        raise
    patience.note(host, answered=True)
    return info


def _unusable(error: Exception) -> SourceError:
    """Raises RunStopped if the source is not at fault."""
    raise_if_stopped(error)
    if isinstance(error, SourceError):
        return error
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__  # fsspec says this of every failure of a web server
        of_web = isinstance(cause, Exception) and type(cause).__module__.startswith("aiohttp")
        if of_web and getattr(cause, "status", None) not in (404, 410):
            return SourceError("unreadable", f"cannot be opened: {_web_reason(cause)}")
        return SourceError("missing", "no file exists at this address")
    if isinstance(error, IsADirectoryError):
        return SourceError("unreadable", FOLDER_NOT_FILE)
    if isinstance(error, UserError):
        return SourceError("unreadable", redacted(str(error)))
    return SourceError("unreadable", f"cannot be opened: {reason_of(error)}")


def _web_reason(error: BaseException | None) -> str:
    status = getattr(error, "status", None)
    return f"{status} {getattr(error, 'message', '')}".strip() if status or error is None else reason_of(error)


def locate(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system behind a `Source`'s address, and the path inside it. Raises UserError as `filesystem`."""
    if uri.startswith("file://"):
        return filesystem(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return filesystem(uri)


def stored_uri(candidate: Candidate) -> str:
    """The address to store; for an invalid row, the part that can be shown."""
    fs, path = candidate.fs, candidate.path
    if candidate.error is not None and not posixpath.isabs(path):
        return without_credentials(path).encode("utf-8", "backslashreplace").decode()
    if is_local(fs):
        return path if is_unicode(path) else f"file://{quote_from_bytes(os.fsencode(path))}"
    return without_credentials(address(fs, path))
