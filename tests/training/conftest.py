"""A process group of this process alone."""

from collections.abc import Iterator

import pytest

from training.distributed import Ranks, join, leave


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield join("cpu")
    leave()
