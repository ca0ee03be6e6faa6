"""Stages of a pipeline: what each declares, and whether they fit together. Needs no Ray.

given -> stage -> stage -> ...: each stage needs what earlier ones give
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.config import unknown_name
from clipmill.costs import measured
from clipmill.errors import UserError

_LARGE_BYTES = 256 << 20


def is_large(memory_bytes: int) -> bool:
    """Whether the weights are too large for every worker process to hold: such a stage gets a pool of actors."""
    return memory_bytes > _LARGE_BYTES


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of one worker of a stage."""

    num_cpus: float = 1
    """CPUs that it keeps busy. 0: almost none; the stage then runs in the workers of the stage before it."""
    max_cpus: int = 1
    """CPUs that an actor of a pool can use if it has no GPU."""
    num_gpus: int = 0
    """GPUs, if the cluster has any; otherwise the stage runs on CPUs."""
    memory_bytes: int = 0
    """Size of the weights that a worker loads and keeps."""
    workers: int | None = None
    """Maximum number of workers on the whole cluster; None: as many as fit."""
    calls: int = 1
    """Concurrent calls of one worker, each in a thread, for a stage that waits for others, such as an endpoint: it
    waits for the slowest request of one batch while those of the next are under way. Above 1 it needs no CPU."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A need for frames of the clip itself, decoded from its span alone.

    It costs a decode of the clip; the stored pictures cost none.
    """

    count: int | None
    """Frames spread evenly over the clip; None: all of them."""
    long_side_px: int
    """Length of the longer side; smaller frames keep their size."""

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.long_side_px < 2:
            raise ValueError(f"expected at least one frame of at least 2 px, got {self}")

    def __str__(self) -> str:
        many = "every frame" if self.count is None else f"{self.count} frame{'s' * (self.count > 1)}"
        return f"{many} at {self.long_side_px} px"


Need = str | Frames


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a pipeline: what it reads, what it adds, and the resources of a worker."""

    name: str
    needs: tuple[Need, ...]
    """Inputs that must exist: columns, pictures, embeddings, frames. They decide what a run reads and decodes."""
    gives: tuple[Need, ...]
    """Outputs that exist once the stage is done."""
    load: Callable[[str], Callable[[Any], Any]] = field(repr=False)
    """Takes the device ("cpu", "cuda"), loads what the stage keeps and returns its work: a function from a list of
    items to a list of items. An actor calls it once, a task calls it every time, so anything slow to load must be
    cached by the process."""
    resources: Resources = Resources()
    batch_size: int = 1
    """Items per call; multiplied by four on a GPU, unless it is 1."""
    divide: Callable[[list[Any]], Iterable[Any]] | None = field(default=None, repr=False)
    """Splits a batch into the pieces that `load`'s work takes and changes in place. Stages in one worker that share
    `divide` process each piece one after the other, so that thumbnails are decoded once."""


def check_stages(stages: Sequence[Stage], given: Collection[Need]) -> None:
    """Raise UserError if a stage needs something that neither `given` nor an earlier stage provides.

    The message names the stage, the missing input, the later stage that gives it if there is one, and the fix.
    """
    there = set(given)
    for number, stage in enumerate(stages):
        for need in stage.needs:
            if need not in there:
                raise UserError(_missing(need, stage, stages[number:], there))
        there.update(stage.gives)


def _missing(need: Need, stage: Stage, from_here: Sequence[Stage], there: Collection[Need]) -> str:
    sentence = f"stage {stage.name} needs {str(need)!r}, which no stage before it gives"
    if later := [other.name for other in from_here if need in other.gives and other is not stage]:
        return f"{sentence}: {later[0]} gives it, so put {later[0]} before {stage.name}"
    names = {*map(str, there), *(str(name) for other in from_here for name in other.gives if other is not stage)}
    return f"{sentence}, nor any other: {unknown_name('column', str(need), sorted(names))}"


def loaded(stages: Sequence[Stage], device: str, gpus: float = 0.0) -> Callable[[list[Any]], list[Any]]:
    """The work of stages that share a worker, and its `gpus`, applied in order. What each costs is counted."""
    works = [(stage.name, stage.load(device)) for stage in stages]
    divide = stages[0].divide

    def work(items: list[Any]) -> list[Any]:
        if divide is None:
            for name, each in works:
                with measured(name, items=len(items), gpus=gpus):
                    items = each(items)
            return items
        for piece in divide(items):
            for name, each in works:
                with measured(name, items=1, gpus=gpus):
                    each(piece)
        return items

    return work
