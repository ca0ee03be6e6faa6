"""Progress of a run on Ray, counted in the tasks, and the nodes that it lost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import accumulate
from typing import Any

from clipmill.pipeline import Stage
from pipelines.cluster import stopped_by_errors
from pipelines.graph import run
from pipelines.progress import Reporter
from pipelines.repeated import repeated

_ASKED_EVERY_S = 1.0
_ANSWER_S = 10.0


class _Counter:
    """An actor. A task that Ray retries counts once."""

    def __init__(self, total: int) -> None:
        self._done, self._count = bytearray(total), 0

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self._count += not self._done[number]
            self._done[number] = 1

    def count(self) -> int:
        return self._count


@contextmanager
def counted(total: int, on_count: Callable[[int], None], on_death: Callable[[str], None]) -> Iterator[Any]:
    """Yield an actor whose `add` takes the numbers (0 to `total` - 1) of completed units.

    A thread reports the count about once a second, and the address of every node that dies. If the actor dies with its
    node, the count stops but the work continues.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=0)(_Counter)
    counter = actor.options(scheduling_strategy=here).remote(total)
    alive = _nodes()

    def follow() -> None:
        nonlocal alive
        # Ray's exception types differ between versions, and a progress error must not fail the run.
        with suppress(Exception):
            on_count(ray.get(counter.count.remote(), timeout=_ANSWER_S))
        with suppress(Exception):
            now = _nodes()
            for node in alive.keys() - now.keys():
                on_death(alive[node])
            alive = now

    try:
        with repeated(follow, every_s=_ASKED_EVERY_S, name="clipmill-progress"):
            yield counter
    finally:
        with suppress(Exception):
            ray.kill(counter)


@contextmanager
def counted_on(report: Reporter, total: int) -> Iterator[Any]:
    """Count `total` units of work on `report`. Yields the actor of `counted`, or None if `report` is quiet.

    Raises RunStopped for errors of Ray.
    """
    report.begin(total)
    counting = nullcontext() if report.quiet else counted(total, report.reached, report.node_died)
    with stopped_by_errors(), counting as counter:
        yield counter
    report.reached(total)


def stream_shards(
    stage: Callable[[Any], Stage], shards: Sequence[Any], samples: Sequence[int], report: Reporter
) -> Iterator[Any]:
    """Run a stage on Ray for each shard, and yield the results as they complete.

    `stage` builds the stage from the counter, an actor that receives the numbers of completed samples; its items are
    pairs of a shard and the number of its first sample. `samples` holds the sample count of each shard. Raises
    RunStopped.
    """
    first = accumulate(samples, initial=0)
    with counted_on(report, sum(samples)) as counter:
        built = stage(counter)
        answers = run([built], list(zip(shards, first, strict=False)), given=built.needs)
        for done, answer in enumerate(answers, 1):
            report.detail(f"{done:,} of {len(shards):,} shards")
            yield answer


def _nodes() -> dict[str, str]:
    """Id -> address of the live nodes."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
