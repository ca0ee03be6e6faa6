"""The table of a plan."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from pipelines.grid import duration, size, table
from pipelines.plan import Estimate, Plan


def print_plan(console: Console, plan: Plan) -> None:
    """Print what a run will take: the estimate, and the bounds of its interval."""
    rows: list[tuple[str, str, str, str]] = []

    def add(name: str, estimate: Estimate, shown: Callable[[float], str], note: str = "") -> None:
        bounds = "exact" if estimate.low == estimate.high else f"{shown(estimate.low)} to {shown(estimate.high)}"
        rows.append((name, shown(estimate.value), bounds, note))

    add("video", plan.video_s, duration)
    add("clips", plan.clips, _count)
    add("  footage", plan.clip_s, duration)
    add("CPU time", plan.cpu_s, duration, "curate, and shard of every clip")
    for stage, estimate in plan.stages.items():
        add(f"  {stage}", estimate, duration)
    if plan.device == "cuda":
        add("GPU time", plan.gpu_s, duration, f"{plan.gpus:.1f} GPUs keep up with the cores")
    if plan.tokens_in.value or plan.tokens_out.value:
        add("tokens in", plan.tokens_in, _count)
        add("tokens out", plan.tokens_out, _count)
    asking = plan.wall_s == plan.requests_s and plan.requests_s.value > 0
    waits = "waiting for captioners' endpoints: raise max_in_flight" if asking else "all busy"
    add("wall time", plan.wall_s, duration, f"{plan.cores} cores, {waits}")
    limit = f"up to {size(plan.scan_limit_bytes)} more for a scan (scan.limits.memory_bytes)"
    rows.append(("memory per core", size(plan.memory_bytes), "", limit))
    if plan.search_bytes:
        where = "of the driver, near-duplicates; on a cluster, half of it is on the nodes"
        rows.append(("  more", size(plan.search_bytes), "", where))
    add("dataset", plan.dataset_bytes, size)
    add("shards", plan.shard_bytes, size, "if every clip is kept")
    if plan.prices.stated:
        add("price", plan.price, _money, "of CPUs, GPUs and tokens")
        if plan.prices.gb_month:
            add("  a month", plan.price_per_month, _money, "of dataset and shards")
    console.print(table(_title(plan), ("", "estimate", "95 % interval", ""), rows))


def _title(plan: Plan) -> str:
    bytes_of = f", {size(plan.source_bytes)}" if plan.source_bytes is not None else ""
    rejected = sum(plan.rejected.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in plan.rejected.items())
    return (
        f"plan for {plan.sources:,} inputs{bytes_of}, from {plan.sampled:,} of them in {duration(plan.sample_s)} on "
        f"{plan.device}" + (f"; {rejected} rejected ({kinds})" if rejected else "")
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < float("inf") else "any number"


def _money(value: float) -> str:
    return f"{value:,.2f}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values; an infinite bound is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return None if isinstance(value, float) and value == float("inf") else value

    values = asdict(plan) | {"prices": plan.prices.model_dump()}
    return dict(plain(values))
