"""An MP4 that shows a part of its pictures, which no muxer at hand writes."""

import struct

CLEAN_APERTURE = (56, 40, -4, 6)
"""Width and height shown, of 96 x 64, and how far to the right and down from the middle."""


def with_clean_aperture(mp4: bytes) -> bytes:
    """The file, whose index comes last, with a `clap` box in its only sample entry."""
    content, start, end, parents = bytearray(mp4), 0, len(mp4), []
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        while content[start + 4 : start + 8] != name:
            start += int.from_bytes(content[start : start + 4], "big")
            assert start < end, name
        parents.append(start)
        start, end = start + 8, start + int.from_bytes(content[start : start + 4], "big")
    entry = start + 8
    width, height, right, down = CLEAN_APERTURE
    box = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, right, 1, down, 1)
    position = entry + int.from_bytes(content[entry : entry + 4], "big")
    content[position:position] = box
    for parent in (*parents, entry):
        size = int.from_bytes(content[parent : parent + 4], "big") + len(box)
        content[parent : parent + 4] = size.to_bytes(4, "big")
    return bytes(content)
