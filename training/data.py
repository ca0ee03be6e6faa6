"""From shards to batches: each sample once per epoch across all ranks and workers, resumable at any point.

Shards are read by offset, not streamed: see docs/decisions.md.
"""

import itertools
import logging
import math
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from clipmill.errors import UserError
from clipmill.parents import end_with_parent
from training.batch import Batch
from training.contents import Contents
from training.data_config import DataConfig
from training.latents import LatentShape
from training.notes import required_but_missing, sentences
from training.order import Order
from training.read_ahead import Members, read_ahead
from training.sample_error import SampleError
from training.samples import LATENT, Sample, collate, read_sample
from training.seeds import seed_of
from training.shard_index import index_shards
from training.shards import Shard, ShardIndex

_LOG = logging.getLogger("clipmill.data")
_JUDGED_FROM = 20
"""Samples to read before checking the share of broken samples."""
_HOPELESS = 100
"""Consecutive broken samples, after two epochs of them, that stop the run regardless of the allowed share."""
_NAMED = 10
"""Broken samples to log by name, per worker; further ones are only counted."""

Shards = str | Path | Iterable[str | Path]


class BrokenDataError(UserError):
    """Too many samples are unreadable."""


class ShardData(IterableDataset[Batch | Exception]):
    """Infinite stream of batches of one rank, or of one worker of a rank.

    Samples are bucketed by shape (frames, height, width) and emitted as full batches; incomplete buckets carry over to
    the next epoch. `state_dict` is the position in the data.

    A fatal error is yielded as the last item rather than raised, because DataLoader would wrap the worker's traceback
    into the message. `Batches` raises it.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        latent_shape: LatentShape | None = None,
    ) -> None:
        self.index, self.config, self.rank, self.world_size, self.latent_shape = (
            index,
            config,
            rank,
            world_size,
            latent_shape,
        )
        self.order = Order([len(shard) for shard in index.shards], seed=config.seed)
        self.start = 0
        """Start of all readers on the line of positions."""
        self._turn = 0
        """Number of positions consumed by this reader."""
        self._waiting: list[int] = []
        """Positions of samples in incomplete buckets."""
        self._broken: Counter[str] = Counter()
        self._in_a_row = 0
        """Broken samples since the last good one."""

    def __iter__(self) -> Iterator[Batch | Exception]:
        try:
            yield from self._batches()
        except (UserError, OSError) as error:
            yield error

    def _batches(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        readers, reader = workers * self.world_size, number * self.world_size + self.rank
        buckets: dict[tuple[Any, ...], list[tuple[int, Sample]]] = {}
        coming = itertools.count(self.start + reader + self._turn * readers, readers)
        contents = read_ahead(map(self._place, itertools.chain(self._waiting, coming)), self.config)
        for position in self._waiting:
            self._put(buckets, position, next(contents))
        while True:
            position = self.start + reader + self._turn * readers
            self._turn += 1
            full = self._put(buckets, position, next(contents))
            if full is not None:
                self._waiting = [place for bucket in buckets.values() for place, _ in bucket]
                yield collate(full)

    def _place(self, position: int) -> tuple[Shard, int]:
        _, number, row = self.order.at(position)
        return self.index.shards[number], row

    def _put(
        self, buckets: dict[tuple[Any, ...], list[tuple[int, Sample]]], position: int, read: Callable[[], Members]
    ) -> list[Sample] | None:
        """Read the sample at `position` into its bucket; return the bucket if that fills it."""
        sample = self._read(position, read)
        if sample is None:
            return None
        bucket = buckets.setdefault(sample.shape, [])
        bucket.append((position, sample))
        return [sample for _, sample in buckets.pop(sample.shape)] if len(bucket) == self.config.batch_size else None

    def _read(self, position: int, read: Callable[[], Members]) -> Sample | None:
        """Return the sample, or None for a broken one, which is counted and logged. Raises BrokenDataError for too
        many.
        """
        epoch, number, row = self.order.at(position)
        shard = self.index.shards[number]
        key = shard.key(row)
        try:
            seed = seed_of(self.config.seed, epoch, key)
            sample = read_sample(key, read(), self.config, seed=seed, latent_shape=self.latent_shape)
        except (SampleError, EOFError) as error:
            kind = error.kind if isinstance(error, SampleError) else "shard_changed"
            self._broken[kind] += 1
            self._in_a_row += 1
            broken = self._broken.total()
            if broken <= _NAMED:
                _LOG.warning("skipped: %s: %s", key, error)
            too_many = self._too_many(broken)
            if too_many:
                kinds = ", ".join(f"{count} {kind}" for kind, count in self._broken.most_common())
                total, turns = len(self.order), self._turn
                reads = f"{turns} samples are" if turns <= total else f"{turns} reads of {total:,} samples were"
                raise BrokenDataError(
                    f"aborting: {broken} of {reads} unreadable ({too_many}; {kinds}); last: {key}: {error}"
                ) from error
            return None
        self._in_a_row = 0
        return sample

    def _too_many(self, broken: int) -> str | None:
        """The limit that was exceeded, if any: the allowed share, plus four standard deviations of the expected count
        for this reader's part of the samples.
        """
        if self._in_a_row > 2 * len(self.order) + _HOPELESS:
            return f"{self._in_a_row} in a row"
        allowed = self.config.max_broken_share * self._turn
        by_chance = 4 * math.sqrt(allowed) + 1 if allowed else 0
        if self._turn >= _JUDGED_FROM and broken > allowed + by_chance:
            return f"limit data.max_broken_share={self.config.max_broken_share:g}"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "turn": self._turn,
            "waiting": list(self._waiting),
            "broken": dict(self._broken),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.start, self._turn, self._waiting = state_dict["start"], state_dict["turn"], list(state_dict["waiting"])
        self._broken = Counter(state_dict["broken"])


class Batches(StatefulDataLoader[Batch]):
    """Batches of `ShardData`, read by workers; `state_dict()` is the position after the last returned batch."""

    def __iter__(self) -> Iterator[Batch]:
        return map(_raise_if_error, super().__iter__())  # not a generator: the workers start here

    def close(self) -> None:
        """End the workers, which would otherwise live until their iterator is collected."""
        iterator: Any = self._iterator  # type: ignore[has-type]  # of torchdata, which is not typed
        self._iterator = None
        if iterator is not None and self.num_workers:
            iterator._shutdown_workers()  # waits for them, then sends a signal, which they outlive once
            for worker in iterator._workers:
                worker.kill()

    def skip(self, samples: int) -> None:
        """Call before the first batch: start after about this many samples over all ranks, to resume with a different
        world size.
        """
        self.dataset.start = samples

    def contents(self) -> Contents:
        """Name, bytes and samples of each shard, in reading order."""
        return [(f"{shard.name}.tar", shard.size_bytes, len(shard)) for shard in self.dataset.index.shards]

    @property
    def latents(self) -> bool:
        """Whether the shards contain cached latents instead of frames."""
        return all(LATENT in shard.extensions for shard in self.dataset.index.shards if len(shard))


def _raise_if_error(batch: Batch | Exception) -> Batch:
    if isinstance(batch, Exception):
        raise batch
    return batch


def loader(
    shards: Shards | ShardIndex,
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    cache: str | Path | None = None,
    latent_shape: LatentShape | None = None,
    pin_memory: bool = False,
) -> Batches:
    """Build an infinite loader for one rank from clip, image or latent shards.

    `latent_shape` is the expected shape of latents; None accepts any. Damage inside a shard is logged (`clipmill.data`)
    and the readable samples are used. Raises UserError for missing or empty shards, BrokenDataError for too much
    damage.
    """
    index = shards if isinstance(shards, ShardIndex) else index_shards(shards, cache=cache)
    _check_index(index, config, log=rank == 0)
    data = ShardData(index, config, rank=rank, world_size=world_size, latent_shape=latent_shape)
    ahead: dict[str, Any] = {}
    if config.workers:
        ahead = {"prefetch_factor": config.prefetch, "persistent_workers": True, "worker_init_fn": _start_worker}
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that PyTorch 2.15 deprecates.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return Batches(data, batch_size=None, num_workers=config.workers, pin_memory=pin_memory, **ahead)


def _check_index(index: ShardIndex, config: DataConfig, *, log: bool) -> None:
    """Log damage and what samples lack; raise UserError without samples, BrokenDataError beyond the allowed share."""
    damage = [*index.problems, *index.broken]
    for name, reason in damage[: _NAMED if log else 0]:
        _LOG.warning("%s: %s", name, reason)
    for sentence in sentences(index, config) if log else ():
        _LOG.warning("%s", sentence)
    lost, limit = len(index.broken), f"limit data.max_broken_share={config.max_broken_share:g}"
    if not len(index) and not lost:
        first = f"; first: {': '.join(damage[0])}" if damage else ""
        raise UserError(f"{len(index.shards)} shards contain no usable samples{first}")
    if lost > config.max_broken_share * (len(index) + lost):
        name, reason = index.broken[0]
        raise BrokenDataError(
            f"aborting: {lost} of {len(index) + lost} samples are incomplete ({limit}); first: {name}: {reason}"
        )
    missing = required_but_missing(index, config)
    if missing is not None and missing[1] > config.max_broken_share * len(index):
        key, count = missing
        raise BrokenDataError(
            f"aborting: {count} of {len(index)} samples have no {key}, which this stage needs ({limit})"
        )


def _start_worker(_: int) -> None:
    """Ignore stop signals in workers: Ctrl-C and a scheduler's SIGTERM reach them too, but the current step still needs
    their batches. They end with their parent: torch looks for it only between batches, and one may take minutes while a
    store does not answer.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)


