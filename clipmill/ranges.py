"""Byte ranges of objects in a store, by any fsspec URL.

An object is read in the version in which it was found. If it has been replaced since, reading it is an error: a mix of
two versions would yield samples that never existed.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.http import HTTPFileSystem

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from clipmill.retries import RETRY_S, ChangedObject, retried
from clipmill.store_requests import body_of, call, http_range, within

Range = tuple[int, int]
"""Offset and size in bytes."""

REQUEST_BYTES = 16 << 20
"""Maximum size of one request."""
_ANSWER_S = 60.0
"""Timeout of one request: 280 kB/s for the largest."""
_CONTENT_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_VERSIONS = ("ETag", "etag", "generation", "LastModified", "mtime", "updated", "last_modified", "created")
"""Keys of fsspec's `info` that change when an object is replaced, the most exact first."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object in a store, in the version in which it was found."""

    url: str
    """May contain credentials; show `address` instead."""
    size_bytes: int
    version: str
    """ETag, generation or modification time; empty if the store provides none."""

    @property
    def address(self) -> str:
        """The URL without credentials."""
        return without_credentials(self.url)


def name_of(url: str) -> str:
    """The file name in a path or URL, without a query."""
    if url.startswith(("http://", "https://")):
        return unquote(urlsplit(url).path.rpartition("/")[2])
    return url.rpartition("/")[2]


def find_object(url: str, *, retry_s: float = RETRY_S) -> StoredObject:
    """Size and version of an object. Raises FileNotFoundError; UserError without permission, or for a web server that
    does not support range requests; RunStopped if the store does not answer."""
    fs, path = _filesystem(os.getpid(), url)

    def ask() -> StoredObject:
        if isinstance(fs, HTTPFileSystem):
            found: StoredObject = within(_ANSWER_S, fs, lambda: _http_object(fs, path, url))
            return found
        return _object_now(fs, path, url)

    return retried(ask, without_credentials(url), retry_s)


def object_of(url: str, info: Mapping[str, Any]) -> StoredObject:
    """The object that an entry of fsspec's listing describes. Raises UserError unless it is a file of known size."""
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        raise UserError(f"{without_credentials(url)}: expected a file, got a {info.get('type')} of unknown size")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key) is not None), "")
    return StoredObject(url=url, size_bytes=info["size"], version=version)


def read_range(stored: StoredObject, start: int, end: int, *, retry_s: float = RETRY_S) -> bytes:
    """Bytes `start` to `end` of an object. Raises UserError beyond its end; ChangedObject if it was replaced; the
    errors of `find_object`."""
    if end > stored.size_bytes:
        raise UserError(
            f"{stored.address} has {stored.size_bytes:,} bytes, expected at least {end:,}: its index is of another file"
        )
    parts = []
    for first in range(start, end, REQUEST_BYTES):
        last = min(end, first + REQUEST_BYTES)
        parts.append(retried(partial(_read_once, stored, first, last), stored.address, retry_s))
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _filesystem(_pid: int, url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """One per process, since clients do not survive a fork."""
    return storage.filesystem(url)


def _read_once(stored: StoredObject, start: int, end: int) -> bytes:
    fs, path = _filesystem(os.getpid(), stored.url)
    if isinstance(fs, HTTPFileSystem):
        content: bytes = within(_ANSWER_S, fs, lambda: _http_range(fs, path, stored, start, end))
    elif hasattr(fs, "_call_s3"):
        content = within(_ANSWER_S, fs, lambda: _s3_range(fs, path, stored, start, end))
    else:
        _check_version(os.getpid(), stored)
        content = within(_ANSWER_S, fs, lambda: call(fs, "cat_file", path, start=start, end=end))
    if len(content) != end - start:
        _check_version.cache_clear()
        raise OSError(f"the response ended after {len(content):,} of {end - start:,} bytes")
    return content


@lru_cache(maxsize=4096)
def _check_version(_pid: int, stored: StoredObject) -> None:
    """Raise ChangedObject if an object was replaced. Checked once per process and object, since not every store states
    the version in each response."""
    fs, path = _filesystem(os.getpid(), stored.url)
    now = _object_now(fs, path, stored.url)
    _check_same(stored, now.size_bytes, now.version)


def _object_now(fs: fsspec.AbstractFileSystem, path: str, url: str) -> StoredObject:
    fs.invalidate_cache(path)
    return object_of(url, within(_ANSWER_S, fs, lambda: call(fs, "info", path)))


def _check_same(stored: StoredObject, size_bytes: int, version: str) -> None:
    if size_bytes != stored.size_bytes or (version and stored.version and version != stored.version):
        raise ChangedObject(
            f"{stored.address} changed since it was indexed: expected {stored.size_bytes:,} bytes, version "
            f"{stored.version or 'unknown'}, got {size_bytes:,} bytes, version {version or 'unknown'}. Do not replace "
            "shards that are in use; rerun the same command to index it again"
        )


async def _s3_range(fs: Any, path: str, stored: StoredObject, start: int, end: int) -> bytes:
    bucket, key, version = fs.split_path(path)
    of_version = {"VersionId": version} if version else {}
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **of_version)
    async with answer["Body"] as body:
        size_bytes = _size_bytes(answer.get("ContentRange", ""), stored.address)
        _check_same(stored, size_bytes, answer.get("ETag", ""))
        content: bytes = await body.read()
        return content


async def _http_range(fs: HTTPFileSystem, path: str, stored: StoredObject, start: int, end: int) -> bytes:
    async with http_range(fs, path, start, end) as response:
        size_bytes = _size_bytes(response.headers.get("Content-Range", ""), stored.address)
        _check_same(stored, size_bytes, _http_version(response.headers))
        return await body_of(response, end - start)


async def _http_object(fs: HTTPFileSystem, path: str, url: str) -> StoredObject:
    """From the response to a request for the first byte: signed URLs often allow only GET."""
    async with http_range(fs, path, 0, 1) as response:
        size_bytes = _size_bytes(response.headers.get("Content-Range", ""), without_credentials(url))
        return StoredObject(url=url, size_bytes=size_bytes, version=_http_version(response.headers))


def _size_bytes(content_range: str, address: str) -> int:
    """Size of an object by the Content-Range of a response. Raises UserError if the response is not a range."""
    size_bytes = _CONTENT_RANGE.match(content_range)
    if size_bytes is None:
        raise UserError(
            f"{address}: expected the requested byte range, got the whole file: the server does not support range "
            "requests. Use one that does (nginx, Apache, an object store), or copy the files to a disk"
        )
    return int(size_bytes[1])


def _http_version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""
