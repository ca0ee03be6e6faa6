"""Videos inside zip and tar archives: `zip://a.mp4::archive.zip`, `tar://a.mp4::s3://bucket/archive.tar`.

Nothing is extracted under a name from the archive. Members that are not compressed are read in place, at random; a
compressed one is copied to an anonymous temporary file, within limits. Archives are untrusted.
"""

import io
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec

from clipmill.addresses import without_credentials
from clipmill.copies import COPY_BYTES, copied, too_large
from clipmill.errors import UserError
from clipmill.positioned import Positioned

ARCHIVES = {".zip": "zip", ".tar": "tar"}
"""Suffix -> protocol."""
WITHOUT_RANDOM_ACCESS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
"""Suffixes of archives that are not read."""
MOST_MEMBERS = 1_000_000
MOST_RATIO = 100
"""Largest ratio of a member's size to its compressed size. Videos hardly compress."""
_RATIO_FROM_BYTES = 1 << 20
_MOST_DIRECTORY_BYTES = 256 << 20
"""Of the directory of a zip, which is read at once."""
_MOST_HEADER_BYTES = 1 << 20
"""Of a header of a tar."""
_MOST_LINKS = 4
_BLOCK_BYTES = 1 << 20
_INDEXES_KEPT = 8
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files."""
_LINK = re.compile(r"::(?=/|[A-Za-z][A-Za-z0-9+.-]*://)|::(?!.*::)", re.DOTALL)


def split_link(address: str) -> tuple[str, str]:
    """A chained address in an archive and the address of the archive; "" for the latter if it is not chained.

    They are divided where an absolute path or a URL follows, or else at the last `::`.
    """
    link = _LINK.search(address) if address.lower().startswith(("zip://", "tar://")) else None
    return (address[: link.start()], address[link.end() :]) if link else (address, "")


def archive_kind(path: str) -> str | None:
    """The protocol for the archive of this name; None if it is not one."""
    return next((kind for suffix, kind in ARCHIVES.items() if path.lower().endswith(suffix)), None)


def compression_of(head: bytes) -> str | None:
    """The compression of a file that begins with `head`; None if it is not compressed."""
    return next((kind for magic, kind in _COMPRESSIONS.items() if head.startswith(magic)), None)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in an archive."""

    size: int
    offset: int
    """Of its header in a zip, of its content in a tar."""
    version: str
    compressed_size: int | None = None
    """None if it is not compressed."""
    problem: str = ""
    """Why it cannot be read."""


@dataclass(kw_only=True)
class Index:
    """The files of an archive by name, and the entries of each of its folders."""

    members: dict[str, Member] = field(default_factory=dict)
    folders: dict[str, set[str]] = field(default_factory=lambda: {"": set()})

    def add(self, name: str, member: Member) -> None:
        """Add a file under its name without a leading slash, and its folders."""
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        if not name:
            return
        if len(self.members) >= MOST_MEMBERS:
            raise UserError(f"an archive of more than {MOST_MEMBERS:,} files; split it")
        self.members[name] = member
        while name:
            folder = name.rpartition("/")[0]
            known = folder in self.folders
            self.folders.setdefault(folder, set()).add(name)
            if known:
                break
            name = folder

    def info(self, name: str) -> dict[str, Any]:
        """fsspec's description of a file or folder. Raises FileNotFoundError."""
        if name in self.members:
            member = self.members[name]
            return {"name": name, "type": "file", "size": member.size, "etag": member.version}
        if name not in self.folders:
            raise FileNotFoundError(name)
        return {"name": name, "type": "directory", "size": 0}


_indexes: OrderedDict[tuple[str, ...], Index] = OrderedDict()
_lock = threading.RLock()
"""Held while an index is read, also of an archive within an archive."""


