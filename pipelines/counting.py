"""How much of its work a run on Ray has done so far, counted where it is done, and which nodes it lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

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


def _nodes() -> dict[str, str]:
    """Id -> address of the nodes that are alive."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
