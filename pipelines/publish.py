"""`clipmill publish`: a selection as a folder for the Hub or for other trainers, with a card. Nothing is uploaded.

    OUT/data/...                      shards, or videos and captions
    OUT/README.md, croissant.json, contact-sheet.jpg, sources.csv, the trainer's configuration
    OUT/.clipmill/                    what the folder was started with, and records of what is there; not to be uploaded

Rerunning writes what is missing.
"""

import hashlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from clipmill.formats import PUBLICATION
from clipmill.resume import check_same, deciding
from clipmill.shard_folder import ShardRecord, add_published_folder, read_plan, write_index, write_plan
from curation.dataset.tables import Dataset
from curation.publish.describe import describe_publication
from curation.publish.files import check_files, write_files
from curation.publish.layouts import DATA, Target
from curation.publish.plan import PublishConfig, PublishPlan, plan_publication
from curation.shards.existing import with_existing
from curation.shards.folder import index_of, start_shards
from curation.shards.write import write_shard
from pipelines.cluster import connected
from pipelines.fence import HEARTBEAT_FILE, RUN_FILE, owned, refuse_if_running
from pipelines.progress import Reporter, note
from pipelines.selected import selected_rows
from pipelines.shard import Writer, shards_in_place, write_plans
from pipelines.status import models_of

_STATE = ".clipmill"


@dataclass(frozen=True, kw_only=True)
class PublishRun:
    """Result of a run."""

    out: str
    to: Target
    clips: int
    """Clips in the folder."""
    bytes: int
    written: int
    """Clips written by this run."""
    left_out: Mapping[str, int]
    """Kind of error -> selected clips that are not in the folder."""
    without_caption: int
    wall_s: float


def publish(
    dataset: str,
    selection: str,
    out: str,
    *,
    to: Target = "hf",
    config: PublishConfig | None = None,
    take_over: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    quiet: bool = False,
) -> PublishRun:
    """Write a selection into the folder `out` in the layout of `to`, with a card, Croissant metadata and a picture.

    Clips that cannot be extracted, or that are shorter than every bucket, are counted in the card and listed in
    index.json (`out/data` for shards, else `out/.clipmill`). Raises UserError if there is no such selection, if it has
    no captions of a chosen source, or if `out` holds something else, is in use or not writable; RunStopped if the disk
    is full or another run takes over.
    """
    config, started_s = config or PublishConfig(), time.monotonic()
    folder = storage.address(*storage.filesystem(out.rstrip("/")))
    with Reporter("publish", unit="clips", quiet=quiet) as report:
        report.waiting("reading the selection")
        data = Dataset(dataset).open()
        plan = plan_publication(*selected_rows(data, selection), to=to, config=config)
        job = _Job(plan=plan, folder=folder, selection=selection, config=config)
        job.check_folder()
        report.waiting("checking existing files")
        records = job.in_place()
        todo = [each for each in plan.plans if each.name not in records]
        todo = with_existing(todo, f"{data.url}/shards/{selection}", config.shards.extraction)
        if not take_over:
            refuse_if_running(job.state)
        with ExitStack() as stack:
            if todo:
                report.connecting(address)
                stack.enter_context(connected(address, num_cpus=num_cpus))
            fence = stack.enter_context(owned(job.state, take_over=take_over))
            _note_in_dataset(data, folder)
            job.start()
            for record in write_plans("publish", todo, fence, job.writer(), config.shards.extraction, report):
                records[record.name] = record
            report.waiting("writing the card")
            facts = describe_publication(
                data, plan, records, folder, selection=selection, config=config, models=models_of(data)
            )
            fence.check()
            job.finish(records)
        job.forget_owner()
    return PublishRun(
        out=out,
        to=to,
        clips=facts.clips,
        bytes=facts.bytes,
        written=sum(records[each.name].samples for each in todo),
        left_out=facts.left_out,
        without_caption=facts.without_caption,
        wall_s=time.monotonic() - started_s,
    )


