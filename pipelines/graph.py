"""Run stages on Ray Data: validate them, place them by their declared resources, and stream items through.

The only module that maps stages to Ray operators. Ray fuses adjacent operators with equal resources and uses the larger
batch size: a task would then scan as many sources as a scorer's batch. `place` fuses the stages that should share a
worker, and Ray does not fuse the rest:
- A scan is a `flat_map`: Ray never fuses a function that may change the number of rows with one that takes batches.
- Actor pools are never fused with a following operator, and with preceding tasks only at equal resources; a pool has a
  GPU or memory that tasks do not request.
- Other adjacent tasks differ in CPUs, memory or number of workers.
"""

import pickle
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

from clipmill.costs import charge_all, take
from clipmill.errors import RunStopped, UserError
from clipmill.pipeline import Need, Stage, check_stages, is_large, loaded

TASKS_AT_MOST = 4096
"""Above this many rows a task processes several: each task costs the driver time and memory."""
_GPU_BATCHES = 4
"""Batch size multiplier on GPUs."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """Resources of a cluster node."""

    cpus: float
    gpus: float = 0
    memory_bytes: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Stages fused into one worker, with the number and size of workers."""

    stages: tuple[Stage, ...]
    num_cpus: float
    num_gpus: float = 0
    memory_bytes: int = 0
    pool: bool = False
    """Whether to use actors, which keep loaded models; otherwise tasks."""
    calls: int = 1
    """Above 1, the stages wait for others: this many calls run concurrently in one actor, which holds no CPU."""
    workers: int | None = None
    batch_size: int = 1

    @property
    def name(self) -> str:
        """Of its stages."""
        return ", ".join(stage.name for stage in self.stages)


def run(stages: Sequence[Stage], items: Sequence[Any], given: Collection[Need]) -> Iterator[Any]:
    """Stream items, which have the columns `given`, through the stages; yields the last stage's output.

    Raises UserError before anything runs if a stage lacks an input or the cluster lacks resources; RunStopped with the
    message of a stage that cannot continue.
    """
    import ray

    operators = check(stages, given)
    rows = [{"item": pickle.dumps(item), "error": "", "costs": b""} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), TASKS_AT_MOST))
    with ExitStack() as actors:
        for operator in operators:
            data = _through(data, operator, actors)
        for row in data.iter_rows():
            if row["costs"]:
                charge_all(pickle.loads(row["costs"]))
            if row["error"]:
                raise RunStopped(row["error"])
            yield pickle.loads(row["item"])


def check(stages: Sequence[Stage], given: Collection[Need]) -> list[Operator]:
    """Place the stages on the connected cluster.

    Raises UserError if a stage lacks an input or the cluster lacks resources.
    """
    check_stages(stages, given)
    return place(stages, cluster_nodes())


