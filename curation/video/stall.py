"""Stop a demuxer that keeps reading without reaching a frame, as in sparse files or endless garbage."""

from typing import BinaryIO

_LEAST_READ_BYTES = 4096
"""Minimum byte count per read: some files cause endless seeking."""
_MOST_PACKETS = 100_000
"""Packet limit without a frame: half an hour of an undecodable stream."""
_MOST_STALLS = 3
"""Read limit without a frame: after that the demuxer finds nothing more."""


class Watched:
    """A file that ends once `stall_bytes` were read without reaching a frame. Everything before that stays readable."""

    def __init__(self, file: BinaryIO, stall_bytes: int) -> None:
        self._file, self._stall_bytes = file, stall_bytes
        self._bytes = self._packets = self._stalls = 0
        self._end: int | None = None
        self.reason: str | None = None
        """Why reading ends early, if it does."""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read like any file. Raises nothing: the exception would have to pass through a demuxer's native code."""
        if self._bytes > self._stall_bytes:
            self._stall(f"no frame in {self._stall_bytes:,} bytes (limits.stall_bytes)")
        if self._end is not None:
            size = max(0, min(size, self._end - self._file.tell()))
        content = self._file.read(size)
        self._bytes += max(len(content), _LEAST_READ_BYTES)
        return content

    def came_to_a_packet(self) -> bool:
        """Count a packet; returns whether to continue."""
        self._packets += 1
        if self._packets > _MOST_PACKETS:
            self.reason = f"no frame in {_MOST_PACKETS:,} packets"
        return self._packets <= _MOST_PACKETS

    def came_to_a_frame(self) -> None:
        """Reset the counters."""
        self._bytes = self._packets = self._stalls = 0

    def _stall(self, reason: str) -> None:
        self.reason, self._bytes, self._stalls = reason, 0, self._stalls + 1
        end = 0 if self._stalls >= _MOST_STALLS else self._file.tell()
        self._end = end if self._end is None else min(end, self._end)
