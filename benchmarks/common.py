"""Shared by the benchmarks: location of the real footage, CPU time, memory, child processes, output of figures."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.grid import table


def real_videos() -> Path:
    """The folder of real footage (CLIPMILL_TEST_VIDEOS, or ../shared/videos beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "videos"
    folder = Path(os.environ.get("CLIPMILL_TEST_VIDEOS", default))
    if not folder.is_dir():
        sys.exit(f"no real footage at {folder}; set CLIPMILL_TEST_VIDEOS to a folder that holds it")
    return folder


def cpu_s() -> float:
    """User and system CPU seconds of this process and of its finished children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def in_child(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS` for its own peak memory; returns the JSON that it prints as its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory_bytes(field: str = "VmHWM", pid: int | str = "self") -> int:
    """Resident memory of a process at its peak (VmHWM) or now (VmRSS); 0 if it has just ended.

    /proc counts from exec on, getrusage may count the parent's too. Elsewhere than on Linux it is always this process's
    peak.
    """
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 if field in lines else 0


def interleaved(runs: int, **actions: Callable[[], Any]) -> dict[str, float]:
    """Median CPU seconds of each action, run in turn so that drift of the machine affects all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            before = cpu_s()
            action()
            seconds[name].append(cpu_s() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], figures: dict[str, Any]) -> None:
    """Print a table with date and machine, then, as the last line, the figures as JSON."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    Console(width=130).print(table(f"{title} ({when}; {machine})", columns, rows))
    print(json.dumps(figures))
