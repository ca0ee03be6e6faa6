"""Files of web servers with random access: by ranges, or from a temporary copy where a server has none."""

import re
from typing import Any, BinaryIO

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from clipmill.addresses import without_credentials
from clipmill.copies import copied, too_large

_BLOCK_BYTES = 1 << 20
_SILENCE_S = 60.0
"""Longest wait for more of a file that is copied."""
_PARTIAL, _UNSATISFIABLE = 206, 416
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


def open_web_file(fs: HTTPFileSystem, url: str, *, max_copy_bytes: int, read_ahead_bytes: int) -> BinaryIO:
    """Open a file of a web server. A server that ignores a request for its first byte sends all of it: that is kept in
    a temporary file.

    Raises FileNotFoundError as fsspec, aiohttp's errors, UserError for a file without ranges beyond `max_copy_bytes`.
    """
    response = sync(fs.loop, _requested, fs, url, {"Range": "bytes=0-0"})
    try:
        total = _TOTAL.match(response.headers.get("Content-Range", ""))
        if response.status == _PARTIAL and total:
            file: BinaryIO = fs.open(url, "rb", cache_type="readahead", block_size=read_ahead_bytes, size=int(total[1]))
            return file
        if response.status in (_PARTIAL, _UNSATISFIABLE):  # without a size, or empty
            response.close()
            response = sync(fs.loop, _requested, fs, url, {})
        why = f"the server of {without_credentials(url)} does not support range requests"
        if (response.content_length or 0) > max_copy_bytes:
            raise too_large(why, max_copy_bytes)
        blocks = iter(lambda: sync(fs.loop, response.content.read, _BLOCK_BYTES), b"")
        return copied(blocks, max_bytes=max_copy_bytes, why=why)
    finally:
        fs.loop.call_soon_threadsafe(response.close)


async def _requested(fs: HTTPFileSystem, url: str, headers: dict[str, str]) -> Any:
    """The response, whose body has not been read."""
    session = await fs.set_session()
    kwargs = {**fs.kwargs, "headers": {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity", **headers}}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    response = await session.get(fs.encode_url(url), timeout=timeout, **kwargs)
    if response.status != _UNSATISFIABLE:
        try:
            fs._raise_not_found_for_status(response, url)
        except BaseException:
            response.close()
            raise
    return response
