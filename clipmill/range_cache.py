"""Cache of byte ranges read from a store: on a local disk, shared by the processes of a machine, of limited size.

Each entry is a file named by the digest of its key, renamed into place when complete; a checksum detects damage by a
power failure. The least recently used entries are removed to make room.
"""

import fcntl
import logging
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from clipmill.atomic import is_temporary, temporary_name
from clipmill.errors import UserError

_CHECKSUM = struct.Struct("<I")
_SIZE = struct.Struct("<q")
_USAGE = "usage"
"""File with the size of all entries, and the lock on it."""
_KEPT = 0.9
"""Share of the size that a clean-up leaves occupied, so that not every write needs one."""
_LEFTOVER_AFTER_S = 3600.0
"""Age at which the writer of a temporary file is presumed dead."""
_LOG = logging.getLogger("clipmill.data")


def default_folder() -> Path:
    """Default folder of the cache: XDG_CACHE_HOME/clipmill/ranges, else below ~/.cache, or below the temporary folder
    for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        base = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return Path(base) / "clipmill" / "ranges"


class RangeCache:
    """At most `max_bytes` of entries in `folder`, shared with other processes. Raises UserError for a folder that
    cannot be used. If the disk fails later, caching stops but the run continues."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes, self._failed = folder, max_bytes, False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise UserError(f"{folder} belongs to another user: choose another folder (data.cache_folder)")
            with self._usage(0):
                pass
        except OSError as error:
            raise UserError(
                f"cannot use {folder} as a cache: {error.strerror or error}. Choose another folder "
                "(data.cache_folder), or disable the cache (data.cache_gib=0)"
            ) from error

    def has(self, key: str) -> bool:
        """Whether the entry exists. Another process may remove it at any time."""
        return self._path(key).exists()

    def get(self, key: str) -> bytes | None:
        """The content of an entry; None if it is missing or damaged."""
        path = self._path(key)
        with suppress(OSError):
            content = path.read_bytes()
            whole, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
            if checksum == _checksum(whole):
                os.utime(path)
                return whole
            path.unlink()
        return None

    def put(self, key: str, content: bytes) -> None:
        """Store an entry and remove old ones beyond the limit. Entries larger than a tenth of it are not stored."""
        size = len(content) + _CHECKSUM.size
        if self._failed or size > self._max_bytes / 10:
            return
        path = self._path(key)
        temporary = path.with_name(temporary_name(path.name))
        try:
            with self._usage(size) as usage:
                if usage > self._max_bytes:
                    self._clean_up(size)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            temporary.write_bytes(content + _checksum(content))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._failed = True
            _LOG.warning("%s: %s; continuing without a cache", self._folder, error.strerror or error)

    @contextmanager
    def _usage(self, added_bytes: int) -> Iterator[int]:
        """The total size of the entries including a new one of `added_bytes`; holds the lock."""
        with open(self._folder / _USAGE, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            usage = added_bytes + (_SIZE.unpack(content)[0] if len(content) == _SIZE.size else self._measured())
            self._write_usage(usage)
            yield usage

    def _write_usage(self, usage: int) -> None:
        with open(self._folder / _USAGE, "r+b") as file:
            file.write(_SIZE.pack(usage))

    def _clean_up(self, added_bytes: int) -> None:
        """Remove the least recently used entries, and leftovers of killed writers. Holds the lock."""
        entries = sorted(self._entries(), key=lambda entry: entry[2])
        usage, kept = sum(size for _, size, _ in entries) + added_bytes, _KEPT * self._max_bytes
        for path, size, _ in entries:
            if usage <= kept:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            usage -= size
        self._write_usage(usage)

    def _measured(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _entries(self) -> Iterator[tuple[str, int, int]]:
        """(path, size, time of last use in ns) of each entry; removes old temporary files."""
        with os.scandir(self._folder) as folders:
            for folder in folders:
                if not folder.is_dir(follow_symlinks=False):
                    continue
                with os.scandir(folder.path) as files:
                    for file in files:
                        with suppress(FileNotFoundError):
                            stat = file.stat(follow_symlinks=False)
                            if not is_temporary(file.name):
                                yield file.path, stat.st_size, stat.st_mtime_ns
                            elif time.time() - stat.st_mtime > _LEFTOVER_AFTER_S:
                                os.unlink(file.path)

    def _path(self, key: str) -> Path:
        name = blake2b(key.encode(), digest_size=20).hexdigest()
        return self._folder / name[:2] / name[2:]


def _checksum(content: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(content))
