"""Where each sample's files lie inside local tar shards: an index by byte offset, made by walking the tar headers.

Reading by offset, instead of as a stream, is what lets training resume in the middle of a shard, split few shards
among many ranks, and see every sample exactly once per epoch.
"""

import glob
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEDIA = ("mp4", "jpg", "latent.safetensors")
"""One of these makes a sample; `json` belongs to each."""
_BLOCK_BYTES = 512
_THREADS = 8
_CACHE_FORMAT = "clipmill shard index 1"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The whole samples of one tar. Arrays, because an index of millions of samples goes to every worker process."""

    path: str
    keys: NDArray[np.bytes_]
    """(N,) UTF-8."""
    extensions: tuple[str, ...]
    places_NE2: NDArray[np.int64]
    """Offset and size in bytes of each extension's file; -1 where the sample has no such file."""
    problem: str | None = None
    """Why the tar could not be read to its end; what lies before the damage is indexed."""
    broken: tuple[tuple[str, str], ...] = ()
    """(key, reason) of samples that lack a file."""

    @property
    def name(self) -> str:
        return Path(self.path).name.removesuffix(".tar")

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """SHARD/CLIP_ID."""
        return f"{self.name}/{self.keys[row].decode()}"

    def read(self, row: int) -> dict[str, bytes]:
        """The sample's files by extension. Raises OSError; EOFError where the tar has become shorter since."""
        members = {}
        with open(self.path, "rb", buffering=0) as file:
            for extension, (offset, size) in zip(self.extensions, self.places_NE2[row].tolist(), strict=True):
                if offset >= 0:
                    members[extension] = os.pread(file.fileno(), size, offset)
                    if len(members[extension]) != size:
                        raise EOFError(f"{self.path} ends before byte {offset + size:,}: it was whole when indexed")
        return members


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All shards, in the order of their names, and what is wrong with them."""

    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(shard, reason) of each tar that could not be read to its end."""
        return [(shard.path, shard.problem) for shard in self.shards if shard.problem]

    @property
    def broken(self) -> list[tuple[str, str]]:
        """(SHARD/CLIP_ID, reason) of each sample that lacks a file."""
        return [(f"{shard.name}/{key}", reason) for shard in self.shards for key, reason in shard.broken]


def index_shards(shards: str | Path | Iterable[str | Path], *, cache: str | Path | None = None) -> ShardIndex:
    """The index of `shards`: a folder, a tar, a glob pattern, or several of these.

    `cache` is a file that keeps the index from run to run; a shard whose size or time of modification has changed is
    read again. Damage inside a tar is recorded, not raised. Raises ValueError when no shard is found.
    """
    paths = find_shards(shards)
    known = _read_cache(cache)
    with ThreadPoolExecutor(_THREADS) as pool:
        stats = list(pool.map(os.stat, paths))
        marks = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)}
        fresh = [path for path in paths if path not in known or known[path][0] != marks[path]]
        read = dict(zip(fresh, pool.map(index_shard, fresh), strict=True))
    indexed = [read[path] if path in read else known[path][1] for path in paths]
    if cache is not None and read:
        _write_cache(Path(cache), known | {path: (marks[path], shard) for path, shard in read.items()})
    return ShardIndex(shards=tuple(indexed))


def find_shards(shards: str | Path | Iterable[str | Path]) -> list[str]:
    """Paths of the tars that are meant, without doubles. Raises ValueError, saying what was looked for, for none."""
    wanted = [str(shards)] if isinstance(shards, str | Path) else [str(entry) for entry in shards]
    if not wanted:
        raise ValueError("no shards: the list is empty; name a folder, tar files or a pattern such as 'shards/*.tar'")
    found: dict[str, None] = {}
    for entry in wanted:
        if "://" in entry:
            raise ValueError(f"{entry}: training reads shards from local disks; copy them there first")
        if os.path.isdir(entry):
            matches, sought = sorted(str(path) for path in Path(entry).glob("[!.]*.tar")), "no *.tar in the folder"
        elif os.path.isfile(entry):
            matches, sought = [entry], ""
        else:
            matches, sought = sorted(filter(os.path.isfile, glob.glob(entry))), "no file, folder or match for"
        if not matches:
            raise ValueError(f"no shards: {sought} {entry} (looked from {os.getcwd()})")
        found |= dict.fromkeys(os.path.abspath(match) for match in matches)
    return list(found)


