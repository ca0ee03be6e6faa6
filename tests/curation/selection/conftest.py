"""Datasets to select from."""

from pathlib import Path

import pytest

from curation.dataset.tables import Dataset
from tests.curation.selection.datasets import make


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    """Ten clips with motion 0 to 9, the last three without text_area, curated without similarity and aesthetic."""
    without = {f"{name}_error": f"left out: --without {name}" for name in ("similarity", "aesthetic")}
    without |= {f"{name}_error_kind": "left_out" for name in ("similarity", "aesthetic")}
    clips = [
        {"motion": float(i), "text_area": i / 100 if i < 7 else None, "width": 100 * i} | without for i in range(10)
    ]
    return make(str(tmp_path / "ten"), clips)
