"""A process group of this process alone."""

from collections.abc import Iterator

import pytest

from training.distributed import Process, join, leave


@pytest.fixture
def process() -> Iterator[Process]:
    yield join("cpu")
    leave()
