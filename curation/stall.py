"""Stop a demuxer that reads on and on without coming to a frame: sparse files, endless rubbish."""

from typing import BinaryIO

_LEAST_READ_BYTES = 4096
"""What a read counts for at least: there are files that are sought through without end."""
_MOST_PACKETS = 100_000
"""Without one frame: half an hour of a stream that cannot be decoded."""


class Stalled(Exception):
    """So much was read without coming to a frame."""


class Watched:
    """A file that stops a demuxer which reads on and on without a frame: sparse files, endless rubbish."""

    def __init__(self, file: BinaryIO, stall_bytes: int) -> None:
        self._file, self._stall_bytes = file, stall_bytes
        self._bytes, self._packets = 0, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """As of any file. Raises Stalled."""
        content = self._file.read(size)
        self._bytes += max(len(content), _LEAST_READ_BYTES)
        if self._bytes > self._stall_bytes:
            raise Stalled(f"no frame in {self._stall_bytes:,} bytes (limits.stall_bytes)")
        return content

    def came_to_a_packet(self) -> None:
        """Count a packet. Raises Stalled."""
        self._packets += 1
        if self._packets > _MOST_PACKETS:
            raise Stalled(f"no frame in {_MOST_PACKETS:,} packets")

    def came_to_a_frame(self) -> None:
        """Begin to count anew."""
        self._bytes, self._packets = 0, 0
