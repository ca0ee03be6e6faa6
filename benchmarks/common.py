"""Shared by the benchmarks: location of the real footage, CPU time measurement, output of figures."""

import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.render import table


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


def interleaved(runs: int, **actions: Callable[[], Any]) -> dict[str, float]:
    """Median CPU seconds of each action, taken in turn so that a machine that drifts drifts for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            before = cpu_s()
            action()
            seconds[name].append(cpu_s() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], figures: dict[str, Any]) -> None:
    """Print the table with date and machine, and as the very last line the figures as JSON."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    Console(width=130).print(table(f"{title} ({when}; {machine})", columns, rows))
    print(json.dumps(figures))
