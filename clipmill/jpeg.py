"""Size of a JPEG from its header, without decoding: an untrusted image may claim to be huge."""

_STANDALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a segment."""
_NO_FRAME_HEADERS = {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels; None if it is not a JPEG. ITU-T T.81, B.1 and B.2.2."""
    if content[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADERS:
            return int.from_bytes(content[at + 7 : at + 9]), int.from_bytes(content[at + 5 : at + 7])
        else:
            length = int.from_bytes(content[at + 2 : at + 4])
            if marker == _START_OF_SCAN or length < 2:
                return None
            at += 2 + length
    return None
