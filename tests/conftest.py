"""Fixtures shared by all tests: real footage, one Ray per session, a local object store."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real footage; skips without it, but fails in CI, where it has to be there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "videos"
    folder = Path(os.environ.get("CLIPMILL_TEST_VIDEOS", default))
    if not folder.is_dir():
        message = f"no real footage at {folder} (set CLIPMILL_TEST_VIDEOS)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
