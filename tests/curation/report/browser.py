"""Chromium for the tests of the page: where it is, and pages that fail a test on any message in the console."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest


def chromium() -> str:
    """Path of Chromium (CLIPMILL_CHROMIUM, or on PATH); skips the test without it, but fails in CI."""
    pytest.importorskip("playwright")
    found = os.environ.get("CLIPMILL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        message = "needs Chromium: apt-get install chromium, or point CLIPMILL_CHROMIUM to one"
        if os.environ.get("CI") == "true" or os.environ.get("CLIPMILL_BROWSER_TESTS") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """A browser of playwright's."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder, with or without range requests, which Python's own server lacks."""

    ranges = True

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not (asked and self.ranges):
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path, *, ranges: bool) -> Iterator[str]:
    """The URL of a folder on this machine."""
    handler = type("Files", (_Files,), {"ranges": ranges})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def opened(browser: Any, file: Path | str, **options: Any) -> Iterator[Any]:
    """The file, or a URL, in a page without a network. Fails afterwards if the console had an error or a warning."""
    options = {"viewport": {"width": 1280, "height": 800}, "offline": True} | options
    context = browser.new_context(**options)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri() if isinstance(file, Path) else file)
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield page
    context.close()
    assert not [line for line in said if not line.startswith(("log:", "info:", "debug:"))]


def wait_until(page: Any, expression: str, *, timeout_s: float = 60) -> None:
    """Wait for a JavaScript expression to hold; playwright's own way needs eval, which the page forbids."""
    deadline_s = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline_s, f"{expression} did not come true within {timeout_s} s"
        page.wait_for_timeout(50)


def kept(page: Any) -> int:
    """The number of clips that the page says are kept."""
    return int(page.get_attribute("#kept-clips", "data-clips"))
