"""A selection becomes WebDataset shards, one Ray task per shard; a rerun writes what is missing or broken."""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from curation.errors import RunStopped, UserError
from curation.isolation import Isolated
from curation.select import load_selection, selected_clips
from curation.shards import (
    ShardConfig,
    ShardPlan,
    ShardResult,
    check_shard,
    plan_shards,
    remove_index,
    start_shards,
    write_index,
    write_shard,
)
from curation.tables import Dataset
from pipelines.cluster import connected
from pipelines.progress import Reporter

_NOT_OF_THE_CLIP = ["scan_cpu_s", "score_cpu_s", "transitions", "note", "embedding"]
"""Columns of the joined view that a shard has no use for; timings would make equal shards differ."""
_CHECKED_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class ShardRun:
    """What one run did: how many shards it wrote, how many were in place, and the index over all of them."""

    folder: str
    written: int
    kept: int
    wall_s: float
    index: dict[str, Any]


def shard(
    dataset: str,
    selection: str,
    *,
    images: bool = False,
    config: ShardConfig | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> ShardRun:
    """Write the selected clips (or, with `images`, their middle frames) to `shards/SELECTION[-images]/`.

    Raises UserError: no such selection, an empty one, a folder that holds shards of something else or is not
    writable; RunStopped: a full disk. Clips that cannot be taken any more are listed in the index with their reason.
    """
    config, started_s = config or ShardConfig(), time.monotonic()
    data = Dataset(dataset).open()
    if load_selection(data, selection).empty:
        raise UserError(f"the selection {selection!r} holds no clips, so there is nothing to shard")
    batches = selected_clips(data, selection)
    rows = pa.Table.from_batches(batch.drop_columns(_NOT_OF_THE_CLIP) for batch in batches)
    plans = plan_shards(rows, kind="images" if images else "clips", config=config)
    folder = f"{dataset.rstrip('/')}/shards/{selection}{'-images' if images else ''}"
    start_shards(folder, plans, selection=selection, config=config)
    with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool:
        checked = zip(plans, pool.map(lambda plan: _usable(plan, folder), plans), strict=True)
        kept = {plan.name: result for plan, result in checked if result}
    todo = [plan for plan in plans if plan.name not in kept]
    results = list(kept.values())
    if todo:
        remove_index(folder)
        with connected(address), Reporter("shard", len(todo), unit="shards", quiet=quiet) as report:
            for result in _stream(todo, folder, selection, config):
                results.append(result)
                report.advance(1, f"{sum(r.samples for r in results):,} samples")
    index = write_index(folder, plans, results, selection=selection, config=config)
    return ShardRun(folder=folder, written=len(todo), kept=len(kept), wall_s=time.monotonic() - started_s, index=index)


def _usable(plan: ShardPlan, folder: str) -> ShardResult | None:
    """The shard as recorded, if it is in place and whole; one with failed clips is tried again."""
    result = check_shard(plan, folder).result
    return result if result and not result.failed else None


def _stream(todo: Sequence[ShardPlan], folder: str, selection: str, config: ShardConfig) -> Iterator[ShardResult]:
    import ray

    rows = [{"plan": pickle.dumps(plan)} for plan in todo]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        partial(write_planned, folder=folder, selection=selection, config=config), num_cpus=1
    )
    for row in written.iter_rows():
        if row["error"]:
            raise RunStopped(row["error"])
        yield pickle.loads(row["result"])


def write_planned(row: dict[str, Any], folder: str, selection: str, config: ShardConfig) -> dict[str, Any]:
    """Write one planned shard; what touches the videos runs in a child process with limits."""
    plan: ShardPlan = pickle.loads(row["plan"])
    try:
        result = write_shard(plan, folder, selection=selection, config=config, run=partial(_run_isolated, config))
    except UserError as error:
        return {"result": b"", "error": str(error)}
    return {"result": pickle.dumps(result), "error": None}


def _run_isolated(config: ShardConfig, function: Callable[..., Any], uri: str, *args: Any) -> Any:
    """Call a function that reads the source at `uri`, in a child with the credentials of its store."""
    return _child(config).run_on(uri, function, uri, *args)


@lru_cache(maxsize=1)
def _child(config: ShardConfig) -> Isolated:
    return Isolated(config.limits)
