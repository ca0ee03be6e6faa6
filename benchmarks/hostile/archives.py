"""Structure-aware mutations of tars (shards), safetensors (weights, latents) and zips (PyTorch checkpoints)."""

import io
import json
import tarfile
import zipfile
from typing import Any

from benchmarks.hostile.mutate import Rng, edge, mutate_bytes, mutate_tree, mutated, odd_name

_BLOCK = 512
_HEADER_FIELDS = (
    (0, 100),
    (100, 8),
    (108, 8),
    (124, 12),
    (136, 12),
    (148, 8),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
)
"""Offset and size of name, mode, uid, size, mtime, checksum, type, link name, magic and prefix."""
_TYPES = b"0123456789\0gxLKSVDNA"
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "nothing")


def mutate_tar(rng: Rng, content: bytes) -> bytes:
    """Damage members, or the headers with their offsets."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar if member.isreg()]  # type: ignore[union-attr]
    except (tarfile.TarError, OSError):
        return mutate_bytes(rng, content)
    if not members:
        return mutate_bytes(rng, content)
    action = rng.random()
    place = rng.randrange(len(members))
    member, inside = members[place]
    if action < 0.45:
        members[place] = member, mutated(rng, _plain_name(member.name), inside)
    elif action < 0.55:
        member.name = rng.choice((odd_name(rng), f"{odd_name(rng)}.mp4", f"{odd_name(rng)}.json", member.name.upper()))
    elif action < 0.62:
        members.insert(rng.randrange(len(members) + 1), (member, inside))
    elif action < 0.69:
        del members[place]
    elif action < 0.74:
        rng.shuffle(members)
    elif action < 0.8:
        member.pax_headers = {rng.choice(("path", "size", "mtime", "GNU.sparse.map", "x")): odd_name(rng)}
    elif action < 0.85:
        members += [(_renamed(member, f"{odd_name(rng)}{i}.{i}"), b"x") for i in range(rng.choice((3, 300)))]
    written = _write_tar(rng, members)
    return written if written is not None and action < 0.85 else _damage_header(rng, content)


def mutate_safetensors(rng: Rng, content: bytes) -> bytes:
    """Damage the header, with or without adjusting its length, or the tensor data."""
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
    except ValueError:
        return mutate_bytes(rng, content)
    body = content[8 + size :]
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    action = rng.random()
    if action < 0.3 or not tensors:
        header = mutate_tree(rng, header)
    elif action < 0.45:
        rng.choice(tensors)["dtype"] = rng.choice(_DTYPES)
    elif action < 0.6:
        shape = rng.choice(tensors)["shape"]
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, edge(rng))))
    elif action < 0.7:
        one, other = rng.choice(tensors), rng.choice(tensors)
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    elif action < 0.85:  # numbers that are none, of 16 and of 32 bits
        start = rng.randrange(len(body) + 1) & ~3
        filler = rng.choice((b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\0\x7e\0\x7e", b"\0\0\x80\x7f"))
        count = min(len(body) - start, rng.choice((4, 64, len(body)))) // 4
        body = body[:start] + filler * count + body[start + 4 * count :]
    else:
        body = mutate_bytes(rng, body)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.95 else edge(rng) % (1 << 64)
    return length.to_bytes(8, "little") + text + body


def mutate_zip(rng: Rng, content: bytes) -> bytes:
    """Damage, duplicate, remove or compress one member of a zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return mutate_bytes(rng, content)
    place, action = rng.randrange(len(members)), rng.random()
    name, inside = members[place]
    if action < 0.6:
        members[place] = name, mutate_bytes(rng, inside)
    elif action < 0.7:
        del members[place]
    elif action < 0.8:
        members.append((name, inside))
    elif action < 0.9:
        members[place] = odd_name(rng).replace("\0", "").encode("utf-8", "replace").decode() or "x", inside
    written = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if action >= 0.9 else zipfile.ZIP_STORED
    with zipfile.ZipFile(written, "w", compression) as archive:
        for member, data in members:
            archive.writestr(zipfile.ZipInfo(member[:60_000]), data, compression)
    return written.getvalue()


def _plain_name(name: str) -> str:
    """Last part of `KEY.latent.safetensors` and `KEY.mp4`; images are damaged as bytes."""
    return name.rpartition("/")[2]


def _renamed(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    renamed = tarfile.TarInfo(name)
    renamed.mode = member.mode
    return renamed


def _write_tar(rng: Rng, members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes | None:
    """None if Python cannot write such a tar."""
    written = io.BytesIO()
    try:
        kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(fileobj=written, mode="w", format=kind, errors="surrogateescape") as tar:
            for member, inside in members:
                member.size = len(inside)
                tar.addfile(member, io.BytesIO(inside))
    except (ValueError, UnicodeError, tarfile.TarError):
        return None
    return written.getvalue()


def _damage_header(rng: Rng, content: bytes) -> bytes:
    """Change a field of one header and, usually, correct the checksum."""
    starts = [i for i in range(0, len(content) - _BLOCK + 1, _BLOCK) if content[i + 257 : i + 262] == b"ustar"]
    if not starts:
        return mutate_bytes(rng, content)
    start = rng.choice(starts)
    header = bytearray(content[start : start + _BLOCK])
    offset, size = rng.choice(_HEADER_FIELDS)
    value = rng.choice((rng.randbytes(size), b"%o" % edge(rng), b"\x80" + rng.randbytes(size - 1), b"7" * size, b""))
    header[offset : offset + size] = value[:size].ljust(size, b"\0")
    if rng.random() < 0.3:
        header[156] = rng.choice(_TYPES)
    if rng.random() < 0.8:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + _BLOCK :]
