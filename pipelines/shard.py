"""`clipmill shard`: write a selection as WebDataset shards, one Ray task per shard. Rerunning writes what is missing or
broken.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from clipmill.errors import UserError
from clipmill.formats import SHARDS
from clipmill.pipeline import Stage
from clipmill.resume import deciding
from clipmill.shard_folder import FailedClip, ShardRecord, read_index, remove_index, write_index
from curation.dataset.commits import current_version
from curation.dataset.tables import Dataset
from curation.scan.isolation import Isolated
from curation.shards.catalog import catalog
from curation.shards.clip_row import ClipRow
from curation.shards.extract import ExtractionConfig
from curation.shards.folder import check_plan, index_of, start_shards
from curation.shards.places import has_catalog, write_catalog
from curation.shards.write import ShardConfig, ShardPlan, check_shard, plan_shards, write_shard
from pipelines.cluster import connected
from pipelines.costs import recorded_costs
from pipelines.counting import stream_shards
from pipelines.fence import Fence, owned, refuse_if_running
from pipelines.progress import Reporter
from pipelines.selected import selected_rows

_CHECKED_AT_ONCE = 8
Writer = Callable[..., ShardRecord]
"""Writes a plan; its keyword `run` calls the code that reads videos."""


@dataclass(frozen=True, kw_only=True)
class ShardRun:
    """Result of a run: number of shards written and already present, and the index of all of them."""

    folder: str
    written: int
    kept: int
    wall_s: float
    index: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Whether some selected clips are missing from the shards; the index lists them with their reasons."""
        totals = self.index["totals"]
        return bool(totals["clips"] < totals["selected"])


def shard(
    dataset: str,
    selection: str,
    *,
    images: bool = False,
    config: ShardConfig | None = None,
    take_over: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    quiet: bool = False,
) -> ShardRun:
    """Write the selected clips to `shards/SELECTION/`; with `images` their middle frames to `shards/SELECTION-images/`,
    or several frames per clip to `shards/SELECTION-frames/`.

    Clips that can no longer be extracted, or are no longer in the dataset, are listed in the index with their reason:
    selected = clips + failed + gone. With `take_over`, a live run that writes there is stopped.

    Raises UserError if there is no such selection or it is empty, or if the folder contains other shards, is in use or
    not writable; RunStopped if the disk is full or another run takes over.
    """
    config, started_s = config or ShardConfig(), time.monotonic()
    with Reporter("shard", unit="clips", quiet=quiet) as report:
        planned = _planned(Dataset(dataset).open(), selection, images, config, report)
        todo, complete = planned.todo, planned.complete
        if not complete and not take_over:
            refuse_if_running(planned.folder)
        with ExitStack() as stack:
            if todo:
                report.connecting(address)
                stack.enter_context(connected(address, num_cpus=num_cpus))
            if not complete:
                fence = stack.enter_context(owned(planned.folder, take_over=take_over))
                stack.enter_context(recorded_costs(Dataset(dataset), "shard"))
                _write(planned, fence, config, report)
    return ShardRun(
        folder=planned.folder,
        written=len(todo),
        kept=len(planned.plans) - len(todo),
        wall_s=time.monotonic() - started_s,
        index=planned.index(),
    )


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The shards of a selection, and those that are in their folder already."""

    folder: str
    selection: str
    settings: dict[str, Any]
    plans: list[ShardPlan]
    gone: list[FailedClip]
    dataset_version: int
    records: dict[str, ShardRecord]
    """Name -> record of each complete shard; `_write` adds those that it writes."""

    @property
    def todo(self) -> list[ShardPlan]:
        return [plan for plan in self.plans if plan.name not in self.records]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write, the index included."""
        return not self.todo and has_catalog(self.folder) and read_index(self.folder, SHARDS) == self.index()

    def index(self) -> dict[str, Any]:
        """Content of index.json, once every shard has a record."""
        return index_of(
            self.plans,
            self.records.values(),
            selection=self.selection,
            settings=self.settings,
            gone=self.gone,
            dataset_version=self.dataset_version,
        )