def _note_in_dataset(dataset: Dataset, folder: str) -> None:
    """So that `clipmill remove` lists the folder."""
    try:
        add_published_folder(dataset.url, without_credentials(folder))
    except UserError as error:
        note(f"`clipmill remove` will not list this folder when it takes out clips that are in it: {error}")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One publication: where it goes, and what its folders hold."""

    plan: PublishPlan
    folder: str
    selection: str
    config: PublishConfig

    @property
    def state(self) -> str:
        return f"{self.folder}/{_STATE}"

    @property
    def data(self) -> str:
        return f"{self.folder}/{DATA}"

    def check_folder(self) -> None:
        """Raise UserError if the folder holds something else than this publication."""
        before = read_plan(self.state, PUBLICATION)
        if before is not None:
            check_same(self.folder, before, self._description(), otherwise="choose another folder")
            return
        fs, path = storage.filesystem(self.folder)
        entries = [*storage.list_files(fs, path), *storage.list_folders(fs, path)]
        names = sorted({entry.rstrip("/").rpartition("/")[2] for entry in entries} - {_STATE})
        if names:
            shown = ", ".join(map(repr, names[:3]))
            raise UserError(
                f"{self.folder} contains other files ({shown}): expected a new or empty folder, or one that "
                "`clipmill publish` started"
            )

    def in_place(self) -> dict[str, ShardRecord]:
        """Name -> record of each plan that is written."""
        if self.plan.to == "hf":
            return shards_in_place(self.plan.plans, self.data)
        fs, data = storage.filesystem(self.data)
        details = fs.find(data, detail=True) if storage.exists(fs, data) else {}
        sizes = {path[len(data) :].lstrip("/"): int(info["size"]) for path, info in details.items()}
        records = (check_files(plan, self.state, sizes) for plan in self.plan.plans)
        return {record.name: record for record in records if record}

    def start(self) -> None:
        """Note what the folder is for, and remove what a killed run left behind."""
        write_plan(self.state, self._description())
        for folder in {"", _STATE, DATA, *self._data_folders()}:
            storage.remove_leftovers(*storage.filesystem(f"{self.folder}/{folder}".rstrip("/")))
        if self.plan.to == "hf":
            start_shards(self.data, self.plan.plans, selection=self.selection, settings=self._shard_settings())

    def writer(self) -> Writer:
        """The function that workers call for each plan."""
        if self.plan.to == "hf":
            return partial(write_shard, folder_url=self.data, selection=self.selection, config=self.config.shards)
        return partial(
            write_files,
            data_url=self.data,
            records_url=self.state,
            fps=self.config.rate(self.plan.to),
            config=self.config.shards.extraction,
        )

    def finish(self, records: Mapping[str, ShardRecord]) -> None:
        """Write index.json, which marks the folder as complete."""
        index = index_of(
            self.plan.plans,
            records.values(),
            selection=self.selection,
            settings=self._shard_settings(),
            gone=self.plan.left_out,
        )
        write_index(self.data if self.plan.to == "hf" else self.state, index)

    def forget_owner(self) -> None:
        """Remove the names of this host and process."""
        fs, state = storage.filesystem(self.state)
        for name in (RUN_FILE, HEARTBEAT_FILE):
            storage.remove(fs, f"{state}/{name}")

    def _data_folders(self) -> set[str]:
        if self.plan.to == "hf":
            return set()
        return {f"{DATA}/{folder}" for folder in self.plan.clips["folder"].unique().to_pylist()}

    def _shard_settings(self) -> dict[str, Any]:
        return deciding(self.config.shards.model_dump(mode="json"))

    def _description(self) -> dict[str, Any]:
        ids = "\n".join(sorted(self.plan.clips["clip_id"].to_pylist()))
        settings = self.config.model_dump(mode="json") | {"shards": self._shard_settings()}
        return PUBLICATION.describe(
            settings,
            to=self.plan.to,
            selection=self.selection,
            clips=self.plan.clips.num_rows,
            clips_sha256=hashlib.sha256(ids.encode()).hexdigest(),
        )
