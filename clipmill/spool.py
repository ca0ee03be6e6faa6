"""Bytes that have to wait: in memory while they are few, else in a temporary file on the local disk.

A local disk that is full or fails says nothing about the video whose bytes were to wait there: it stops the run.
"""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from clipmill.errors import RunStopped

IN_MEMORY_BYTES = 32 << 20


class Spool:
    """Pieces of bytes, each found again by where it begins. A context manager; closing it frees the space.

    Raises RunStopped where the temporary folder cannot be written or read.
    """

    def __init__(self, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._in_memory_bytes = in_memory_bytes
        self._file = self._empty_file()
        self.size_bytes = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def put(self, content: bytes) -> int:
        """Append a piece; where it begins."""
        start = self.size_bytes
        with _own_files():
            self._file.seek(start)
            self._file.write(content)
        self.size_bytes += len(content)
        return start

    def get(self, start: int, size_bytes: int) -> bytes:
        """A piece, by where it begins and how long it is."""
        with _own_files():
            self._file.seek(start)
            return self._file.read(size_bytes)

    def keep(self, pieces: list[tuple[int, int]]) -> list[int]:
        """Drop all but these (start, size) pieces; where each begins from now on."""
        smaller = Spool(self._in_memory_bytes)
        try:
            starts = [smaller.put(self.get(*piece)) for piece in pieces]
        except BaseException:
            smaller._close()
            raise
        self._close()
        self._file, self.size_bytes = smaller._file, smaller.size_bytes
        return starts

    def _close(self) -> None:
        with suppress(OSError):  # what a full disk did not take was in a buffer: nobody will ask for it
            self._file.close()

    def _empty_file(self) -> BinaryIO:
        return tempfile.SpooledTemporaryFile(self._in_memory_bytes)  # type: ignore[return-value]


@contextmanager
def _own_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EFBIG:
            reason = f"{reason} (more than limits.spool_bytes, or than ulimit -f allows)"
        raise RunStopped(
            f"cannot use the temporary folder {_folder()}: {reason}. Make room there or set TMPDIR to another folder, "
            "then run the same command again"
        ) from error


def _folder() -> str:
    """Where temporary files go; where none can be written, what was asked for."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "(TMPDIR)"
