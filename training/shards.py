"""An index of samples in arrays, because every worker process gets one of millions of samples."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipmill.range_reader import Pieces
from clipmill.ranges import Range, StoredObject, name_of
from training.remote_shards import read_pieces

MEDIA = ("mp4", "jpg", "latent.safetensors")
"""A sample has one of these: a video in any container, an image in any format, or latents."""
MAX_FILE_BYTES: Mapping[str, int] = {
    "json": 16 << 20,
    "txt": 1 << 20,
    "mp4": 1 << 30,
    "jpg": 256 << 20,
    "latent.safetensors": 1 << 30,
}
"""Maximum file size by extension; a sample with a larger one is broken. Other extensions are ignored."""
MEDIUM_OF = {
    **dict.fromkeys(("m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts"), "mp4"),
    **dict.fromkeys(("jpeg", "png", "webp"), "jpg"),
}
"""Extensions of other tools -> the extension that stands for all containers or image formats."""
VERSION_MARK, MTIME_MARK = ", version ", ", mtime "
"""In fingerprints of shards in a store and on a disk."""
MAX_NAME_BYTES = 255
"""Of a sample's key."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Sample names as one byte string and the end offset of each: a fixed-width array would give all of them the size
    of the longest.
    """

    text: bytes
    """UTF-8, joined."""
    ends: NDArray[np.int64]
    """(N,) end offset of each name."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "Keys":
        encoded = [name.encode() for name in names]
        return cls(text=b"".join(encoded), ends=np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.text[start : int(self.ends[row])].decode()


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Complete samples of one tar, in arrays, because every worker process gets an index of millions of samples."""

    path: str
    """In a store: the address without credentials."""
    size_bytes: int
    keys: Keys
    extensions: tuple[str, ...]
    """Those of `MAX_FILE_BYTES` that occur."""
    ranges_NE2: NDArray[np.int64]
    """Offset and size in bytes of each extension's file; -1 if missing."""
    problem: str | None = None
    """Reason if the tar could not be read to its end; samples before the damage are indexed."""
    broken: tuple[tuple[str, str], ...] = ()
    """(key, reason) of incomplete or unusable samples."""
    stored: StoredObject | None = None
    """In a store."""
    noted: Mapping[str, int] = field(default_factory=dict)
    """For shards of other tools: note on its samples (`training.notes`) -> number of samples."""

    @property
    def name(self) -> str:
        return name_of(self.path).removesuffix(".tar")

    @property
    def fingerprint(self) -> str:
        """Changes when the shard does. Raises OSError."""
        if self.stored is not None:
            return f"{self.stored.size_bytes} bytes{VERSION_MARK}{self.stored.version}"
        stat = os.stat(self.path)
        return f"{stat.st_size} bytes{MTIME_MARK}{stat.st_mtime_ns} ns"

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """SHARD/CLIP_ID."""
        return f"{self.name}/{self.keys[row]}"

    def ranges(self, row: int) -> dict[str, Range]:
        """Offset and size of the sample's files by extension."""
        ranges = zip(self.extensions, self.ranges_NE2[row].tolist(), strict=True)
        return {extension: (offset, size) for extension, (offset, size) in ranges if offset >= 0}

    def pieces(self, row: int) -> Pieces | None:
        """What to request of a store for the sample; None on a disk."""
        return None if self.stored is None else Pieces(stored=self.stored, ranges=tuple(self.ranges(row).values()))

    def members(self, row: int, contents: Sequence[bytes]) -> dict[str, bytes]:
        """The sample's files by extension, from the contents of its `pieces`."""
        return dict(zip(self.ranges(row), contents, strict=True))

    def read(self, row: int) -> dict[str, bytes]:
        """Read the sample's files by extension. Raises OSError; EOFError if the tar has been truncated since; in a
        store, the errors of `clipmill.ranges.read_range`."""
        ranges, pieces = self.ranges(row), self.pieces(row)
        if pieces is not None:
            return self.members(row, read_pieces(pieces))
        members = {}
        with open(self.path, "rb", buffering=0) as file:
            for extension, (offset, size) in ranges.items():
                members[extension] = os.pread(file.fileno(), size, offset)
                if len(members[extension]) != size:
                    raise EOFError(f"{self.path} ends before byte {offset + size:,}: truncated since it was indexed")
        return members


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All shards, sorted by name, and their problems."""

    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(shard, reason) of each tar that could not be read to its end."""
        return [(shard.path, shard.problem) for shard in self.shards if shard.problem]

    @property
    def broken(self) -> list[tuple[str, str]]:
        """(SHARD/CLIP_ID, reason) of each incomplete or unusable sample."""
        return [(f"{shard.name}/{key}", reason) for shard in self.shards for key, reason in shard.broken]
