"""First and last stages of curation: scan a source in a child process, and write a part of the tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.errors import SourceError, UserError
from clipmill.pipeline import Resources, Stage
from curation.dataset.schemas import CLIPS, PREVIEWS, SCAN_COLUMNS, SOURCES
from curation.dataset.tables import Dataset, part_name
from curation.inputs.sources import Source
from curation.scan.isolation import Isolated
from curation.scan.one_pass import Scan, rejected, rejected_row, scan
from curation.scan.validate import check_scan
from curation.video.decode import Limits
from pipelines.config import CurateConfig
from pipelines.fence import Fence


@dataclass(frozen=True, kw_only=True)
class Part:
    """A committed part of the tables."""

    sources: int
    clips: int


def scan_stage(config: CurateConfig, counter: Any = None) -> Stage:
    """Scan numbered sources, one at a time; a rejected source is a scan like the others.

    `counter` is an actor (`pipelines.counting`) that receives the number of each. An error that is not the source's
    fault (disk full) stops the run.
    """
    return Stage(
        name="scan",
        needs=("source",),
        gives=(*SCAN_COLUMNS, "thumbnails"),
        load=partial(_load_scan, config, counter),
    )


def write_stage(dataset: Dataset, fence: Fence, *, sources: int) -> Stage:
    """Write the scans of up to `sources` sources as one part of the tables; writing the sources file last commits
    it."""
    return Stage(
        name="write",
        needs=(*CLIPS.names, "previews"),
        gives=("part",),
        load=partial(_load_write, dataset, fence),
        resources=Resources(num_cpus=0.1),  # mostly waits for the store
        batch_size=sources,
    )


def scan_safely(child: Isolated, source: Source, config: CurateConfig, *, frame_times: bool = False) -> Scan:
    """Scan in the child process, see `scan`; any failure there becomes a rejected scan with the reason.

    Raises RunStopped if the machine is at fault: no child can start, or the temporary folder is full.
    """
    try:
        scanned = child.run_on(source.uri, scan, source, config.scan, frame_times)
        check_scan(scanned, source)
        return scanned
    except SourceError as error:
        return rejected(source, error)


def write_part(scans: Sequence[Scan], dataset: Dataset, fence: Fence) -> Part:
    """Commit the rows of these sources. A source whose rows do not fit the tables is rejected."""
    try:
        _write(dataset, scans, fence)
    except UserError:
        raise
    except _UNWRITABLE:
        scans = [_writable(scan) for scan in scans]
        _write(dataset, scans, fence)
    return Part(sources=len(scans), clips=sum(len(scan.clips) for scan in scans))


def _load_scan(config: CurateConfig, counter: Any, device: str) -> Callable[[list[tuple[int, Source]]], list[Scan]]:
    return partial(_scan_all, _child(config.scan.limits), config, counter)


def _scan_all(child: Isolated, config: CurateConfig, counter: Any, sources: list[tuple[int, Source]]) -> list[Scan]:
    scans = []
    for number, source in sources:
        scans.append(scan_safely(child, source, config))
        if counter is not None:
            counter.add.remote(number)
    return scans


def _load_write(dataset: Dataset, fence: Fence, device: str) -> Callable[[list[Scan]], list[Part]]:
    return lambda scans: [write_part(scans, dataset, fence)]


@lru_cache(maxsize=1)
def _child(limits: Limits) -> Isolated:
    """Ray reuses worker processes: the child lives as long as its worker."""
    return Isolated(limits)


_UNWRITABLE = (pa.ArrowException, OverflowError, ValueError, TypeError)
"""Errors of Arrow and Parquet for values that do not fit a column: too many bytes, number out of range."""


def _write(dataset: Dataset, scans: Sequence[Scan], fence: Fence) -> None:
    tables, part = _tables(scans), part_name(scan.source["source_id"] for scan in scans)
    fence.check()
    dataset.write_part("previews", part, tables["previews"])
    dataset.write_part("clips", part, tables["clips"])
    fence.check()
    dataset.write_part("sources", part, tables["sources"])


def _tables(scans: Sequence[Scan]) -> dict[str, pa.Table]:
    previews = [
        dict(zip(PREVIEWS.names, (clip["clip_id"], *(jpegs or (None, None, None))), strict=True))
        for scan in scans
        for clip, jpegs in zip(scan.clips, scan.thumbnails, strict=True)
    ]
    return {
        "previews": pa.Table.from_pylist(previews, PREVIEWS),
        "clips": pa.Table.from_pylist([clip for scan in scans for clip in scan.clips], CLIPS),
        "sources": pa.Table.from_pylist([scan.source for scan in scans], SOURCES),
    }


def _writable(scan: Scan) -> Scan:
    """The scan, or a rejected one if its rows cannot be written."""
    try:
        for table in _tables([scan]).values():
            pq.write_table(table, pa.BufferOutputStream(), compression="zstd")
    except _UNWRITABLE as error:
        reason = str(error).partition("\n")[0][:200]
        return rejected_row(scan.source, SourceError("too_large", f"its rows cannot be written to a table: {reason}"))
    return scan
