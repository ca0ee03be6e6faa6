"""Costs of stages, counted where their work is done: CPU, GPU and wall time, items, tokens.

A process accumulates its costs until they are taken: by a stage's result, which carries them to the driver, or by the
driver's record of the run.
"""

import os
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class Cost:
    """Resources that a stage used."""

    cpu_s: float = 0.0
    """CPU time, child processes included."""
    wall_s: float = 0.0
    """Busy time, summed over its workers."""
    gpu_s: float = 0.0
    """GPU time: wall time times the share of a GPU that a worker has."""
    items: int = 0
    """Sources or batches for stages of a run."""
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: "Cost") -> None:
        """Add another cost to this one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


Costs = dict[str, Cost]
"""Stage -> its cost."""

_lock = threading.Lock()
_spent: Costs = {}
_until = Cost()
"""CPU and wall time up to which costs are charged: those of concurrent blocks are charged once."""
_children: set[int] = set()


def charge(stage: str, cost: Cost) -> None:
    """Add a cost to a stage."""
    with _lock:
        _spent.setdefault(stage, Cost()).add(cost)


def charge_all(costs: Mapping[str, Cost]) -> None:
    """Add costs that another process took."""
    for stage, cost in costs.items():
        charge(stage, cost)


def take() -> Costs:
    """Costs since the last call."""
    with _lock:
        taken = dict(_spent)
        _spent.clear()
    return taken


@contextmanager
def measured(stage: str, *, items: int = 0, gpus: float = 0.0) -> Iterator[None]:
    """Charge a stage for the time of the block, which holds `gpus`. Time in which several blocks run is charged to the
    first that ends."""
    start = Cost(cpu_s=cpu_s(), wall_s=time.monotonic())
    try:
        yield
    finally:
        with _lock:
            end = Cost(cpu_s=cpu_s(), wall_s=time.monotonic())
            wall_s = end.wall_s - max(start.wall_s, _until.wall_s)
            cpu = end.cpu_s - max(start.cpu_s, _until.cpu_s)
            _until.wall_s, _until.cpu_s = end.wall_s, end.cpu_s
        charge(stage, Cost(cpu_s=cpu, wall_s=wall_s, gpu_s=gpus * wall_s, items=items))


def watch(pid: int) -> None:
    """Count the CPU time of a child process while it lives; once it is reaped, the system adds it to this process's."""
    _children.add(pid)


def unwatch(pid: int) -> None:
    """Stop watching a child that was reaped."""
    _children.discard(pid)


def cpu_s() -> float:
    """CPU seconds of this process, of its reaped children, and of watched ones."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + reaped.ru_utime + reaped.ru_stime + sum(map(_of_child, tuple(_children)))


def peak_child_bytes() -> int:
    """Sum of the watched children's peak memory; 0 where the system does not report it."""
    return sum(map(_peak_bytes, tuple(_children)))


def as_values(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """JSON-serializable values; times rounded to milliseconds."""
    return {
        stage: {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(cost).items()}
        for stage, cost in sorted(costs.items())
    }


def _of_child(pid: int) -> float:
    """CPU seconds; 0 where the system does not report them."""
    try:
        fields_of_stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields_of_stat[11]) + int(fields_of_stat[12])) / _TICKS_PER_S


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