def _heed_the_next(signum: int, _: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)


class Escaped(logging.Filter):
    """Escape control characters in messages: sample names come from shards and are untrusted."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.isprintable():
            record.msg, record.args = repr(message)[1:-1], ()
        return True


_LOG.addFilter(Escaped())


class Joint:
    """Batches of videos with an evenly spread `share` of image batches (joint training)."""

    def __init__(self, videos: Batches, pictures: Batches, *, share: float) -> None:
        self.videos, self.pictures, self.share = videos, pictures, share
        self._batches = 0

    def __iter__(self) -> Iterator[Batch]:
        videos, pictures = iter(self.videos), iter(self.pictures)
        while True:
            before, self._batches = self._batches, self._batches + 1
            picture = math.floor(self._batches * self.share) > math.floor(before * self.share)
            yield next(pictures if picture else videos)

    def close(self) -> None:
        """Like `Batches.close`."""
        self.videos.close()
        self.pictures.close()

    def contents(self) -> Contents:
        """Like `Batches.contents`, with image shards marked."""
        pictures = [(f"{name} (pictures)", size, samples) for name, size, samples in self.pictures.contents()]
        return self.videos.contents() + pictures

    @property
    def latents(self) -> bool:
        """Like `Batches.latents`."""
        return self.videos.latents

    def skip(self, samples: int) -> None:
        """Like `Batches.skip`, over videos and images together."""
        of_pictures = math.floor(samples * self.share)
        self.videos.skip(samples - of_pictures)
        self.pictures.skip(of_pictures)

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
