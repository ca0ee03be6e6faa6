"""Chromium for the tests of the page: where it is, and pages that fail a test on any message in the console."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def opened(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    """The file in a page without a network. Fails afterwards if the console had an error or a warning."""
    options = {"viewport": {"width": 1280, "height": 800}, "offline": True} | options
    context = browser.new_context(**options)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
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
