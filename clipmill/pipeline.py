"""What a stage of a pipeline says of itself, and whether stages fit together. Nothing here needs Ray.

given -> stage -> stage -> ... : each needs what the ones before it give
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.config import unknown_name
from clipmill.errors import UserError

_LARGE_BYTES = 256 << 20


def is_large(memory_bytes: int) -> bool:
    """Whether that is too much for every worker process to hold: a pool of actors then keeps it."""
    return memory_bytes > _LARGE_BYTES


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage takes."""

    num_cpus: float = 1
    """CPUs that it keeps busy. 0: next to nothing; the stage then runs in the workers of the stage before it."""
    max_cpus: int = 1
    """CPUs that an actor of a pool can make use of where it has no GPU."""
    num_gpus: int = 0
    """GPUs, where the cluster has any; without one the stage runs on CPUs."""
    memory_bytes: int = 0
    """Weights that a worker loads and keeps."""
    workers: int | None = None
    """Most workers at a time on the whole cluster; None: as many as there is room for."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a pipeline, declared: what it reads, what it adds, what a worker of it takes."""

    name: str
    needs: tuple[str, ...]
    """Columns, thumbnails and the like that have to be there."""
    gives: tuple[str, ...]
    """What is there once it is done."""
    load: Callable[[str], Callable[[Any], Any]] = field(repr=False)
    """Takes the device ("cpu", "cuda"), loads what the stage keeps and returns its work: a list of items to a list of
    items. An actor of a pool calls it once, a task every time: what takes long has to be kept by the process."""
    resources: Resources = Resources()
    batch_size: int = 1
    """Items per call; four times as many on a GPU, unless it is 1."""
    divide: Callable[[list[Any]], Iterable[Any]] | None = field(default=None, repr=False)
    """Cuts a batch into what `load`'s work takes and changes in place; the items stay. Stages in one worker that share
    it see each piece one after the other, so that thumbnails are decoded once."""


def check_stages(stages: Sequence[Stage], given: Collection[str], available: Sequence[Stage] = ()) -> None:
    """Raise UserError where a stage needs what neither `given` nor a stage before it holds.

    The message says which stage needs what, which stage (of these, or of others that are `available`) gives it, and
    what to do.
    """
    there = set(given)
    for number, stage in enumerate(stages):
        for need in stage.needs:
            if need not in there:
                raise UserError(_missing(need, stage, stages[number:], available, there))
        there.update(stage.gives)


def _missing(
    need: str, stage: Stage, from_here: Sequence[Stage], available: Sequence[Stage], there: Collection[str]
) -> str:
    sentence = f"stage {stage.name} needs {need!r}, which no stage before it gives"
    if later := [other.name for other in from_here if need in other.gives and other is not stage]:
        return f"{sentence}: {later[0]} gives it, so put {later[0]} before {stage.name}"
    if others := [other.name for other in available if need in other.gives]:
        return f"{sentence}: add {' or '.join(others)} before {stage.name}, or leave {stage.name} out"
    names = {*there, *(name for other in (*from_here, *available) for name in other.gives if other is not stage)}
    return f"{sentence}, nor any other: {unknown_name('column', need, sorted(names))}"


def loaded(stages: Sequence[Stage], device: str) -> Callable[[list[Any]], list[Any]]:
    """The work of stages that run in one worker, one after the other."""
    works = [stage.load(device) for stage in stages]
    divide = stages[0].divide

    def work(items: list[Any]) -> list[Any]:
        if divide is None:
            for each in works:
                items = each(items)
            return items
        for piece in divide(items):
            for each in works:
                each(piece)
        return items

    return work
