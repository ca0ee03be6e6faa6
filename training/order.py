"""Sample order: shards are shuffled every epoch, and samples within a window of a few shards.

All epochs form one infinite line of positions. Position p is sample p mod N of epoch p div N and belongs to reader p
mod R for R readers: every sample is seen once per epoch for any number of readers, even more readers than samples, and
a reader's state is a single number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import UserError

WINDOW = 8
"""Shards in the shuffle window. Reads are by offset, so this only bounds the number of open files."""


class Order:
    """Infinite sample order over shards of `sizes` samples. Raises UserError if there are no samples."""

    def __init__(self, sizes: Sequence[int], *, seed: int) -> None:
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._seed = seed
        if not len(self):
            raise UserError(f"{len(sizes)} shards contain no usable samples")
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, position: int) -> tuple[int, int, int]:
        """(epoch, shard, row) at a position."""
        epoch, place = divmod(position, len(self))
        sample = int(self._order(epoch)[place])
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return epoch, shard, sample - int(self._starts[shard])

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: recomputing the orders is cheaper than pickling them."""
        return self.__dict__ | {"_orders": {}}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Order of an epoch. Two are cached: samples in incomplete buckets may be from the previous epoch."""
        if epoch not in self._orders:
            for old in list(self._orders)[:-1]:
                del self._orders[old]
            self._orders[epoch] = self._draw(epoch)
        return self._orders[epoch]

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        shards = rng.permutation(len(self._starts) - 1)
        windows = [shards[i : i + WINDOW] for i in range(0, len(shards), WINDOW)]
        return np.concatenate(
            [
                rng.permutation(np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in window]))
                for window in windows
            ]
        )
