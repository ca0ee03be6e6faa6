"""A web server of files in memory for tests, with or without byte ranges."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WebServer:
    """`files` by path; `errors` are statuses to answer with before anything else, each once."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    errors: list[int] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, range) of each request for a file that is there."""
    url: str = ""


@contextmanager
def web_server() -> Iterator[WebServer]:
    """A server on a port of this machine for as long as the block lasts."""
    state = WebServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if state.errors:
                self.send_error(state.errors.pop(0))
                return
            if path.startswith("/signed/") and "Signature=secret" not in query:
                self.send_error(403)
                return
            content = state.files.get(path.removeprefix("/signed"))
            if content is None:
                self.send_error(404)
                return
            state.asked.append((path, self.headers.get("Range", "")))
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if state.ranges else None
            part = content if wanted is None else content[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(200 if wanted is None else 206)
            if wanted is not None:
                end = int(wanted[1]) + len(part) - 1
                self.send_header("Content-Range", f"bytes {wanted[1]}-{end}/{len(content)}")
            self.send_header("ETag", f'"{sha256(content).hexdigest()[:16]}"')
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
