"""A source to put captions beside."""

from pathlib import Path

import pytest

from curation.inputs.sources import Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "a.b clip.mp4").write_bytes(b"x")
    return Source(uri=str(tmp_path / "a.b clip.mp4"))
