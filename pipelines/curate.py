"""Raw videos in, scored clips in a table: the curation half of the paper (section 3.1), streamed through Ray Data.

    inputs -> scan (cuts, motion, pictures) -> model scorers -> one committed part after another

What passes between the stages is rows and three small pictures per clip, never a video.
"""

import json
import pickle
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from curation import storage
from curation.errors import RunStopped, UserError
from curation.isolation import Isolated
from curation.scan import Scan
from curation.scores import Scorer
from curation.sources import Source, list_sources
from curation.tables import CLIPS, PREVIEWS, SOURCES, Dataset, part_name
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.progress import Reporter
from pipelines.scoring import load_scorers, scan_safely, score_clips
from pipelines.status import Status, status

_RUN_FILE = "run.json"
_PART_SOURCE_BYTES = 2 << 30
_PARTS_AT_LEAST = 64
_SOURCES_PER_PART = 256
_SOURCES_PER_SCORING = 4
_TASKS_AT_MOST = 4096
"""A task is a source; beyond this many a task takes several, for each costs the driver time and memory."""


@dataclass(frozen=True, kw_only=True)
class CurateResult:
    """What one run did, and what the dataset holds now."""

    dataset: str
    sources_given: int
    sources_done_before: int
    sources_done_now: int
    wall_s: float
    status: Status


def curate(
    inputs: Sequence[str],
    out: str,
    *,
    config: CurateConfig | None = None,
    limit: int | None = None,
    retry_rejected: bool = False,
    address: str | None = None,
    quiet: bool = False,
) -> CurateResult:
    """Curate videos into the dataset folder `out`; run again to do only what is missing.

    `inputs` as `curation.sources.list_sources` takes them, at most `limit` of them; `address` of a Ray cluster;
    with `retry_rejected`, sources that an earlier run rejected (a store that failed, a limit too low) are tried again.
    Raises UserError: nothing given or usable, another configuration, `out` not writable; RunStopped: a full disk.
    """
    config, started_s = config or CurateConfig(), time.monotonic()
    sources = list(islice(list_sources(inputs), limit))
    if not sources:
        raise UserError(f"no usable input: there is no video in {', '.join(inputs) or 'nothing'}")
    # Limits decide which sources are rejected, not what is in a row: they may change between runs.
    dataset = Dataset(out).create_or_open(config.model_dump(mode="json", exclude={"limits"}))
    run = _take_over(dataset)
    dataset.remove_unfinished()
    before = dataset.statuses()
    ids = {source.source_id for source in sources}
    again = {i for i in ids if retry_rejected and before.get(i) == "rejected"}
    todo = [source for source in sources if source.source_id not in before or source.source_id in again]
    if todo:
        with connected(address), Reporter("curate", len(todo), unit="sources", quiet=quiet) as report:
            if again:
                dataset.forget_rejected(again)
            clips = 0
            for committed in _stream(todo, dataset, config, run):
                if committed["error"]:
                    raise RunStopped(committed["error"])
                clips += committed["clips"]
                report.advance(committed["sources"], f"{clips:,} clips")
        dataset.remove_unfinished()
    found, now = status(dataset), dataset.statuses()
    if not any(now.get(i) == "ok" for i in ids):
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.rejected.items())
        raise UserError(f"no usable input: all {len(ids)} sources were rejected ({kinds}); see {out}")
    return CurateResult(
        dataset=out,
        sources_given=len(sources),
        sources_done_before=len(sources) - len(todo),
        sources_done_now=len(todo),
        wall_s=time.monotonic() - started_s,
        status=found,
    )


def _stream(todo: Sequence[Source], dataset: Dataset, config: CurateConfig, run: str) -> Iterator[dict[str, Any]]:
    """The graph. Yields {"sources", "clips", "error"} for every part as it is committed, or could not be."""
    import ray

    rows = [{"source": pickle.dumps(source)} for source in todo]
    # Unequal num_cpus keep the stages apart: Ray Data would run equal ones as one, a whole batch in one task.
    scans = ray.data.from_items(rows, override_num_blocks=min(len(rows), _TASKS_AT_MOST)).map(
        partial(scan_source, config=config), num_cpus=1
    )
    scored = scans.map_batches(partial(score_sources, config=config), batch_size=_SOURCES_PER_SCORING, num_cpus=0.9)
    written = scored.map_batches(
        partial(write_part, dataset=dataset, run=run), batch_size=_part_size(todo), num_cpus=0.1
    )
    yield from written.iter_rows()


