"""Which proxy an address is reached through, and that files over HTTP are read through it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clipmill import storage
from clipmill.proxies import proxy_for

_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "http://example.org/a.mp4", None),
        ({"http_proxy": "http://proxy:3128"}, "http://example.org/a.mp4", "http://proxy:3128"),
        ({"http_proxy": "proxy:3128"}, "http://example.org/a.mp4", "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128"}, "https://example.org/a.mp4", None),
        ({"all_proxy": "http://proxy:3128"}, "https://example.org/a.mp4", "http://proxy:3128"),
        ({"http_proxy": "http://proxy", "no_proxy": "example.org"}, "http://cdn.example.org/a", None),
        ({"http_proxy": "http://proxy", "no_proxy": "*"}, "http://example.org/a", None),
        ({"http_proxy": "http://proxy"}, "http://localhost:8000/v1", None),
        ({"http_proxy": "http://proxy"}, "http://vllm.localhost:8000/v1", None),
        ({"http_proxy": "http://proxy"}, "http://127.0.0.1:8000/v1", None),
        ({"http_proxy": "http://proxy"}, "http://[::1]:8000/v1", None),
        ({"http_proxy": "http://proxy"}, "http://128.0.0.1:8000/v1", "http://proxy"),
        ({"http_proxy": "http://proxy"}, "http://localhost.example.org/", "http://proxy"),
    ],
)
def test_the_environment_names_the_proxy_except_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, expected: str | None
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == expected


@contextmanager
def proxy(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers every request with `content`; its address, and the requested addresses."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requested
    finally:
        server.shutdown()
        server.server_close()


def test_files_over_http_are_read_through_the_proxy(monkeypatch: pytest.MonkeyPatch):
    url = "http://videos.invalid/list.txt"
    with proxy(b"a.mp4\n") as (address, requested):
        monkeypatch.setenv("http_proxy", address)
        fs, path = storage.filesystem(url)
        assert storage.read_limited(fs, path, max_bytes=100) == b"a.mp4\n"
        with fs.open(path) as file:
            assert file.read() == b"a.mp4\n"
    assert set(requested) == {url}


def test_a_proxy_that_is_not_http_does_not_break_reading(monkeypatch: pytest.MonkeyPatch):
    with proxy(b"direct") as (address, requested):
        monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
        fs, path = storage.filesystem(f"{address.replace('127.0.0.1', '0.0.0.0')}/x")  # not a loopback address
        assert storage.read_limited(fs, path, max_bytes=100) == b"direct"
    assert requested == ["/x"]
