"""Tables of costs: of a dataset's runs, and of a plan."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from clipmill.costs import Cost
from pipelines.costs import DRIVER, Prices, RunCosts, StageCost
from pipelines.grid import duration, size, table


def print_costs(
    console: Console, costs: Sequence[StageCost], runs: Sequence[RunCosts], prices: Prices, *, stored_bytes: int
) -> None:
    """Print what each stage used in all runs, and its price if rates are given."""
    if not costs:
        return
    gpus = any(cost.gpu_s for cost in costs)
    tokens = any(cost.tokens_in or cost.tokens_out for cost in costs)
    rows = [_row(cost.stage, cost, prices, gpus=gpus, tokens=tokens) for cost in costs]
    total = StageCost(
        stage="all",
        cpu_s=sum(cost.cpu_s for cost in costs),
        wall_s=sum(cost.wall_s for cost in costs if cost.stage != DRIVER),
        gpu_s=sum(cost.gpu_s for cost in costs),
        tokens_in=sum(cost.tokens_in for cost in costs),
        tokens_out=sum(cost.tokens_out for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
    )
    rows.append(_row("all", total, prices, gpus=gpus, tokens=tokens))
    columns = ["stage", "CPU time", "busy", *(["GPU time"] if gpus else []), *(["tokens in", "out"] if tokens else [])]
    columns += ["bytes", *(["price"] if prices.stated else [])]
    wall_s = sum(run.wall_s for run in runs)
    console.print(
        table(f"costs of {len(runs):,} run{'s' * (len(runs) != 1)}, {duration(wall_s)} in all", columns, rows)
    )
    held_cpu_s = sum(run.wall_s * run.cpus for run in runs)
    held = f"CPUs held for {duration(held_cpu_s)}, busy {100 * total.cpu_s / held_cpu_s:.0f} %" if held_cpu_s else ""
    if prices.stated and held_cpu_s:
        held_gpu_s = sum(run.wall_s * run.gpus for run in runs)
        renting = Cost(cpu_s=held_cpu_s, gpu_s=held_gpu_s, tokens_in=total.tokens_in, tokens_out=total.tokens_out)
        held += f": {prices.of(renting):,.2f} at these rates if they are rented for the whole of each run"
    stored = f"stored: {size(stored_bytes)}"
    if prices.gb_month:
        stored += f", {prices.gb_month * stored_bytes / 1e9:,.2f} a month"
    console.print("\n".join(filter(None, (held, stored))), markup=False, highlight=False)


def _row(stage: str, cost: StageCost, prices: Prices, *, gpus: bool, tokens: bool) -> list[Any]:
    return [
        stage,
        duration(cost.cpu_s),
        duration(cost.wall_s) if cost.wall_s and stage != DRIVER else "",
        *([duration(cost.gpu_s)] if gpus else []),
        *([cost.tokens_in, cost.tokens_out] if tokens else []),
        size(cost.bytes) if cost.bytes else "",
        *([f"{cost.price(prices):,.4f}"] if prices.stated else []),
    ]