def cluster_nodes() -> list[Node]:
    """Alive nodes of the connected cluster."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=r.get("CPU", 0), gpus=r.get("GPU", 0), memory_bytes=r.get("memory", float("inf"))) for r in alive]


def place(stages: Sequence[Stage], nodes: Sequence[Node]) -> list[Operator]:
    """Decide which stages share a worker, and the number and size of workers.

    A stage with a GPU, or with weights too large for every worker process, gets an actor pool. Other stages are tasks:
    they start in half the time, and when a node dies they rerun on another. Actors hold their CPUs, so pools are only
    used if they leave enough CPUs for the tasks; otherwise every stage is a task. Raises UserError if no node has the
    resources of a stage.
    """
    gpus = sum(node.gpus for node in nodes)
    operators = [_operator(group, gpus) for group in _sharing_a_worker(stages)]
    pools = sum(operator.pool for operator in operators)
    task_cpus = max((operator.num_cpus for operator in operators if not operator.pool), default=0)
    # One CPU is enough for all tasks to make progress. With two, CPU models run faster as tasks.
    spare = sum(node.cpus for node in nodes) - task_cpus * (1 if gpus else 2)
    if spare < pools:
        operators = [replace(operator, pool=False, num_gpus=0) for operator in operators]
    else:
        operators = _with_sized_pools(operators, nodes, int(spare))
    joined = [_joined(list(alike)) for _, alike in groupby(operators, _alike)]
    _check_fit(joined, nodes)
    assert all(_kept_apart(first, second) for first, second in pairwise(joined)), joined
    return joined


def _sharing_a_worker(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Group each stage with the following ones that need almost no CPU."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if groups and not stage.resources.num_cpus and stage.divide is groups[-1][0].divide:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _operator(stages: Sequence[Stage], gpus: float) -> Operator:
    takes = [stage.resources for stage in stages]
    num_gpus = max(resources.num_gpus for resources in takes) if gpus else 0
    memory_bytes = sum(resources.memory_bytes for resources in takes)
    pool = bool(num_gpus) or is_large(memory_bytes)
    calls = 1 if pool else takes[0].calls
    return Operator(
        stages=tuple(stages),
        num_cpus=0 if calls > 1 else max(resources.num_cpus for resources in takes) or 1,
        num_gpus=num_gpus,
        memory_bytes=memory_bytes,
        pool=pool,
        calls=calls,
        workers=takes[0].workers,
        batch_size=stages[0].batch_size,
    )


def _with_sized_pools(operators: Sequence[Operator], nodes: Sequence[Node], spare: int) -> list[Operator]:
    """Pools that share `spare` CPUs and the GPUs evenly; each actor fits on one node."""
    sized: list[Operator] = []
    unsized = sum(operator.pool for operator in operators)
    on_gpus = sum(operator.num_gpus > 0 for operator in operators)
    for operator in operators:
        if not operator.pool:
            sized.append(operator)
            continue
        pool = _sized(operator, nodes, spare // unsized, on_gpus)
        unsized, spare = unsized - 1, spare - int(pool.num_cpus) * (pool.workers or 0)
        sized.append(pool)
    return sized


def _sized(operator: Operator, nodes: Sequence[Node], cpus: int, on_gpus: int) -> Operator:
    most = 1 if operator.num_gpus else max(stage.resources.max_cpus for stage in operator.stages)
    num_cpus = max(1, min(most, cpus, int(max(node.cpus for node in nodes))))
    fitting = sum(
        min(
            int(node.cpus) // num_cpus,
            int(node.gpus // operator.num_gpus) if operator.num_gpus else cpus,
            int(min(node.memory_bytes / operator.memory_bytes, cpus)) if operator.memory_bytes else cpus,
        )
        for node in nodes
    )
    return replace(
        operator,
        num_cpus=num_cpus,
        num_gpus=operator.num_gpus / on_gpus if operator.num_gpus else 0,
        workers=max(1, min(fitting, cpus // num_cpus, operator.workers or fitting)),
        batch_size=operator.batch_size * (_GPU_BATCHES if operator.num_gpus and operator.batch_size > 1 else 1),
    )


def _alike(operator: Operator) -> Hashable:
    """Equal for tasks that can share a worker. Pools stay separate, since each actor would load the weights of both."""
    if operator.pool:
        return id(operator)
    return operator.num_cpus, operator.calls, operator.workers, operator.batch_size, operator.stages[0].divide


def _joined(operators: Sequence[Operator]) -> Operator:
    return replace(
        operators[0],
        stages=tuple(stage for operator in operators for stage in operator.stages),
        memory_bytes=sum(operator.memory_bytes for operator in operators),
    )


def _kept_apart(first: Operator, second: Operator) -> bool:
    """Whether Ray does not fuse the two operators: see the module docstring."""
    return first.pool or first.batch_size == 1 or _taken(first) != _taken(second)


def _taken(operator: Operator) -> tuple[Any, ...]:
    return operator.num_cpus, operator.num_gpus, operator.memory_bytes, operator.workers


def _check_fit(operators: Sequence[Operator], nodes: Sequence[Node]) -> None:
    most_cpus = max((node.cpus for node in nodes), default=0)
    for operator in operators:
        if operator.num_cpus > most_cpus:
            raise UserError(
                f"stage {operator.name} needs {operator.num_cpus:g} CPUs, but the largest node of the Ray cluster has "
                f"{most_cpus:g}: start Ray with more"
            )
        _check_memory([operator], max(node.memory_bytes for node in nodes), "its largest node")
    _check_memory([each for each in operators if each.pool], sum(node.memory_bytes for node in nodes), "all nodes")


def _check_memory(operators: Sequence[Operator], offered: float, where: str) -> None:
    needed, names = sum(operator.memory_bytes for operator in operators), " and ".join(o.name for o in operators)
    if needed > offered:
        raise UserError(
            f"stage {names} needs {needed / 1e9:.1f} GB for weights, but Ray has {offered / 1e9:.1f} GB of "
            f"memory on {where}: choose a smaller model, skip the stage, or start Ray with more memory"
        )


def _through(data: Any, operator: Operator, actors: ExitStack) -> Any:
    """A Ray Dataset with one more operator, whose actor, if it waits for others, ends with the stack."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    takes = {"num_cpus": operator.num_cpus, "num_gpus": operator.num_gpus, "memory": operator.memory_bytes}
    arguments: dict[str, Any] = {name: value for name, value in takes.items() if value or name == "num_cpus"}
    if operator.pool:
        arguments["compute"] = ActorPoolStrategy(min_size=1, max_size=operator.workers)
        arguments["fn_constructor_args"] = (operator.stages, operator.num_gpus)
        return data.map_batches(_Actor, batch_size=operator.batch_size, **arguments)
    if operator.calls > 1:
        arguments["compute"] = TaskPoolStrategy(size=operator.calls)
        ask = partial(_ask, actor=actors.enter_context(_waiting_actor(operator)))
        return data.map_batches(ask, batch_size=operator.batch_size, **arguments)
    arguments["compute"] = TaskPoolStrategy(size=operator.workers)
    if operator.batch_size == 1:
        return data.flat_map(partial(_run_row, stages=operator.stages), **arguments)
    return data.map_batches(partial(_run_batch, stages=operator.stages), batch_size=operator.batch_size, **arguments)


