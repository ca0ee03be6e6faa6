"""Single requests to a store: answered within a deadline, or reading part of an HTTP resource."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import fsspec
from fsspec.implementations.http import HTTPFileSystem


def within(deadline_s: float, fs: fsspec.AbstractFileSystem, question: Callable[[], Any]) -> Any:
    """Query a store; raises TimeoutError without an answer within `deadline_s`.

    `question` returns the answer, or for an asynchronous file system the coroutine that does; the coroutine is
    cancelled on timeout.
    """
    answer: Future[Any] = Future()
    if fs.async_impl:
        answer = asyncio.run_coroutine_threadsafe(asyncio.wait_for(question(), deadline_s), fs.loop)
    else:

        def ask() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(None if fs.async_impl else deadline_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {deadline_s:g} s") from error


def call(fs: fsspec.AbstractFileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method's result, or its coroutine for an asynchronous file system; for `within`."""
    return getattr(fs, f"_{method}" if fs.async_impl else method)(*args, **kwargs)


@asynccontextmanager
async def http_range(fs: HTTPFileSystem, url: str, start: int, end: int) -> AsyncIterator[Any]:
    """The response to a request for bytes `start` to `end` of a resource; servers may answer with all of it.

    Raises FileNotFoundError, and aiohttp's errors.
    """
    session = await fs.set_session()
    headers = {
        **fs.kwargs.get("headers", {}),
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
    }
    async with session.get(fs.encode_url(url), **{**fs.kwargs, "headers": headers}) as response:
        fs._raise_not_found_for_status(response, url)
        yield response


async def http_head(fs: HTTPFileSystem, url: str, size_bytes: int) -> bytes:
    """The first bytes of a resource. fsspec's `cat_file` reads everything that a server sends, which may never end."""
    async with http_range(fs, url, 0, size_bytes) as response:
        return await body_of(response, size_bytes)


async def body_of(response: Any, size_bytes: int) -> bytes:
    """At most `size_bytes` of a response, whatever more the server sends."""
    content = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        content += chunk
        if len(content) >= size_bytes:
            break
    return bytes(content[:size_bytes])
