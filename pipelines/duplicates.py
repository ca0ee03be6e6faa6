"""`clipmill duplicates`: the near-duplicate search in this process, or with the kept clips spread over a Ray cluster.

The driver reads clips in order of preference and asks all nodes, for a block of them at a time, for the best kept clip
that each joins; it never holds the index. A node that dies costs nothing but time: others take over its clips.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.costs import Cost, charge
from clipmill.errors import RunStopped, UserError
from curation.dataset.commits import current_version
from curation.dataset.tables import Dataset
from curation.dedup.against import AgainstResult, Comparison, Nearest, find_in_other, is_current_against, nearest_of
from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import DuplicatesResult, check_comparable, find_duplicates, is_current, last_config
from curation.dedup.kept import NONE, KeptShare, LocalIndex
from curation.dedup.ranked import ClipBlock, RankedClips
from pipelines.cluster import cluster_address, connected, stopped_by_errors
from pipelines.config import CurateConfig
from pipelines.costs import Record, measured_here, recorded_costs
from pipelines.status import clip_digest, models_of

_BLOCK_CLIPS = 4096
"""Clips per round: the driver compares those of a block with each other while the nodes wait."""
_CPUS = 0.01
"""CPUs of an actor: almost none, because the search waits until all actors have started, and a search that continues an
earlier one has two actors per CPU, one of which works at a time. Nodes without CPUs get none."""


class _Share(KeptShare):
    """The share of one actor."""

    def cpu_s(self, _: tuple[()]) -> float:
        """CPU seconds of its process so far."""
        return time.process_time()


class RayIndex:
    """Kept clips in actors, one to a CPU of the cluster."""

    block_clips = _BLOCK_CLIPS

    def __init__(self, clips: RankedClips, config: DuplicatesConfig, centroids_CD: NDArray[np.float32] | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._clips, self._approximate = clips, centroids_CD is not None
        share = ray.remote(num_cpus=_CPUS, max_restarts=0)(_Share)
        centroids = ray.put(centroids_CD)
        self._actors: list[Any] = [
            share.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(
                clips.width, config, centroids
            )
            for node in _node_of_each_cpu()
        ]
        self._kept: list[list[NDArray[np.int64]]] = [[] for _ in self._actors]
        """What each actor holds, to give it to another when it dies."""
        self._adding: list[Any] = []

    def located(self, block: ClipBlock) -> ClipBlock:
        """The block with its cells, in the approximate search: each actor finds those of a slice."""
        if not self._approximate or not len(block):
            return block
        slices = np.array_split(np.arange(len(block)), len(self._actors))
        answers = self._asked("located", [block.take(rows) for rows in slices if len(rows)])
        cells_BS = np.concatenate([answer.cells_BS for answer in answers])
        return replace(block, cells_BS=cells_BS)

    def best(self, block: ClipBlock) -> NDArray[np.int64]:
        """(B,): number of the best kept clip that each may join and is similar to, or `NONE`."""
        import ray

        if not len(block):
            return np.empty(0, np.int64)
        answers = self._asked("best", [ray.put(block)] * len(self._actors))
        best_B: NDArray[np.int64] = np.minimum.reduce([np.full(len(block), NONE), *answers])
        return best_B

    def add(self, block: ClipBlock) -> None:
        """Keep these clips, each in one actor."""
        for i, actor in enumerate(self._actors):
            some = block.take(np.arange(i, len(block), len(self._actors)))
            if len(some):
                self._kept[i].append(some.number_B)
                self._adding.append(actor.add.remote(some))

    def cpu_s(self) -> float:
        """CPU seconds of its actors."""
        return float(sum(self._asked("cpu_s", [()] * len(self._actors))))

    def _asked(self, method: str, arguments: list[Any]) -> list[Any]:
        """The answers of the actors, one argument to each. If some die, the others take over their clips, and all are
        asked again: then several arguments go to one actor, and an index is still asked as a whole."""
        import ray
        from ray.exceptions import RayActorError

        while True:
            try:
                ray.get(self._adding)
                self._adding = []
                calls = zip(self._actors * len(arguments), arguments, strict=False)
                return list(ray.get([getattr(actor, method).remote(argument) for actor, argument in calls]))
            except RayActorError:
                self._redistribute()

    def _redistribute(self) -> None:
        """Give the clips of dead actors to the others."""
        import ray
        from ray.exceptions import RayActorError

        self._adding, orphans, living = [], [], []
        for actor, kept in zip(self._actors, self._kept, strict=True):
            try:
                ray.get(actor.count.remote())
                living.append((actor, kept))
            except RayActorError:
                orphans += kept
        if not living:
            raise RunStopped("all nodes that held clips of the near-duplicate search died: rerun it on other nodes")
        self._actors, self._kept = [actor for actor, _ in living], [kept for _, kept in living]
        for number_B in orphans:
            self.add(self._clips.block(number_B))


def _node_of_each_cpu() -> list[str]:
    """Node ids, one per CPU."""
    import ray

    alive = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    places = [node for node, cpus in alive for _ in range(cpus)]
    return places or [node for node, _ in alive[:1]]


def search_duplicates(
    dataset: Dataset, config: DuplicatesConfig | None = None, *, address: str | None = None
) -> DuplicatesResult:
    """Find near-duplicates, on the Ray cluster at `address` (or RAY_ADDRESS), else in this process.

    The result is the same. Raises UserError, see `find_duplicates`; RunStopped.
    """
    address, indexes = cluster_address(address), list[RayIndex]()

    def make_index(*arguments: Any) -> RayIndex:
        indexes.append(RayIndex(*arguments))
        return indexes[-1]

    with _searching(dataset, "duplicates", address) as record:
        result = find_duplicates(dataset, config, make_index=make_index if address else LocalIndex)
        charge("duplicates", Cost(cpu_s=sum(index.cpu_s() for index in indexes)))
        if result.reused:
            record.discard()
        return result


@contextmanager
def _searching(dataset: Dataset, stage: str, address: str | None) -> Iterator[Record]:
    """A search of the driver, counted for `stage`, on the Ray cluster at `address` if there is one."""
    with (
        connected(address) if address else nullcontext(),
        stopped_by_errors(),
        recorded_costs(dataset, "duplicates") as record,
        measured_here(stage),
    ):
        yield record


def compared_on_ray(comparisons: Iterable[Comparison]) -> Iterator[Nearest]:
    """Compare clips of two datasets in tasks, with two for each CPU under way; the answers are in order."""
    import ray

    task = ray.remote(num_cpus=1)(nearest_of)
    pending: deque[Any] = deque()
    at_once = 2 * len(_node_of_each_cpu())
    before: Any = None
    chunk: Any = None
    for theirs_CD, ours_BD in comparisons:
        if theirs_CD is not before:
            before, chunk = theirs_CD, ray.put(theirs_CD)
        pending.append(task.remote(chunk, ours_BD))
        if len(pending) >= at_once:
            yield ray.get(pending.popleft())
    while pending:
        yield ray.get(pending.popleft())


def search_against(
    dataset: Dataset,
    other: Dataset,
    config: DuplicatesConfig | None = None,
    *,
    name: str | None = None,
    address: str | None = None,
) -> AgainstResult:
    """Score each clip by its nearest clip of another dataset, on the Ray cluster at `address` (or RAY_ADDRESS), else in
    this process. Raises UserError, see `find_in_other`, and for datasets that were curated with different CLIP models;
    RunStopped."""
    _check_same_model(dataset, other, config)
    address = cluster_address(address)
    with _searching(dataset, "against", address) as record:
        result = find_in_other(dataset, other, config, name=name, run=compared_on_ray if address else None)
        if result.reused:
            record.discard()
        return result


def _check_same_model(dataset: Dataset, other: Dataset, config: DuplicatesConfig | None) -> None:
    digests = [clip_digest(each) for each in (dataset, other)]
    compares_hashes = config is not None and config.by == "picture_hash"
    if None not in digests and digests[0] != digests[1] and not compares_hashes:
        raise UserError(
            f"{dataset.url} and {other.url} were curated with different CLIP models: their embeddings cannot be "
            "compared. Curate both with the same, or add picture hashes to both (`clipmill score DATASET --scorer "
            "picture_hash`) and pass --by picture_hash."
        )


def is_due(
    dataset: Dataset, config: DuplicatesConfig, *, against: Dataset | None = None, name: str | None = None
) -> bool:
    """Whether a search would write anything. Raises UserError for one that cannot be carried out.

    Read-only, so that neither stops a run that owns the dataset.
    """
    if against is None:
        check_comparable(dataset, config)
        current = is_current(dataset, config)
    else:
        _check_same_model(dataset, against, config)
        current = is_current_against(dataset, against, config, name=name)
    return not current or current_version(dataset).changing


def settings_of(dataset: Dataset, config: str | None, given: dict[str, Any]) -> DuplicatesConfig:
    """The settings of a search: those of a file, else of the last search, else of `curate`, with those `given`."""
    if config:
        values = (CurateConfig.from_file(config).duplicates or DuplicatesConfig()).model_dump()
    else:
        recorded = last_config(dataset)
        values = recorded.model_dump() if recorded else dict(models_of(dataset).get("duplicates") or {})
    return DuplicatesConfig.from_values(values | given, origin="duplicates")
