"""Fixtures shared by all tests: real footage, one Ray per session, a local object store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import connected

pytest_plugins = ["tests.s3"]


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
        message = f"no {name} at {folder} (set {variable})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