class ArchiveFileSystem(fsspec.AbstractFileSystem):
    """The files of one archive, read-only. Methods raise FileNotFoundError, and UserError for a damaged archive."""

    cachable = False

    def __init__(
        self, kind: str, fs: fsspec.AbstractFileSystem, path: str, location: str, opened: Callable[[], BinaryIO]
    ) -> None:
        """`path` of the archive in `fs`, its whole address, which may have credentials, and how to open it."""
        super().__init__()
        if location.count("::") >= _MOST_LINKS:
            raise UserError(f"expected an archive in fewer than {_MOST_LINKS} others, got {location[:200]!r}")
        self.protocol, self._fs, self._path, self._location, self._opened = kind, fs, path, location, opened

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.protocol}://{name}::{self._location}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._index().info(path.strip("/"))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        index, path = self._index(), path.strip("/")
        if path not in index.folders:
            return [index.info(path) if detail else path]
        return [index.info(name) if detail else name for name in sorted(index.folders[path])]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        index, path = self._index(), path.strip("/")
        below = f"{path}/" if path else ""
        names = [n for n in (*index.members, *(index.folders if withdirs else ())) if n and n.startswith(below)]
        names = sorted(n for n in names if maxdepth is None or n.removeprefix(below).count("/") < maxdepth)
        return {name: index.info(name) for name in names} if detail else names

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        member = self._member(path)
        first, last = start or 0, member.size if end is None else min(end, member.size)
        with _explained(self.unstrip_protocol(path)), self._content(member) as content:
            content.read(first)  # a compressed member is read from its beginning
            return content.read(max(0, last - first))

    def _open(self, path: str, mode: str = "rb", *, max_copy_bytes: int = COPY_BYTES, **_: Any) -> BinaryIO:
        member, name = self._member(path), without_credentials(self.unstrip_protocol(path))
        with _explained(name):
            content = self._content(member)
            if member.compressed_size is None:
                return content
            why = f"{name} is compressed in its archive"
            with content:
                if member.size > max_copy_bytes:
                    raise too_large(why, max_copy_bytes)
                return copied(iter(lambda: content.read(_BLOCK_BYTES), b""), max_bytes=max_copy_bytes, why=why)

    def _member(self, path: str) -> Member:
        member = self._index().members.get(path.strip("/"))
        if member is None:
            raise FileNotFoundError(path)
        if member.problem:
            raise UserError(f"{without_credentials(self.unstrip_protocol(path))} {member.problem}")
        return member

    def _content(self, member: Member) -> BinaryIO:
        """The content of a member, at its beginning; closing it closes the archive."""
        archive = self._opened()
        try:
            start = member.offset
            if self.protocol == "zip":
                archive.seek(start)
                signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(archive.read(_LOCAL_HEADER.size))
                if signature != b"PK\3\4":
                    raise zipfile.BadZipFile("the directory points to no file header")
                start += _LOCAL_HEADER.size + name_bytes + extra_bytes
            size = member.size if member.compressed_size is None else member.compressed_size
            window = io.BufferedReader(_Window(archive, start, size))
            return window if member.compressed_size is None else io.BufferedReader(_Inflated(window, member.size))
        except BaseException:
            archive.close()
            raise

    def _index(self) -> Index:
        """The index of the archive as it is now."""
        name = without_credentials(self._location)
        info = self._fs.info(self._path)
        if info["type"] != "file":
            raise UserError(f"{name} is not a file; expected a {self.protocol} archive")
        key = (self.protocol, self._location, str(info.get("size")), version_of(info))
        with _lock:
            if key not in _indexes:
                with _explained(name), self._opened() as file:
                    _indexes[key] = (_zip_index if self.protocol == "zip" else _tar_index)(file, name, version_of(info))
                while len(_indexes) > _INDEXES_KEPT:
                    _indexes.popitem(last=False)
            _indexes.move_to_end(key)
            return _indexes[key]


def version_of(info: Mapping[str, Any]) -> str:
    """The version that a store states for a file: etag, checksum, or modification time; "" if none."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""


def _zip_index(file: BinaryIO, name: str, version: str) -> Index:
    """A member's version is its checksum: packing the same file again does not make another one."""
    index = Index()
    capped: Any = _Capped(file, _MOST_DIRECTORY_BYTES, name)
    with zipfile.ZipFile(capped) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            problem, compressed = "", entry.compress_type != zipfile.ZIP_STORED
            if entry.flag_bits & _ENCRYPTED:
                problem = "is encrypted; unpack it with its password"
            elif compressed and entry.compress_type != zipfile.ZIP_DEFLATED:
                problem = f"is compressed with method {entry.compress_type}; expected deflate or no compression"
            elif compressed and entry.file_size > max(_RATIO_FROM_BYTES, MOST_RATIO * entry.compress_size):
                problem = f"is compressed more than {MOST_RATIO} times, unlike any video"
            member = Member(
                size=entry.file_size,
                offset=entry.header_offset,
                version=f"crc32-{entry.CRC:08x}",
                compressed_size=entry.compress_size if compressed else None,
                problem=problem,
            )
            index.add(entry.filename, member)
    return index


def _tar_index(file: BinaryIO, name: str, version: str) -> Index:
    """A member's version is that of the archive: a tar has no checksums of contents."""
    kind = compression_of(file.read(8))
    file.seek(0)
    if kind:
        raise UserError(f"{name} is compressed ({kind}), which has no random access; decompress it to a plain .tar")
    index = Index()
    capped: Any = _Capped(file, _MOST_HEADER_BYTES, name)
    archive: Any = tarfile.open(fileobj=capped, mode="r:")  # noqa: SIM115
    with archive:
        while (entry := archive.next()) is not None:
            archive.members = []  # they would all be kept
            if entry.isreg():
                problem = "is a sparse file; unpack the archive" if entry.issparse() else ""
                member = Member(size=entry.size, offset=entry.offset_data, version=version, problem=problem)
                index.add(entry.name, member)
    return index


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of an archive's content as UserError."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, struct.error) as error:
        raise UserError(f"{without_credentials(name)} is damaged: {error or type(error).__name__}") from error


class _Capped:
    """A file that limits the size of single reads: parsers allocate whatever size a header states."""

    def __init__(self, file: BinaryIO, max_bytes: int, name: str) -> None:
        self._file, self._max_bytes, self._name = file, max_bytes, name
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Read like any file. Raises UserError for more than the limit."""
        if size <= self._max_bytes:
            content = self._file.read(self._max_bytes + 1 if size < 0 else size)
            if len(content) <= self._max_bytes:
                return content
        raise UserError(f"{self._name} has a header or directory of more than {self._max_bytes:,} bytes")


class _Window(Positioned):
    """A part of a file as a file; closing it closes the other."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.size_bytes - self.position))
        if not size:
            return 0
        self._file.seek(self._start + self.position)
        content = self._file.read(size)  # less, or nothing, in an archive that was cut off
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Inflated(io.RawIOBase):
    """The content of deflated bytes, from the beginning to the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._position = file, size, 0
        self._inflate, self._waiting = zlib.decompressobj(-zlib.MAX_WBITS), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        content = b""
        while size and not content and not self._inflate.eof:
            block = self._waiting or self._file.read(_BLOCK_BYTES)
            if not block:
                raise EOFError("the archive ends within the file")
            content = self._inflate.decompress(block, size)
            self._waiting = self._inflate.unconsumed_tail
        if size and not content:
            raise EOFError(f"{self._position:,} bytes, expected {self._size:,}")
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
