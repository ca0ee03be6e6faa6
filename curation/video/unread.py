"""What is left unread at the end of a file: scrambled packets, another file joined to it, another codec."""

import re
from typing import Any

from curation.video.geometry import described
from curation.video.scrambling import is_scrambled
from curation.video.stall import Watched

_BEGINNINGS = {
    "flv": re.compile(rb"FLV\x01.\0\0\0\x09", re.DOTALL),
    "ivf": re.compile(rb"DKIF\0\0\x20\0"),
    "asf": re.compile(re.escape(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"))),
}
"""How files begin whose demuxers stop or stumble where a second one begins."""
_SEARCHED_BYTES = 1 << 20
"""After the last packet: an index may come before the end of the first file."""
_CODEC = re.compile(r"Video: (\w+)")
_MOST_BOXES = 32
_JOINED = "another file is joined to its end, which is not read: join recordings with FFmpeg's concat"


def why_unread(file: Watched, container: str, last_packet_bytes: int | None) -> str | None:
    """Why a stream goes on after its last packet, which begins at this byte; None if it does not."""
    if container == "mpegts":
        return "the stream is scrambled from there on" if is_scrambled(file, at_end=True) else None
    position = file.tell()
    try:
        if container.startswith("mov,"):
            return _JOINED if _has_two_files(file) else None
        if container in _BEGINNINGS and last_packet_bytes:
            file.seek(last_packet_bytes)
            return _JOINED if _BEGINNINGS[container].search(file.read(_SEARCHED_BYTES)) else None
    finally:
        file.seek(position)
    return None


class CodecWatch:
    """Whether a transport stream goes on in another codec, as recordings of two cameras joined end to end do.

    Its packets then go to a decoder that takes them for damaged ones.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._watches = container.format.name == "mpegts"
        self._codec: str | None = None
        self._last_dts: int | None = None
        self.sentence = ""
        """What is not read."""

    def changed_at(self, packet: Any) -> bool:
        """Whether this packet is of another codec. Asks where one may begin: at keyframes and where time steps back."""
        if not self._watches:
            return False
        rises = packet.dts is not None and self._last_dts is not None and packet.dts > self._last_dts
        self._last_dts = packet.dts
        if rises and not packet.is_keyframe:
            return False
        match = _CODEC.search(described(self._container, self._stream))
        codec = match[1] if match else self._codec
        self._codec = self._codec or codec
        self.sentence = f"the stream goes on in another codec, {codec}, which is not read: cut the file there"
        return codec != self._codec


def _has_two_files(file: Watched) -> bool:
    """Whether a second `ftyp` follows the index of an MP4."""
    place, seen = 0, set()
    for _ in range(_MOST_BOXES):
        file.seek(place)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if kind == b"ftyp" and b"moov" in seen:
            return True
        if len(header) < 8 or size < 8 or kind == b"moof":
            return False
        seen.add(kind)
        place += size
    return False
