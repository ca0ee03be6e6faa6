"""What stages cost, counted where their work is done: CPU, GPU and wall time, items, tokens.

Costs of a process wait until they are taken: by a stage's answer, which carries them to the driver, or by the driver's
record of the run.
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
    """What a stage used."""

    cpu_s: float = 0.0
    """CPU time, child processes included."""
    wall_s: float = 0.0
    """Time that its workers were busy, added up."""
    gpu_s: float = 0.0
    """Of that, the time on GPUs: a worker that has half of one counts half."""
    items: int = 0
    """Sources or batches for stages of a run."""
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: "Cost") -> None:
        """Add the amounts of another one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


Costs = dict[str, Cost]
"""Stage -> what it used."""

_lock = threading.Lock()
_spent: Costs = {}
_children: set[int] = set()


def charge(stage: str, cost: Cost) -> None:
    """Count something for a stage."""
    with _lock:
        _spent.setdefault(stage, Cost()).add(cost)


def charge_all(costs: Mapping[str, Cost]) -> None:
    """Count what another process took."""
    for stage, cost in costs.items():
        charge(stage, cost)


def take() -> Costs:
    """What was counted since the last call."""
    with _lock:
        taken = dict(_spent)
        _spent.clear()
    return taken


@contextmanager
def measured(stage: str, *, items: int = 0, gpus: float = 0.0) -> Iterator[None]:
    """Count the time of a block for a stage; `gpus` are held meanwhile."""
    cpu_before_s, started_s = cpu_s(), time.monotonic()
    try:
        yield
    finally:
        wall_s = time.monotonic() - started_s
        charge(stage, Cost(cpu_s=cpu_s() - cpu_before_s, wall_s=wall_s, gpu_s=gpus * wall_s, items=items))


def watch(pid: int) -> None:
    """Count the CPU time of a child process while it lives; once it is reaped, the system adds it to this process's."""
    _children.add(pid)


def unwatch(pid: int) -> None:
    """The child was reaped."""
    _children.discard(pid)


def cpu_s() -> float:
    """CPU seconds of this process, of its reaped children, and of watched ones."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + reaped.ru_utime + reaped.ru_stime + sum(map(_of_child, tuple(_children)))


def peak_child_bytes() -> int:
    """Memory that the watched children have used at most, together; 0 where the system does not tell."""
    return sum(map(_peak_bytes, tuple(_children)))


def as_values(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """Plain values, as JSON takes them; times in ms precision."""
    return {
        stage: {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(cost).items()}
        for stage, cost in sorted(costs.items())
    }


def _of_child(pid: int) -> float:
    """CPU seconds; 0 where the system does not tell."""
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
