"""From shards to batches: every sample once per epoch over all ranks and workers, at any point to be gone on from.

Shards are read by offset, not streamed: see docs/decisions.md.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from training.batch import Batch
from training.data_config import DataConfig
from training.frames import SampleError
from training.order import Order
from training.samples import Sample, collate, read_sample
from training.seeds import seed_of
from training.shard_index import ShardIndex, index_shards

_LOG = logging.getLogger("clipmill.data")
_JUDGED_FROM = 20
"""Samples seen before their broken share is judged."""
_NAMED, _COUNTED = 10, 100
"""Broken samples that are named, by each worker; of the rest every so many are told as a number."""

Shards = str | Path | Iterable[str | Path]


class BrokenDataError(ValueError):
    """Too many samples cannot be read."""


class ShardData(IterableDataset[Batch]):
    """Batches of one rank without end; in a worker, that worker's part of them.

    Samples of one shape (frames, height, width) gather until there is a batch of them; what is left over at the end of
    an epoch waits for the next. `state_dict` is the place in the data, in a few numbers.
    """

    def __init__(self, index: ShardIndex, config: DataConfig, *, rank: int = 0, ranks: int = 1) -> None:
        self.index, self.config, self.rank, self.ranks = index, config, rank, ranks
        self.order = Order([len(shard) for shard in index.shards], seed=config.seed)
        self._turn = 0
        """How many positions this reader has taken."""
        self._waiting: list[int] = []
        """Positions whose samples wait for a batch of their shape."""
        self._broken: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        readers, reader = workers * self.ranks, number * self.ranks + self.rank
        buckets: dict[tuple[Any, ...], list[tuple[int, Sample]]] = {}
        for position in self._waiting:
            self._put(buckets, position)
        while True:
            position = reader + self._turn * readers
            self._turn += 1
            full = self._put(buckets, position)
            if full is not None:
                self._waiting = [place for bucket in buckets.values() for place, _ in bucket]
                yield collate(full)

    def _put(self, buckets: dict[tuple[Any, ...], list[tuple[int, Sample]]], position: int) -> list[Sample] | None:
        """Read the sample at `position` into its bucket; what was in the bucket, if that is full now."""
        sample = self._read(position)
        if sample is None:
            return None
        bucket = buckets.setdefault(sample.shape, [])
        bucket.append((position, sample))
        return [each for _, each in buckets.pop(sample.shape)] if len(bucket) == self.config.batch_size else None

    def _read(self, position: int) -> Sample | None:
        """None for a broken sample, which is counted and named. Raises BrokenDataError for too many."""
        epoch, number, row = self.order.at(position)
        shard = self.index.shards[number]
        key = shard.key(row)
        try:
            return read_sample(key, shard.read(row), self.config, seed=seed_of(self.config.seed, epoch, key))
        except (SampleError, EOFError) as error:
            kind = error.kind if isinstance(error, SampleError) else "shard_changed"
            self._broken[kind] += 1
            broken, seen = self._broken.total(), max(self._turn, 1)
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._broken.most_common())
            if broken <= _NAMED:
                _LOG.warning("left out: %s: %s", key, error)
            elif broken % _COUNTED == 0:
                _LOG.warning("left out: %d of %d samples so far (%s)", broken, seen, kinds)
            # Without a good sample in an epoch there will be no batch, whatever share is allowed.
            hopeless = broken == seen >= len(self.order)
            if seen >= _JUDGED_FROM and (hopeless or broken > self.config.max_broken_share * seen):
                limit = f"more than data.max_broken_share {self.config.max_broken_share:g} stops the run"
                raise BrokenDataError(
                    f"{broken} of {seen} samples cannot be trained on ({kinds}), the last is {key}: {error}; "
                    f"{'none is left' if hopeless else limit}"
                ) from error
            return None

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self._turn, "waiting": list(self._waiting), "broken": dict(self._broken)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._turn, self._waiting = state_dict["turn"], list(state_dict["waiting"])
        self._broken = Counter(state_dict["broken"])


def loader(
    shards: Shards,
    config: DataConfig,
    *,
    rank: int = 0,
    ranks: int = 1,
    cache: str | Path | None = None,
    pin_memory: bool = False,
) -> StatefulDataLoader[Batch]:
    """Endless batches for one rank from clip, image or latent shards; its `state_dict()` is the place after the batch
    that came last.

    Damage inside a shard is named in the log (`clipmill.data`), what can be read of it is read. Raises ValueError for
    shards that are not there or hold nothing, BrokenDataError (a ValueError) where too much of them is damaged.
    """
    index = index_shards(shards, cache=cache)
    damage = [*index.problems, *index.broken]
    for name, reason in damage[: _NAMED if rank == 0 else 0]:
        _LOG.warning("%s: %s", name, reason)
    lost = len(index.broken)
    if lost > config.max_broken_share * (len(index) + lost):
        name, reason = index.broken[0]
        raise BrokenDataError(
            f"{lost} of {len(index) + lost} samples lack a file, first {name}: {reason}; more than "
            f"data.max_broken_share {config.max_broken_share:g} stops the run"
        )
    data = ShardData(index, config, rank=rank, ranks=ranks)
    ahead = {"prefetch_factor": config.prefetch, "persistent_workers": True} if config.workers else {}
    return StatefulDataLoader(data, batch_size=None, num_workers=config.workers, pin_memory=pin_memory, **ahead)


class Joint:
    """Batches of videos and, of all batches, a `share` of pictures, evenly spread (joint training)."""

    def __init__(self, videos: StatefulDataLoader[Batch], pictures: StatefulDataLoader[Batch], *, share: float) -> None:
        self.videos, self.pictures, self.share = videos, pictures, share
        self._batches = 0

    def __iter__(self) -> Iterator[Batch]:
        videos, pictures = iter(self.videos), iter(self.pictures)
        while True:
            before, self._batches = self._batches, self._batches + 1
            picture = math.floor(self._batches * self.share) > math.floor(before * self.share)
            yield next(pictures if picture else videos)

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches": self._batches,
            "videos": self.videos.state_dict(),
            "pictures": self.pictures.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]
        self.videos.load_state_dict(state_dict["videos"])
        self.pictures.load_state_dict(state_dict["pictures"])
