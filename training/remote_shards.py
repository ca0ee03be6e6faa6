"""Shards in an object store or on a web server: found by listing or by their index.json."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from clipmill.positioned import Positioned
from clipmill.range_cache import RangeCache, default_folder
from clipmill.range_reader import Pieces, RangeReader
from clipmill.ranges import StoredObject, find_object, name_of, object_of, read_range
from clipmill.retries import ChangedObject, retried
from clipmill.shard_folder import INDEX, ShardRecord, records_in

if TYPE_CHECKING:
    from training.data_config import DataConfig

STARTUP_RETRY_S = 30.0
"""How long to retry before the first step: short, so that a wrong endpoint is reported soon."""
_THREADS = 8
_LOG = logging.getLogger("clipmill.data")
_HEADER_BYTES = 16 << 10
"""Block size for the headers of a tar without an index: a few hundred bytes each, between the files."""


def is_remote(entry: str) -> bool:
    """Whether an address is not that of a local file. Raises UserError for an unknown protocol."""
    return "://" in entry and not storage.is_local(storage.filesystem(entry)[0])


def find_remote_shards(entry: str) -> dict[str, tuple[StoredObject, ShardRecord | None]]:
    """The tars of a folder, a tar or a glob pattern, by address without credentials, sorted by name; each with its
    record if an index.json beside it has the byte ranges of its samples.

    Raises UserError if there are none, without permission, for a web server that does not support range requests, or if
    the size of a tar differs from its index.json; RunStopped if the store does not answer.
    """
    try:
        found, records = _found(entry)
    except FileNotFoundError as error:
        raise UserError(f"no shards: {error}") from error
    if not found:
        raise UserError(f"no shards: no *.tar in the folder or match for {without_credentials(entry)}")
    shards = {}
    for stored in sorted(found, key=lambda stored: (stored.address.rpartition("/")[0], name_of(stored.url))):
        record = records.get(name_of(stored.url))
        if record is not None and record.bytes != stored.size_bytes:
            raise ChangedObject(
                f"{stored.address} changed since its {INDEX} was written: expected {record.bytes:,} bytes, got "
                f"{stored.size_bytes:,}. Write the shards again (`clipmill shard`), or remove {INDEX} to read the "
                "headers of the tars instead"
            )
        shards[stored.address] = stored, record
    return shards


def _found(entry: str) -> tuple[list[StoredObject], dict[str, ShardRecord]]:
    fs, path = storage.filesystem(entry)
    web = entry.startswith(("http://", "https://"))
    if any(sign in entry for sign in "*[") or (not web and "?" in entry):
        names = retried(lambda: fs.glob(path), without_credentials(entry), STARTUP_RETRY_S)
        return _objects_at([str(fs.unstrip_protocol(name)) for name in names]), {}
    if name_of(entry).endswith(".tar"):
        return _objects_at([entry]), _records(entry.partition("?")[0].rpartition("/")[0])
    folder = entry.rstrip("/")
    records = _records(folder)
    if web and records:  # web servers need not list their folders
        return _objects_at([f"{folder}/{quote(name)}" for name in records]), records
    entries = retried(lambda: _listed(folder), without_credentials(entry), STARTUP_RETRY_S)
    tars = [each for each in entries if each["type"] == "file" and _is_shard(name_of(each["name"]))]
    urls = [str(fs.unstrip_protocol(each["name"])) for each in tars]
    if web:
        return _objects_at(urls), records
    return [object_of(url, each) for url, each in zip(urls, tars, strict=True)], records


def has_tars(folder: str) -> bool:
    """Whether there are tars directly in a folder of a store. Raises UserError without permission, RunStopped if the
    store does not answer."""
    try:
        entries = retried(lambda: _listed(folder), without_credentials(folder), STARTUP_RETRY_S)
    except FileNotFoundError:
        return False
    return any(_is_shard(name_of(each["name"])) for each in entries)


def _listed(folder: str) -> list[dict[str, Any]]:
    fs, path = storage.filesystem(folder)
    fs.invalidate_cache(path)
    entries: list[dict[str, Any]] = fs.ls(path, detail=True)
    return entries


def _is_shard(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".")


def _objects_at(urls: Sequence[str]) -> list[StoredObject]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(find_object, retry_s=STARTUP_RETRY_S), urls))


def _records(folder: str) -> dict[str, ShardRecord]:
    """Records with byte ranges from FOLDER/index.json by file name; empty if it is missing, of another program, or not
    accessible with the signature of a single tar."""
    fs, path = storage.filesystem(f"{folder}/{INDEX}")
    try:
        index = storage.read_json_if_exists(fs, path, lambda values: {"shards": records_in(values)})
    except UserError:
        return {}
    records = [] if index is None else index["shards"]
    return {record.name: record for record in records if record.members is not None}


class RemoteHeaders(Positioned):
    """A tar in a store as a file, for its headers: reads blocks of 16 KiB."""

    def __init__(self, stored: StoredObject) -> None:
        super().__init__(stored.size_bytes)
        self._stored, self._start, self._block = stored, 0, b""

    def read(self, size: int | None = -1, /) -> bytes:
        left = self.size_bytes - self.position
        size = max(0, left if size is None or size < 0 else min(size, left))
        first = self.position - self._start
        if first < 0 or first + size > len(self._block):
            end = min(self.size_bytes, self.position + max(size, _HEADER_BYTES))
            self._block = read_range(self._stored, self.position, end, retry_s=STARTUP_RETRY_S) if size else b""
            self._start, first = self.position, 0
        self.position += size
        return self._block[first : first + size]


def reader_for(config: "DataConfig") -> RangeReader:
    """This process's reader for these settings."""
    return _reader(os.getpid(), config.retry_s, config.cache_folder, round(config.cache_gib * 2**30))


@lru_cache(maxsize=8)
def _reader(_pid: int, retry_s: float, cache_folder: str | None, cache_bytes: int) -> RangeReader:
    return RangeReader(retry_s=retry_s, cache=_cache(cache_folder, cache_bytes) if cache_bytes else None)


def _cache(folder: str | None, size_bytes: int) -> RangeCache | None:
    """Raises UserError if a configured folder cannot be used; if the default one cannot, there is no cache."""
    if folder is not None:
        return RangeCache(Path(folder).expanduser(), size_bytes)
    try:
        return RangeCache(default_folder(), size_bytes)
    except UserError as error:
        _LOG.warning("training without a cache: %s", error)
        return None


def read_pieces(pieces: Pieces) -> list[bytes]:
    """Read ranges of an object, for a single sample; `training.read_ahead` reads many."""
    return startup_reader().submit([pieces])[0].result()


def startup_reader() -> RangeReader:
    """This process's reader for what is read before the first step."""
    return _reader(os.getpid(), STARTUP_RETRY_S, None, 0)
