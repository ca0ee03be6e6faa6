"""Gauges and counters of a run, exported by Ray's metrics agents in Prometheus's format, where a cluster has them.

    clipmill_done, clipmill_total     units of work, by command
    clipmill_end_time_seconds         when the run will end, in seconds since 1970
    clipmill_stage_cpu_seconds        CPU time of finished work, by command and stage; likewise gpu_seconds, tokens

A node exports them if it has `ray[default]`; without it, and without Ray, nothing happens.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from clipmill.costs import Cost

_GAUGES = {
    "clipmill_done": "units of work that are done",
    "clipmill_total": "units of work",
    "clipmill_end_time_seconds": "estimated end of the run, seconds since 1970",
}
_COUNTERS = {
    "cpu_s": ("clipmill_stage_cpu_seconds", "CPU seconds of finished work"),
    "gpu_s": ("clipmill_stage_gpu_seconds", "GPU seconds of finished work"),
    "tokens_in": ("clipmill_stage_tokens_in", "tokens that captioners' endpoints read"),
    "tokens_out": ("clipmill_stage_tokens_out", "tokens that captioners' endpoints wrote"),
}


def export_progress(command: str, *, done: int, total: int, end_time_s: float | None) -> None:
    """Set the gauges of a run. An error of a metric must not fail the run."""
    if not _connected():
        return
    values = {"clipmill_done": done, "clipmill_total": total, "clipmill_end_time_seconds": end_time_s}
    with suppress(Exception):
        for name, value in values.items():
            if value is not None:
                _metric("Gauge", name, _GAUGES[name], ("command",)).set(value, tags={"command": command})


def export_costs(command: str, costs: Mapping[str, Cost]) -> None:
    """Raise the counters of stages."""
    if not _connected():
        return
    with suppress(Exception):
        for stage, cost in costs.items():
            for field, (name, meaning) in _COUNTERS.items():
                if amount := getattr(cost, field):
                    tags = {"command": command, "stage": stage}
                    _metric("Counter", name, meaning, ("command", "stage")).inc(amount, tags=tags)


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@lru_cache
def _metric(kind: str, name: str, meaning: str, tags: tuple[str, ...]) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=meaning, tag_keys=tags)