def scan_source(row: dict[str, Any], config: CurateConfig) -> dict[str, Any]:
    """Stage 1: one source, in a child process with limits; a rejected one is a row like the others."""
    source: Source = pickle.loads(row["source"])
    return {"scan": pickle.dumps(scan_safely(_child(config), source, config))}


def score_sources(batch: dict[str, Any], config: CurateConfig) -> dict[str, Any]:
    """Stage 2: model scorers over the clips of several sources at once; pictures leave it as small previews."""
    scans: list[Scan] = [pickle.loads(scan) for scan in batch["scan"]]
    score_clips(_scorers(config), scans)
    return {"scan": [pickle.dumps(replace(scan, pictures=_previews(scan))) for scan in scans]}


def write_part(batch: dict[str, Any], dataset: Dataset, run: str) -> dict[str, Any]:
    """Stage 3: the rows of some sources become one part, committed by its sources file, written last."""
    scans: list[Scan] = [pickle.loads(scan) for scan in batch["scan"]]
    clips = [clip for scan in scans for clip in scan.clips]
    previews = [
        dict(zip(PREVIEWS.names, (clip["clip_id"], *(jpegs or (None, None, None))), strict=True))
        for scan in scans
        for clip, jpegs in zip(scan.clips, scan.pictures, strict=True)
    ]
    part = part_name(scan.source["source_id"] for scan in scans)
    try:
        dataset.write_part("previews", part, pa.Table.from_pylist(previews, PREVIEWS))
        dataset.write_part("clips", part, pa.Table.from_pylist(clips, CLIPS))
        _check_still_ours(dataset, run)
        dataset.write_part("sources", part, pa.Table.from_pylist([scan.source for scan in scans], SOURCES))
    except UserError as error:
        return {"sources": [0], "clips": [0], "error": [str(error)]}
    return {"sources": [len(scans)], "clips": [len(clips)], "error": [None]}


# Ray keeps worker processes from task to task, so the child and the models live as long as a worker does. Tasks start
# in half the time of actor pools, and when a node dies another node simply runs them.


@lru_cache(maxsize=1)
def _child(config: CurateConfig) -> Isolated:
    return Isolated(config.limits)


@lru_cache(maxsize=1)
def _scorers(config: CurateConfig) -> list[Scorer]:
    return load_scorers(config)


def _previews(scan: Scan) -> list[tuple[bytes, ...]]:
    return [tuple(_preview(jpeg) for jpeg in jpegs) for jpegs in scan.pictures]


def _preview(jpeg: bytes) -> bytes:
    """A JPEG at half the size of a scorer's picture, for people to look at."""
    small = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    assert small is not None, "a picture that the scan itself compressed"
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _part_size(todo: Sequence[Source]) -> int:
    """Sources per part: few files for many small sources, and little to do again when a run is killed."""
    mean_bytes = max(1, sum(source.size_bytes or 0 for source in todo) // len(todo))
    sources = max(1, min(_SOURCES_PER_PART, len(todo) // _PARTS_AT_LEAST, _PART_SOURCE_BYTES // mean_bytes))
    # Whole batches of the stage before: what is left over from one would be a part of its own.
    return sources if sources < _SOURCES_PER_SCORING else sources - sources % _SOURCES_PER_SCORING


def _take_over(dataset: Dataset) -> str:
    """Make this run the one that may commit. What an older one still has under way fails at its next commit."""
    run = uuid.uuid4().hex
    storage.write_bytes(dataset.fs, dataset.file(_RUN_FILE), json.dumps({"run": run}).encode())
    return run


def _check_still_ours(dataset: Dataset, run: str) -> None:
    current = json.loads(storage.read_bytes(dataset.fs, dataset.file(_RUN_FILE)))["run"]
    if current != run:
        raise UserError(f"another run has taken over {dataset.url}; this one stops here and loses nothing")
