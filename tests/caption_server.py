"""A small OpenAI-compatible endpoint on this machine that answers as it is told, also badly."""

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes over the wire for one request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    """Before anything is sent."""
    trickle_s: float = 0.0
    """Between one byte of the body and the next."""
    headers_trickle_s: float = 0.0
    """Between one byte of a header without end and the next; nothing comes after it."""
    early_hints_s: float = 0.0
    """Between one interim answer `103 Early Hints` and the next, without end."""
    sent_share: float = 1.0
    """Of the body; less than 1: the connection is closed before its end."""
    followed_by: "Reply | None" = None
    """A second response on the same connection, in the same packet, which nobody asked for."""


def says(text: str | None, **more: Any) -> Reply:
    """A chat completion with this content; `finish_reason`, `refusal`, `usage` or fields of Reply besides."""
    message = {"role": "assistant", "content": text, "refusal": more.pop("refusal", None)}
    choice = {"index": 0, "message": message, "finish_reason": more.pop("finish_reason", "stop")}
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    completion |= {"usage": more.pop("usage", None)}
    return Reply(body=json.dumps(completion).encode(), **more)


def refuses(status: int, message: str = "no", **more: Any) -> Reply:
    """An error in the shape that OpenAI and vLLM give it."""
    return Reply(status=status, body=json.dumps({"error": {"message": message}}).encode(), **more)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that close a connection before a response ends are what some tests are about."""


class CaptionServer:
    """Use as a context manager. `replies` are given in order, the last one again and again, or by a function.

    `models` answers the request for the list of models, which is not counted; by default there is none.

    `requests` holds the bodies and `headers` the headers (names in lower case) of all requests; `most_at_once` says
    how many were being answered at the same time, `connections` how many were opened.
    """

    def __init__(
        self, replies: Sequence[Reply] | Callable[[dict[str, Any]], Reply], *, models: Reply | None = None
    ) -> None:
        self._models = models or Reply(status=404)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.connections = 0
        self._at_once = 0
        self._replies = replies
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "CaptionServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _next(self, request: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = len(self.requests) - 1
        if callable(self._replies):
            return self._replies(request)
        return self._replies[min(number, len(self._replies) - 1)]

    def _done(self) -> None:
        with self._lock:
            self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            counted = False

            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server.connections += 1

            def do_GET(self) -> None:
                self._send(server._models if self.path == "/v1/models" else Reply(status=404))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                reply = server._next(
                    json.loads(body) | {"path": self.path}, {k.lower(): v for k, v in self.headers.items()}
                )
                self.counted = True
                try:
                    self._send(reply)
                except OSError:  # the client did not wait
                    self.close_connection = True
                finally:
                    self._uncount()

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.delay_s)
                self._send_endless(reply)
                self.send_response(reply.status)
                headers = {"content-type": "application/json", "content-length": str(len(reply.body)), **reply.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self._uncount()  # a client that has the whole answer may already send its next request
                if not reply.trickle_s:
                    sent = reply.body[: int(len(reply.body) * reply.sent_share)]
                    self.wfile.write(sent + (_raw(reply.followed_by) if reply.followed_by else b""))
                    self.close_connection |= reply.sent_share < 1
                    return
                for byte in reply.body:
                    time.sleep(reply.trickle_s)
                    self.wfile.write(bytes([byte]))

            def _uncount(self) -> None:
                if self.counted:
                    self.counted = False
                    server._done()

            def _send_endless(self, reply: Reply) -> None:
                """Until the client goes away, which is an OSError."""
                if reply.headers_trickle_s:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while reply.headers_trickle_s or reply.early_hints_s:
                    time.sleep(reply.headers_trickle_s or reply.early_hints_s)
                    self.wfile.write(
                        b"x" if reply.headers_trickle_s else b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
                    )

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _raw(reply: Reply) -> bytes:
    """A whole response as it goes over the wire."""
    head = f"HTTP/1.1 {reply.status} OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply.body)}\r\n\r\n"
    return head.encode() + reply.body


def refused_url() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
