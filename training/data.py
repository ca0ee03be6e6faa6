"""From shards to batches: every sample once per epoch over all ranks and workers, at any point to be gone on from.

Shards are read by offset, not streamed: see docs/decisions.md.
"""

import logging
import math
import signal
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from clipmill.errors import UserError
from training.batch import Batch
from training.contents import Contents
from training.data_config import DataConfig
from training.frames import SampleError
from training.latents import LatentShape
from training.order import Order
from training.samples import LATENT, Sample, collate, read_sample
from training.seeds import seed_of
from training.shard_index import ShardIndex, index_shards

_LOG = logging.getLogger("clipmill.data")
_JUDGED_FROM = 20
"""Samples seen before their broken share is judged."""
_HOPELESS = 100
"""So many broken samples in a row, beyond two epochs of them, stop the run whatever share is allowed."""
_NAMED = 10
"""Broken samples that are named, by each worker; the rest is counted."""

Shards = str | Path | Iterable[str | Path]


class BrokenDataError(UserError):
    """Too many samples cannot be read."""


class ShardData(IterableDataset[Batch | Exception]):
    """Batches of one rank without end; in a worker, that worker's part of them.

    Samples of one shape (frames, height, width) gather until there is a batch of them; what is left over at the end of
    an epoch waits for the next. `state_dict` is the place in the data, in a few numbers.

    What stops the run is the last item instead of being raised: a DataLoader would wrap the traceback of a worker into
    the message. `Batches` raises it.
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
        """Where on the line of positions all readers begin."""
        self._turn = 0
        """How many positions this reader has taken."""
        self._waiting: list[int] = []
        """Positions whose samples wait for a batch of their shape."""
        self._broken: Counter[str] = Counter()
        self._in_a_row = 0
        """Broken samples since the last one that was not."""

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
        for position in self._waiting:
            self._put(buckets, position)
        while True:
            position = self.start + reader + self._turn * readers
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
        return [sample for _, sample in buckets.pop(sample.shape)] if len(bucket) == self.config.batch_size else None

    def _read(self, position: int) -> Sample | None:
        """None for a broken sample, which is counted and named. Raises BrokenDataError for too many."""
        epoch, number, row = self.order.at(position)
        shard = self.index.shards[number]
        key = shard.key(row)
        try:
            seed = seed_of(self.config.seed, epoch, key)
            sample = read_sample(key, shard.read(row), self.config, seed=seed, latent_shape=self.latent_shape)
        except (SampleError, EOFError) as error:
            kind = error.kind if isinstance(error, SampleError) else "shard_changed"
            self._broken[kind] += 1
            self._in_a_row += 1
            broken = self._broken.total()
            if broken <= _NAMED:
                _LOG.warning("left out: %s: %s", key, error)
            too_many = self._too_many(broken)
            if too_many:
                kinds = ", ".join(f"{count} {kind}" for kind, count in self._broken.most_common())
                raise BrokenDataError(
                    f"{broken} of {self._turn} samples cannot be trained on ({kinds}), the last is {key}: {error}. "
                    f"{too_many} stops the run"
                ) from error
            return None
        self._in_a_row = 0
        return sample

    def _too_many(self, broken: int) -> str | None:
        """What stops the run, if anything: more than the share allows, by more than this reader's part of the samples
        may hold by chance, which is four deviations of the number that is allowed."""
        if self._in_a_row > 2 * len(self.order) + _HOPELESS:
            return f"That {self._in_a_row} in a row are broken"
        allowed = self.config.max_broken_share * self._turn
        by_chance = 4 * math.sqrt(allowed) + 1 if allowed else 0
        if self._turn >= _JUDGED_FROM and broken > allowed + by_chance:
            return f"More than data.max_broken_share {self.config.max_broken_share:g}"
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
    """Batches of `ShardData`, read by workers; its `state_dict()` is the place after the batch that came last."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def skip(self, samples: int) -> None:
        """Before the first batch: begin where all ranks together have had about so many samples, for a run that goes on
        with another number of ranks."""
        self.dataset.start = samples

    def contents(self) -> Contents:
        """Name, bytes and samples of each shard, in their order."""
        return [(f"{shard.name}.tar", shard.size_bytes, len(shard)) for shard in self.dataset.index.shards]

    @property
    def latents(self) -> bool:
        """Whether these are latents, computed once, and no frames."""
        return all(LATENT in shard.extensions for shard in self.dataset.index.shards if len(shard))


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
    """Endless batches for one rank from clip, image or latent shards.

    `latent_shape` is what latents have to look like; without it they may be of any size.
    Damage inside a shard is named in the log (`clipmill.data`), what can be read of it is read. Raises UserError for
    shards that are not there or hold nothing, BrokenDataError where too much of them is damaged.
    """
    index = shards if isinstance(shards, ShardIndex) else index_shards(shards, cache=cache)
    damage = [*index.problems, *index.broken]
    for name, reason in damage[: _NAMED if rank == 0 else 0]:
        _LOG.warning("%s: %s", name, reason)
    lost = len(index.broken)
    if lost > config.max_broken_share * (len(index) + lost):
        name, reason = index.broken[0]
        raise BrokenDataError(
            f"{lost} of {len(index) + lost} samples lack a file, first {name}: {reason}. More than "
            f"data.max_broken_share {config.max_broken_share:g} stops the run"
        )
    data = ShardData(index, config, rank=rank, world_size=world_size, latent_shape=latent_shape)
    ahead: dict[str, Any] = {}
    if config.workers:
        ahead = {"prefetch_factor": config.prefetch, "persistent_workers": True, "worker_init_fn": _outlive_signals}
    with warnings.catch_warnings():
        # torchdata 0.11 tells PyTorch 2.15 something that it no longer wants to hear.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return Batches(data, batch_size=None, num_workers=config.workers, pin_memory=pin_memory, **ahead)


def _outlive_signals(_: int) -> None:
    """In a worker: what asks the run to stop (Ctrl-C in a terminal, a scheduler's SIGTERM) is sent to workers too, and
    the step at hand still needs their batches. They end with the process that they read for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)


def _heed_the_next(signum: int, _: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)


class Escaped(logging.Filter):
    """Makes control characters of a message visible: names of samples come from shards, and may hold any."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.isprintable():
            record.msg, record.args = repr(message)[1:-1], ()
        return True


_LOG.addFilter(Escaped())


class Joint:
    """Batches of videos and, of all batches, a `share` of pictures, evenly spread (joint training)."""

    def __init__(self, videos: Batches, pictures: Batches, *, share: float) -> None:
        self.videos, self.pictures, self.share = videos, pictures, share
        self._batches = 0

    def __iter__(self) -> Iterator[Batch]:
        videos, pictures = iter(self.videos), iter(self.pictures)
        while True:
            before, self._batches = self._batches, self._batches + 1
            picture = math.floor(self._batches * self.share) > math.floor(before * self.share)
            yield next(pictures if picture else videos)

    def contents(self) -> Contents:
        """As `Batches.contents`, the shards of pictures marked as such."""
        pictures = [(f"{name} (pictures)", size, samples) for name, size, samples in self.pictures.contents()]
        return self.videos.contents() + pictures

    @property
    def latents(self) -> bool:
        """As `Batches.latents`."""
        return self.videos.latents

    def skip(self, samples: int) -> None:
        """As `Batches.skip`, of videos and pictures together."""
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
