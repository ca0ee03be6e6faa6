"""Structure-aware mutations of video containers: boxes of MP4 and QuickTime, elements of Matroska and WebM."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.hostile.mutate import Rng, edge, mutate_bytes

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf"}
_DESCRIPTIONS = {b"stsd": 8, b"meta": 4, b"dref": 8}
"""Parent boxes with this many bytes of their own before their children."""
_BOX_TYPES = (
    b"free",
    b"mdat",
    b"moov",
    b"stbl",
    b"stco",
    b"co64",
    b"stts",
    b"ctts",
    b"elst",
    b"cmov",
    b"uuid",
    b"\0\0\0\0",
)
_MASTERS = {
    0x18538067,
    0x1549A966,
    0x1654AE6B,
    0xAE,
    0xE0,
    0x1F43B675,
    0xA0,
    0x1C53BB6B,
    0xBB,
    0xB7,
    0x1254C367,
    0x114D9B74,
}
"""Segment, Info, Tracks, TrackEntry, Video, Cluster, BlockGroup, Cues, CuePoint, CueTrackPositions, Tags, SeekHead."""


@dataclass(frozen=True)
class _Node:
    """A box or element: offsets of its start, content and end, and the width of its size field."""

    start: int
    content: int
    end: int
    size_at: int
    size_width: int


def mutate_boxes(rng: Rng, content: bytes) -> bytes:
    """Damage boxes of an MP4."""
    return _mutate(rng, content, _boxes(content), _box_size, lambda r: r.choice(_BOX_TYPES), name_at=4)


def mutate_elements(rng: Rng, content: bytes) -> bytes:
    """Damage elements of a Matroska file."""
    return _mutate(rng, content, _elements(content), _element_size, lambda r: r.randbytes(1), name_at=0)


def _mutate(
    rng: Rng,
    content: bytes,
    nodes: list[_Node],
    size_field: Callable[[Rng, int], bytes],
    name: Callable[[Rng], bytes],
    *,
    name_at: int,
) -> bytes:
    if not nodes:
        return mutate_bytes(rng, content)
    for _ in range(rng.choice((1, 1, 2))):
        node = rng.choice(nodes)
        whole, action = content[node.start : node.end], rng.random()
        if action < 0.4:  # inside: headers are small beside the pictures, which plain damage mostly meets
            inside = mutate_bytes(rng, content[node.content : node.end])
            content = content[: node.content] + inside + content[node.end :]
        elif action < 0.55:
            field = size_field(rng, node.size_width)
            content = content[: node.size_at] + field + content[node.size_at + node.size_width :]
        elif action < 0.7:
            content = content[: node.end] + whole * rng.choice((1, 2, 50)) + content[node.end :]
        elif action < 0.8:
            content = content[: node.start] + content[node.end :]
        elif action < 0.9:
            other = rng.choice(nodes)
            content = content[: node.start] + content[other.start : other.end] + content[node.end :]
        else:
            new, place = name(rng), node.start + name_at
            content = content[:place] + new + content[place + len(new) :]
        if action >= 0.55 or len(content) < nodes[-1].end:
            break  # the places of the nodes are no longer true
    return content


def _box_size(rng: Rng, width: int) -> bytes:
    return (edge(rng) % (1 << 8 * width)).to_bytes(width, "big")


def _element_size(rng: Rng, width: int) -> bytes:
    """Encode with the same width, so that later offsets stay valid; all ones mean unknown size."""
    value = edge(rng) % (1 << 7 * width)
    return (value | 1 << 7 * width).to_bytes(width, "big")


def _boxes(content: bytes, start: int = 0, end: int | None = None) -> list[_Node]:
    end, boxes = len(content) if end is None else end, []
    while start + 8 <= end:
        size, kind, header = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8], 8
        if size == 1 and start + 16 <= end:
            size, header = int.from_bytes(content[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else min(end, start + size)
        if stop < start + header:
            break
        boxes.append(_Node(start, start + header, stop, start, 4))
        if kind in _PARENTS or kind in _DESCRIPTIONS:
            boxes += _boxes(content, start + header + _DESCRIPTIONS.get(kind, 0), stop)
        start = stop
    return boxes


def _elements(content: bytes, start: int = 0, end: int | None = None) -> list[_Node]:
    end, elements = len(content) if end is None else end, []
    while start < end and content[start]:
        id_width = 9 - content[start].bit_length()
        size_at = start + id_width
        if id_width > 4 or size_at >= end or not content[size_at]:
            break
        width = 9 - content[size_at].bit_length()
        size = int.from_bytes(content[size_at : size_at + width], "big") & ((1 << 7 * width) - 1)
        inside = size_at + width
        stop = end if size == (1 << 7 * width) - 1 else min(end, inside + size)
        if inside > end:
            break
        elements.append(_Node(start, inside, stop, size_at, width))
        if int.from_bytes(content[start:size_at], "big") in _MASTERS:
            elements += _elements(content, inside, stop)
        start = stop
    return elements
