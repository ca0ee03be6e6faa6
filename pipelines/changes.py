"""Own a dataset for a change of its tables, and record that change as one version."""

from collections.abc import Iterator
from contextlib import contextmanager

from curation.dataset.commits import Change, recorded
from curation.dataset.tables import Dataset
from pipelines.fence import Fence, owned


@contextmanager
def changing(dataset: Dataset, change: Change, *, take_over: bool = False) -> Iterator[Fence]:
    """Own the dataset for the duration of the block, see `owned`, and commit what it changes, see `recorded`."""
    with owned(dataset.url, take_over=take_over) as fence, recorded(dataset, change, fence.check):
        yield fence