def _planned(dataset: Dataset, selection: str, images: bool, config: ShardConfig, report: Reporter) -> _Planned:
    """Plan the shards, and check which of them are complete. Raises UserError if the folder contains others."""
    report.waiting("reading the selection")
    version = current_version(dataset).version
    rows, gone = selected_rows(dataset, selection)
    plans = plan_shards(rows, kind="images" if images else "clips", config=config)
    settings = deciding(config.model_dump(mode="json"))
    of_images = "-frames" if config.extraction.frames_per_clip > 1 else "-images"
    folder = f"{dataset.url.rstrip('/')}/shards/{selection}{of_images if images else ''}"
    check_plan(folder, plans, selection=selection, settings=settings)
    report.waiting("checking existing shards")
    return _Planned(
        folder=folder,
        selection=selection,
        settings=settings,
        plans=plans,
        gone=gone,
        dataset_version=version,
        records=shards_in_place(plans, folder),
    )


def _write(planned: _Planned, fence: Fence, config: ShardConfig, report: Reporter) -> None:
    """Write the missing shards, then the catalog and the index."""
    folder, selection, plans = planned.folder, planned.selection, planned.plans
    start_shards(folder, plans, selection=selection, settings=planned.settings)
    remove_index(folder)
    writer = partial(write_shard, folder_url=fence.url, selection=selection, config=config)
    for record in write_plans("shard", planned.todo, fence, writer, config.extraction, report):
        planned.records[record.name] = record
    write_catalog(folder, catalog(plans, planned.records))
    write_index(folder, planned.index())


def shards_in_place(plans: Sequence[ShardPlan], folder: str) -> dict[str, ShardRecord]:
    """Name -> record of each complete shard. Shards with failed clips are not among them: those clips are retried."""

    def checked(plan: ShardPlan) -> ShardRecord | None:
        record = check_shard(plan, folder).record
        return record if record and not record.failed else None

    with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool:
        return {record.name: record for record in pool.map(checked, plans) if record}


def write_plans(
    name: str, todo: Sequence[ShardPlan], fence: Fence, writer: Writer, config: ExtractionConfig, report: Reporter
) -> Iterator[ShardRecord]:
    """Write plans with `writer`, one Ray task per plan; `name` is that of the stage."""
    if not todo:
        return

    def stage(counter: Any) -> Stage:
        load = partial(_load_writer, fence, writer, config, counter)
        return Stage(name=name, needs=("plan",), gives=("shard",), load=load)

    yield from stream_shards(stage, todo, [plan.clips.num_rows for plan in todo], report)


def _load_writer(
    fence: Fence, writer: Writer, config: ExtractionConfig, counter: Any, device: str
) -> Callable[[list[tuple[ShardPlan, int]]], list[ShardRecord]]:
    return lambda plans: [write_planned(plan, first, fence, writer, config, counter) for plan, first in plans]


def write_planned(
    plan: ShardPlan, first: int, fence: Fence, writer: Writer, config: ExtractionConfig, counter: Any = None
) -> ShardRecord:
    """Write one plan while this run owns the folder. Videos are read in a child process with limits."""
    numbers = {clip_id: first + i for i, clip_id in enumerate(plan.clips["clip_id"].to_pylist())}
    fence.check()
    try:
        return writer(plan, run=partial(_run_isolated, config, numbers, counter))
    except UserError:
        fence.check()  # another run removes our unfinished files, and the error would be about those
        raise


def _run_isolated(
    config: ExtractionConfig,
    numbers: Mapping[str, int],
    counter: Any,
    function: Callable[..., Any],
    uri: str,
    clips: Sequence[ClipRow],
    *args: Any,
) -> Any:
    """Call a function that extracts clips of the source at `uri`, in a child process with its store's credentials."""
    try:
        return _child(config).run_on(uri, function, uri, clips, *args)
    finally:
        if counter is not None:
            counter.add.remote(*(numbers[clip["clip_id"]] for clip in clips))


@lru_cache(maxsize=1)
def _child(config: ExtractionConfig) -> Isolated:
    return Isolated(config.limits)