class _Actor:
    def __init__(self, stages: Sequence[Stage], num_gpus: float) -> None:
        self._work = loaded(stages, _device(), num_gpus)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _answer(self._work, batch)


@contextmanager
def _waiting_actor(operator: Operator) -> Iterator[Any]:
    """An actor with a thread per call, for a `with` block: Ray Data keeps a handle, so that it would live on.

    About Ray Data's own pools, Ray prints an error (ray-project/ray#53727).
    """
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": operator.calls}
    actor: Any = ray.remote(_Actor).options(**options).remote(operator.stages, 0)
    try:
        yield actor
    finally:
        ray.kill(actor)


def _ask(batch: dict[str, Any], actor: Any) -> Any:
    import ray

    return ray.get(actor.__call__.remote(batch))


def _run_batch(batch: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    def work(items: list[Any]) -> list[Any]:
        return loaded(stages, "cpu")(items)

    take()  # of a task that this process did not finish
    return _answer(work, batch)


def _run_row(row: dict[str, Any], stages: Sequence[Stage]) -> list[dict[str, Any]]:
    answer = _run_batch({name: [value] for name, value in row.items()}, stages)
    return [dict(zip(answer, values, strict=True)) for values in zip(*answer.values(), strict=True)]


def _answer(work: Callable[[list[Any]], list[Any]], batch: dict[str, Any]) -> dict[str, Any]:
    """Run an operator on a batch. A message that stops the run is passed on in the column `error`; what the batch cost
    so far, in the first row of the column `costs`."""
    error, items = next(filter(None, batch["error"]), None), [b""]
    if error is None:
        try:
            items = [pickle.dumps(item) for item in work([pickle.loads(item) for item in batch["item"]])]
        except UserError as raised:
            error = str(raised)
    for costs in filter(None, batch["costs"]):
        charge_all(pickle.loads(costs))
    first = [pickle.dumps(take()), *[b""] * (len(items) - 1)]
    return {"item": items, "error": [error or ""] * len(items), "costs": first[: len(items)]}


def _device() -> str:
    """The GPU Ray assigned to this actor, or the CPU."""
    import ray

    return "cuda" if ray.get_gpu_ids() else "cpu"
