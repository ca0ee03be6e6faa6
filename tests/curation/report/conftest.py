"""A browser, and the page of a selection, shared by all tests of the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from tests.curation.report.browser import launched
from tests.curation.report.datasets import make

RULES = {"motion": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}, "duplicate_rank": {"max": 0}}


@pytest.fixture(scope="package")  # what later tests fork would hold its pipes open, and closing it would wait for them
def browser() -> Iterator[Any]:
    with launched() as running:
        yield running


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = make(tmp_path_factory.mktemp("report") / "dataset", 200)
    select_clips(made, Rules.from_values({"name": "start", "rules": RULES, "where": "width >= 640"}, origin="test"))
    return made


@pytest.fixture(scope="session")
def file(dataset: Dataset) -> Path:
    return Path(write_page(dataset, "start", build_report(dataset, "start")))