def index_shard(path: str) -> Shard:
    """Index one tar. What is unreadable is told in `problem`, with the samples before it kept. Raises OSError."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problem = None
    size_bytes = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES if member.isreg() else end
                if member.offset_data + member.size > size_bytes:
                    problem = f"cut short inside {member.name}, at {size_bytes:,} bytes"
                    break
                if member.isreg():
                    problem = _add(samples, member) or problem
            problem = problem or _end_problem(path, end, size_bytes)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        problem = f"no readable tar: {error}"
    return _shard(path, samples, problem)


def _add(samples: dict[str, dict[str, tuple[int, int]]], member: tarfile.TarInfo) -> str | None:
    """Split as webdataset does: the key ends at the first dot of the last part of the path."""
    folder, _, name = member.name.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not (stem and dot):
        return None
    files = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
    if extension.lower() in files:
        return f"{member.name} comes twice, the first one counts"
    files[extension.lower()] = member.offset_data, member.size
    return None


def _end_problem(path: str, end: int, size_bytes: int) -> str | None:
    """tarfile takes a damaged header for the end: a true end is a block of zeros."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(_BLOCK_BYTES)
    if any(block):
        return f"damaged header at byte {end:,} of {size_bytes:,}"
    return None if len(block) == _BLOCK_BYTES else f"cut short after a file, at {size_bytes:,} bytes: no end of archive"


def _shard(path: str, samples: Mapping[str, Mapping[str, tuple[int, int]]], problem: str | None) -> Shard:
    reasons = {key: _lacking(files) for key, files in samples.items()}
    whole = [key for key, reason in reasons.items() if reason is None]
    extensions = tuple(dict.fromkeys(extension for key in whole for extension in samples[key]))
    places = [[samples[key].get(extension, (-1, -1)) for extension in extensions] for key in whole]
    return Shard(
        path=path,
        keys=np.array([key.encode() for key in whole], np.bytes_),
        extensions=extensions,
        places_NE2=np.array(places, np.int64).reshape(len(whole), len(extensions), 2),
        problem=problem,
        broken=tuple((key, reason) for key, reason in reasons.items() if reason is not None),
    )


def _lacking(files: Mapping[str, Any]) -> str | None:
    if "json" not in files:
        return "no json"
    return None if any(medium in files for medium in MEDIA) else f"no {', '.join(MEDIA)}"


def _read_cache(cache: str | Path | None) -> dict[str, tuple[tuple[int, int], Shard]]:
    """What the cache file knows; nothing where it is absent or damaged, for it can be made again."""
    known: dict[str, tuple[tuple[int, int], Shard]] = {}
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        lines = Path(cache).read_text().splitlines() if cache is not None else []
        if lines[:1] != [_CACHE_FORMAT]:
            return {}
        for entry in map(json.loads, lines[1:]):
            keys = [key.encode() for key in entry["keys"]]
            places = np.array(entry["places"], np.int64).reshape(len(keys), len(entry["extensions"]), 2)
            known[entry["path"]] = (
                (entry["size_bytes"], entry["mtime_ns"]),
                Shard(
                    path=entry["path"],
                    keys=np.array(keys, np.bytes_),
                    extensions=tuple(entry["extensions"]),
                    places_NE2=places,
                    problem=entry["problem"],
                    broken=tuple((key, reason) for key, reason in entry["broken"]),
                ),
            )
    return known


def _write_cache(cache: Path, known: Mapping[str, tuple[tuple[int, int], Shard]]) -> None:
    """Whole or not at all; of several ranks that write the same, the last one stays."""
    lines: Sequence[str] = [
        json.dumps(
            {
                "path": path,
                "size_bytes": mark[0],
                "mtime_ns": mark[1],
                "keys": [key.decode() for key in shard.keys.tolist()],
                "extensions": shard.extensions,
                "places": shard.places_NE2.tolist(),
                "problem": shard.problem,
                "broken": shard.broken,
            }
        )
        for path, (mark, shard) in known.items()
    ]
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    unfinished.write_text("\n".join([_CACHE_FORMAT, *lines, ""]))
    os.replace(unfinished, cache)
