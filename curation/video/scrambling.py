"""Scrambled MPEG transport streams (conditional access): their packets say so, and FFmpeg passes over them silently."""

import numpy as np

from curation.video.stall import Watched

_PACKET_BYTES = (188, 192, 204)
"""Plain, with a timestamp in front (M2TS), with error correction behind."""
_SYNC = 0x47
_LOOKED_AT_BYTES = 1 << 14
_FIRST_PID, _NULL_PID = 0x20, 0x1FFF
"""Programs lie between tables, which are never scrambled, and padding."""


def is_scrambled(file: Watched, *, at_end: bool = False) -> bool:
    """Whether most packets at the beginning or end of a transport stream are scrambled. The position is kept."""
    position = file.tell()
    try:
        start = max(0, file.seek(0, 2) - _LOOKED_AT_BYTES) if at_end else 0
        file.seek(start)
        content = np.frombuffer(file.read(_LOOKED_AT_BYTES), np.uint8)
    finally:
        file.seek(position)
    for packet_bytes in _PACKET_BYTES:
        count = len(content) // packet_bytes - 1
        if count < 1:
            continue
        synced = (content[: count * packet_bytes].reshape(count, packet_bytes) == _SYNC).all(0)
        if synced.any():
            begin = int(synced.argmax())
            headers = content[begin : begin + count * packet_bytes].reshape(count, packet_bytes)[:, :4].astype(int)
            pids = (headers[:, 1] & 0x1F) << 8 | headers[:, 2]
            payload = (headers[:, 3] & 0x10 > 0) & (pids >= _FIRST_PID) & (pids != _NULL_PID)
            return bool(payload.any() and (headers[payload, 3] >= 0x80).mean() > 0.5)
    return False
