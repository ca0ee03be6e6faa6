"""The line of positions: its definition, an epoch at a time, and that it travels to workers of any kind."""

import multiprocessing
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.training.shards import sample, video, write_shard
from training.data import loader
from training.data_config import DataConfig
from training.order import WINDOW, Order

KNOWN = [
    (0, 0, 0), (0, 0, 1), (0, 2, 1), (0, 2, 0), (0, 2, 2), (1, 2, 1), (1, 0, 0), (1, 2, 0), (1, 0, 1), (1, 2, 2)
]  # fmt: skip


def line(order: Order, count: int) -> list[tuple[int, int, int]]:
    return [order.at(position) for position in range(count)]


def test_an_epoch_is_a_permutation_of_shards_mixed_within_windows() -> None:
    """Twenty shards of different size: the first eight of the permutation come first, mixed, then the next eight."""
    sizes = [3 + i % 4 for i in range(20)]
    order = Order(sizes, seed=5)
    assert len(order) == sum(sizes)
    for epoch in range(2):
        shards = np.random.default_rng([5, epoch]).permutation(20)
        positions = [(shard, row) for when, shard, row in line(order, 2 * len(order)) if when == epoch]
        for first in range(0, 20, WINDOW):
            window = shards[first : first + WINDOW].tolist()
            count = sum(sizes[shard] for shard in window)
            part, positions = positions[:count], positions[count:]
            assert sorted(part) == sorted((shard, row) for shard in window for row in range(sizes[shard]))
            assert part != sorted(part)
            assert [shard for shard, _ in part] != [shard for shard in window for _ in range(sizes[shard])]
        assert not positions
    assert WINDOW == 8


def test_known_positions() -> None:
    """Written down once: a run that was begun goes on with these, whatever is changed here."""
    assert line(Order([2, 0, 3], seed=7), 10) == KNOWN
    assert line(Order([2, 0, 3], seed=8), 10) != KNOWN


def test_an_order_without_a_sample_is_refused() -> None:
    for sizes in ([], [0, 0]):
        with pytest.raises(ValueError, match=f"^{len(sizes)} shards contain no usable samples$"):
            Order(sizes, seed=0)


def test_a_copy_in_another_process_is_equal_and_small() -> None:
    order = Order([1000, 1000], seed=3)
    expected = [*line(order, 10), order.at(2000), order.at(4000)]
    content = pickle.dumps(order)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert [*line(copy, 10), copy.at(2000), copy.at(4000)] == expected


def test_two_epochs_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that wait for a batch of their shape belong to the epoch before."""
    drawn = []
    draw = Order._draw
    monkeypatch.setattr(Order, "_draw", lambda order, epoch: drawn.append(epoch) or draw(order, epoch))
    order = Order([4], seed=0)
    for position in (0, 4, 1, 5, 2, 8, 4, 9, 0):
        order.at(position)
    assert drawn == [0, 1, 2, 0]


def test_workers_that_are_not_forked_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default way to start a process on Linux, from Python 3.14 on."""
    clip = video(8)
    write_shard(tmp_path / "a.tar", [sample(f"{i}", clip) for i in range(4)])

    def keys(workers: int) -> list[str]:
        config = DataConfig(frames=2, height_px=32, width_px=48, fps=(24.0,), workers=workers)
        return [key for batch in islice(iter(loader(tmp_path, config)), 6) for key in batch.keys]

    expected = keys(0)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        assert keys(1) == expected
    finally:
        multiprocessing.set_start_method(before, force=True)
