"""Fixtures shared by all tests (real footage, one Ray per session, a local object store) and how tests are spread."""

import atexit
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import connected

pytest_plugins = ["tests.s3"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each process of pytest-xdist whole files, and all that needs Ray to a single one; the longest come first."""
    groups = {item: "ray" if "local_ray" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]
              for item in items}  # fmt: skip
    slow = Counter(groups[item] for item in items if item.get_closest_marker("slow"))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (groups[item] != "ray", -slow[groups[item]]))


def pytest_configure() -> None:
    """Heed Ctrl-C here and in all that tests start: background jobs of a shell inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@atexit.register
def _silence_interpreter_shutdown() -> None:
    """nanobind, inside DuckDB, reports live module-level objects as leaks after the result of the tests was printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def local_ray(s3_endpoint: str) -> Iterator[None]:
    """One Ray for all tests that need one. It starts after the object store, whose address its workers inherit."""
    with connected():
        yield


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real footage; skips without it, but fails in CI, where it has to be there."""
    return _shared("videos", "CLIPMILL_TEST_VIDEOS")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of LAION's aesthetic heads; skips without it, but fails in CI, where it has to be there."""
    return _shared("weights", "CLIPMILL_TEST_WEIGHTS")


def _shared(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, Path(__file__).resolve().parents[2] / "shared" / name))
    if not folder.is_dir():
        message = f"needs a folder of {name}, there is none at {folder}: point {variable} to one (CONTRIBUTING.md)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
