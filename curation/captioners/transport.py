"""HTTP with a single deadline for a whole request: connection, headers and body. A connection per request.

Timeouts of HTTP clients apply to each socket read. A server that sends one header byte now and then, or endless interim
responses, would block such a client forever. And if a server or a proxy sends a response twice, the second one would be
read as the answer to the next request on that connection: another clip's.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore2
import httpx2
import openai

from clipmill.proxies import proxy_for

_CONNECT_S = 10.0
_WRITTEN_BYTES = 4096
"""So few at a time that a piece goes out in one call, or the deadline has passed."""


class AnswerTooLarge(openai.OpenAIError):
    """The body of an answer goes beyond the bound. Of a kind that the client passes on without trying again."""


class DeadlineTransport(httpx2.BaseTransport):
    """For one endpoint. Answers later than `timeout_s` after their request began raise httpx2.ReadTimeout, bodies of
    more than `max_bytes` AnswerTooLarge. No compression is undone."""

    def __init__(self, url: str, *, timeout_s: float, max_bytes: int, connections: int) -> None:
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._deadline = _Deadline()
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            proxy=_proxy(url),
            max_connections=connections,
            max_keepalive_connections=0,
            network_backend=_Backend(self._deadline),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Begins the time; the body has to be read in this thread."""
        self._deadline.at_s = time.monotonic() + self._timeout_s
        url = request.url
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with _httpx_errors():
            answer = self._pool.handle_request(
                httpcore2.Request(
                    request.method,
                    target,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions={"timeout": {"pool": self._timeout_s}},
                )
            )
        headers = [(name, value) for name, value in answer.headers if name.lower() != b"content-encoding"]
        return httpx2.Response(answer.status, headers=headers, stream=_Body(answer, self._max_bytes))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, answer: httpcore2.Response, max_bytes: int) -> None:
        self._answer, self._max_bytes = answer, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        with _httpx_errors():
            for chunk in self._answer.iter_stream():
                size += len(chunk)
                if size > self._max_bytes:
                    raise AnswerTooLarge(f"the response exceeds {self._max_bytes:,} bytes")
                yield chunk

    def close(self) -> None:
        self._answer.close()


class _Deadline(threading.local):
    """Of the request that this thread is in."""

    at_s: float = math.inf

    def left(self, timeout_s: float | None) -> float:
        """Seconds for the next operation. Raises httpcore2.ReadTimeout when the time is over."""
        left_s = self.at_s - time.monotonic()
        if left_s <= 0:
            raise httpcore2.ReadTimeout("the response was not complete in time")
        return left_s if timeout_s is None else min(left_s, timeout_s)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, deadline: _Deadline) -> None:
        self._deadline, self._sockets = deadline, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        timeout = self._deadline.left(_CONNECT_S)
        return _Stream(self._sockets.connect_tcp(host, port, timeout, local_address, socket_options), self._deadline)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITTEN_BYTES):
            self._stream.write(buffer[start : start + _WRITTEN_BYTES], self._deadline.left(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(
            self._stream.start_tls(ssl_context, server_hostname, self._deadline.left(timeout)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """The two kinds that the client above tells apart."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise httpx2.ReadTimeout(str(error)) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError) as error:
        raise httpx2.NetworkError(str(error)) from error


def _proxy(url: str) -> httpcore2.Proxy | None:
    """The environment's proxy for an address."""
    address = proxy_for(url)
    if address is None:
        return None
    proxy = urlsplit(address)
    user = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    port = f":{proxy.port}" if proxy.port else ""
    return httpcore2.Proxy(f"{proxy.scheme}://{proxy.hostname}{port}", auth=user)
