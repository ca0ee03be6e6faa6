"""Buffer bytes in memory while they are few, else in a temporary file on the local disk.

A full or failing local disk is not the fault of the video being read: it stops the run.
"""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from clipmill.errors import RunStopped

IN_MEMORY_BYTES = 32 << 20


class Spool:
    """Pieces of bytes, addressed by their offset. A context manager; closing it frees the space.

    Raises RunStopped if the temporary folder cannot be written or read.
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
        """Append a piece; returns its offset."""
        start = self.size_bytes
        with _own_files():
            self._file.seek(start)
            self._file.write(content)
        self.size_bytes += len(content)
        return start

    def get(self, start: int, size_bytes: int) -> bytes:
        """Read the piece of `size` bytes at an offset."""
        with _own_files():
            self._file.seek(start)
            return self._file.read(size_bytes)

    def keep(self, pieces: list[tuple[int, int]]) -> list[int]:
        """Keep only these (start, size) pieces; returns their new offsets."""
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
        with suppress(OSError):  # the buffer still holds what a full disk rejected; nobody will read it
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
            "then rerun the same command"
        ) from error


def _folder() -> str:
    """The folder for temporary files; if none is writable, the one that was configured."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "(TMPDIR)"
