"""First and last stages of curation: scan a source in a child process, and write a part of the tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.errors import SourceError, UserError
from clipmill.pipeline import Resources, Stage
from curation.dataset.schemas import CLIPS, PREVIEWS, SCAN_COLUMNS, SOURCES
from curation.dataset.score_versions import stamped
from curation.dataset.tables import Dataset, part_name
from curation.inputs.caption import Caption
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


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The table of a score version outside the clips table."""

    table: str
    schema: pa.Schema
    version: int
    weights_digest: str | None

    @property
    def computed(self) -> list[str]:
        """The columns that the scorer fills."""
        return [name for name in self.schema.names if name not in ("clip_id", "version", "weights_digest")]

    def rows(self, clips: Sequence[dict[str, Any]]) -> pa.Table:
        """Of clips with the columns of the scorer."""
        return stamped(pa.Table.from_pylist(list(clips), self.schema), self.version, self.weights_digest)


def scan_stage(config: CurateConfig, counter: Any = None) -> Stage:
    """Scan numbered sources, one at a time; a rejected source is a scan like the others.

    `counter` is an actor (`pipelines.counting`) that receives the number of each. An error that is not the source's
    fault (disk full) stops the run.
    """
    return Stage(
        name="scan",
        needs=("source",),
        gives=(*SCAN_COLUMNS, "captions", "thumbnails", "previews"),  # made from thumbnails
        load=partial(_load_scan, config, counter),
    )


def write_stage(dataset: Dataset, fence: Fence, *, sources: int, scores: Sequence[ScoreTable] = ()) -> Stage:
    """Write the scans of up to `sources` sources as one part of the tables and of those of further scores; writing the
    sources file last commits it."""
    return Stage(
        name="write",
        needs=(*CLIPS.names, *(name for score in scores for name in score.computed), "previews"),
        gives=("part",),
        load=partial(_load_write, dataset, fence, tuple(scores)),
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


def write_part(scans: Sequence[Scan], dataset: Dataset, fence: Fence, scores: Sequence[ScoreTable] = ()) -> Part:
    """Commit the rows of these sources. A source whose rows do not fit the tables is rejected."""
    try:
        _write(dataset, scans, fence, scores)
    except UserError:
        raise
    except _UNWRITABLE:
        scans = [_writable(scan, scores) for scan in scans]
        _write(dataset, scans, fence, scores)
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


def _load_write(
    dataset: Dataset, fence: Fence, scores: Sequence[ScoreTable], device: str
) -> Callable[[list[Scan]], list[Part]]:
    return lambda scans: [write_part(scans, dataset, fence, scores)]


@lru_cache(maxsize=1)
def _child(limits: Limits) -> Isolated:
    """Ray reuses worker processes: the child lives as long as its worker."""
    return Isolated(limits)


_CAPTION = tuple(field.name for field in fields(Caption))
_UNWRITABLE = (pa.ArrowException, OverflowError, ValueError, TypeError)
"""Errors of Arrow and Parquet for values that do not fit a column: too many bytes, number out of range."""


def _write(dataset: Dataset, scans: Sequence[Scan], fence: Fence, scores: Sequence[ScoreTable]) -> None:
    tables, part = tables_of(scans, scores), part_name(scan.source["source_id"] for scan in scans)
    sources = tables.pop("sources")
    fence.check()
    for name, table in tables.items():
        dataset.write_part(name, part, table)
    fence.check()
    dataset.write_part("sources", part, sources)


def tables_of(scans: Sequence[Scan], scores: Sequence[ScoreTable] = ()) -> dict[str, pa.Table]:
    """The rows of scans by table, in the order in which they are written."""
    scans = [_with_captions_once(scan) for scan in scans]
    clips = [clip for scan in scans for clip in scan.clips]
    previews = [
        dict(zip(PREVIEWS.names, (clip["clip_id"], *(jpegs or (None, None, None))), strict=True))
        for scan in scans
        for clip, jpegs in zip(scan.clips, scan.thumbnails, strict=True)
    ]
    return {
        **{score.table: score.rows(clips) for score in scores},
        "previews": pa.Table.from_pylist(previews, PREVIEWS),
        "clips": pa.Table.from_pylist(clips, CLIPS),
        "sources": pa.Table.from_pylist([scan.source for scan in scans], SOURCES),
    }


def _with_captions_once(scan: Scan) -> Scan:
    """Move supplied captions to the row of the source, each once; clips keep their positions there."""
    numbers: dict[tuple[Any, ...], int] = {}
    clips = [
        clip | {"source_captions": [numbers.setdefault(_values(c), len(numbers)) for c in clip["captions"]]}
        for clip in scan.clips
    ]
    captions = [dict(zip(_CAPTION, values, strict=True)) for values in numbers]
    return replace(scan, source=scan.source | {"captions": captions}, clips=clips)


def _values(caption: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(map(caption.get, _CAPTION))


def _writable(scan: Scan, scores: Sequence[ScoreTable]) -> Scan:
    """The scan, or a rejected one if its rows cannot be written."""
    try:
        for table in tables_of([scan], scores).values():
            pq.write_table(table, pa.BufferOutputStream(), compression="zstd")
    except _UNWRITABLE as error:
        reason = str(error).partition("\n")[0][:200]
        return rejected_row(scan.source, SourceError("too_large", f"its rows cannot be written to a table: {reason}"))
    return scan
