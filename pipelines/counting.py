"""How much of its work a run on Ray has done so far, counted where it is done, and which nodes it lost."""

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import accumulate
from typing import Any

from clipmill.errors import RunStopped
from pipelines.cluster import stopped_by_errors
from pipelines.progress import Reporter

TASKS_AT_MOST = 4096
"""Beyond this many rows a task takes several: each task costs the driver time and memory."""
_ASKED_EVERY_S = 1.0
_ANSWER_S = 10.0


class _Counter:
    """An actor. A task that Ray runs again counts once."""

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
    """An actor whose `add` takes the numbers (0 to `total` - 1) of what is done.

    A thread passes the count on about once a second, and the address of every node that dies. Without the actor,
    should its node die, the count stands still and the work goes on.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=0)(_Counter)
    counter = actor.options(scheduling_strategy=here).remote(total)
    over = threading.Event()

    def follow() -> None:
        alive = _nodes()
        while not over.wait(_ASKED_EVERY_S):
            with suppress(Exception):  # Ray's kinds differ between its versions, and progress is no reason to fail
                on_count(ray.get(counter.count.remote(), timeout=_ANSWER_S))
            with suppress(Exception):
                now = _nodes()
                for node in alive.keys() - now.keys():
                    on_death(alive[node])
                alive = now

    follower = threading.Thread(target=follow, daemon=True, name="clipmill-progress")
    follower.start()
    try:
        yield counter
    finally:
        over.set()
        follower.join()
        with suppress(Exception):
            ray.kill(counter)


@contextmanager
def counted_on(report: Reporter, total: int) -> Iterator[Any]:
    """Count `total` units of work on `report`. Yields the actor of `counted`; None where `report` is quiet.

    Raises RunStopped for errors of Ray.
    """
    report.begin(total)
    counting = nullcontext() if report.quiet else counted(total, report.reached, report.node_died)
    with stopped_by_errors(), counting as counter:
        yield counter
    report.reached(total)


def stream_shards(
    key: str,
    shards: Sequence[Any],
    samples: Sequence[int],
    task: Callable[..., dict[str, Any]],
    report: Reporter,
    **resources: Any,
) -> Iterator[dict[str, Any]]:
    """Run `task` on Ray for each shard, and yield its answers as they come.

    `task` gets a row, {`key`: the pickled shard, "first": the number of its first sample}, and `counter`, which counts
    the `samples` of each shard. Raises RunStopped for an answer with an "error".
    """
    import ray

    first = accumulate(samples, initial=0)
    rows = [{key: pickle.dumps(shard), "first": number} for shard, number in zip(shards, first, strict=False)]
    with counted_on(report, sum(samples)) as counter:
        answers = ray.data.from_items(rows, override_num_blocks=min(len(rows), TASKS_AT_MOST)).map(
            partial(task, counter=counter), **resources
        )
        for done, answer in enumerate(answers.iter_rows(), 1):
            if answer["error"]:
                raise RunStopped(answer["error"])
            report.detail(f"{done:,} of {len(rows):,} shards")
            yield answer


def _nodes() -> dict[str, str]:
    """Id -> address of the nodes that are alive."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
