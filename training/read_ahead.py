"""Read samples in a store ahead of their use; those on a local disk on demand."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial

from training.data_config import DataConfig
from training.remote_shards import reader_for
from training.shards import Shard

Members = dict[str, bytes]
"""Content of a sample's files by extension."""

_LEAST_BYTES = 64 << 10
"""Smaller samples count as this large, to limit their number."""


def read_ahead(places: Iterable[tuple[Shard, int]], config: DataConfig) -> Iterator[Callable[[], Members]]:
    """For each (shard, row) a function that returns the sample's files, or raises what `Shard.read` does.

    Samples in a store are requested up to `config.read_ahead_mib` ahead, half of it at a time, so that neighbours in a
    shard share a request. `places` may be infinite. The position in the data is independent of the read-ahead.
    """
    ahead: deque[tuple[Callable[[], Members], int]] = deque()
    budget_bytes, ahead_bytes = config.read_ahead_mib * 2**20, 0
    places = iter(places)
    while True:
        if not ahead or ahead_bytes < budget_bytes / 2:
            new = list(_up_to(places, budget_bytes - ahead_bytes))
            ahead.extend(_requested(new, config))
            ahead_bytes += sum(_bytes(shard, row) for shard, row in new)
        if not ahead:
            return
        read, size_bytes = ahead.popleft()
        ahead_bytes -= size_bytes
        yield read


def _up_to(places: Iterator[tuple[Shard, int]], budget_bytes: float) -> Iterator[tuple[Shard, int]]:
    """The next places, up to `budget_bytes` in total but at least one; just one if it is on a disk."""
    while budget_bytes > 0:
        place = next(places, None)
        if place is None:
            return
        yield place
        if place[0].pieces(place[1]) is None:
            return
        budget_bytes -= _bytes(*place)


def _requested(places: list[tuple[Shard, int]], config: DataConfig) -> Iterator[tuple[Callable[[], Members], int]]:
    """Start reading; returns (function that returns the files, their bytes) for each place."""
    wanted = [shard.pieces(row) for shard, row in places]
    requested = [pieces for pieces in wanted if pieces is not None]
    futures = iter(reader_for(config).submit(requested) if requested else ())
    for (shard, row), pieces in zip(places, wanted, strict=True):
        if pieces is None:
            yield partial(shard.read, row), 0
        else:
            yield partial(_members, shard, row, next(futures)), _bytes(shard, row)


def _members(shard: Shard, row: int, future: Future[list[bytes]]) -> Members:
    return shard.members(row, future.result())


def _bytes(shard: Shard, row: int) -> int:
    """Share of the budget that a sample takes."""
    on_disk = shard.pieces(row) is None
    return 0 if on_disk else max(_LEAST_BYTES, sum(size for _, size in shard.ranges(row).values()))
