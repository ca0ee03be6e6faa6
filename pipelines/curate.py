"""Raw videos in, scored clips in a table: the curation half of the paper (section 3.1), streamed through Ray Data.

    inputs -> scan (cuts, motion, pictures) -> model scorers -> one committed part after another

What passes between the stages is rows and three small pictures per clip, never a video.
"""

import json
import pickle
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import pyarrow as pa

from curation import storage
from curation.captioners import CAPTIONERS
from curation.decode import Limits
from curation.duplicates import DuplicatesResult, find_duplicates
from curation.errors import RunStopped, UserError
from curation.isolation import Isolated
from curation.scan import Scan
from curation.sources import Source, list_sources
from curation.tables import CLIPS, PREVIEWS, SOURCES, Dataset, differences, part_name
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.models import CheckedModels, check_models, with_models
from pipelines.progress import Reporter, note
from pipelines.scoring import scan_safely
from pipelines.status import Status, status

_RUN_FILE, _MODELS_FILE = "run.json", "models.json"
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
    duplicates: DuplicatesResult | None
    """None without embeddings, or where they are not looked for."""
    status: Status


def curate(
    inputs: Sequence[str],
    out: str,
    *,
    config: CurateConfig | None = None,
    limit: int | None = None,
    retry_rejected: bool = False,
    retry_captions: bool = False,
    address: str | None = None,
    quiet: bool = False,
) -> CurateResult:
    """Curate videos into the dataset folder `out`; run again to do only what is missing.

    `inputs` as `curation.sources.list_sources` takes them, at most `limit` of them; `address` of a Ray cluster;
    with `retry_rejected`, sources that an earlier run rejected (a store that failed, a limit too low) are tried again,
    with `retry_captions` those near which a captioner failed. Near-duplicates are looked for when all is done.
    Raises UserError: nothing given or usable, another configuration, `out` not writable; RunStopped: a full disk.
    """
    config, started_s = config or CurateConfig(), time.monotonic()
    sources = list(islice(list_sources(inputs), limit))
    if not sources:
        raise UserError(f"no usable input: there is no video in {', '.join(inputs) or 'nothing'}")
    dataset = Dataset(out)
    before = _statuses(dataset, config)
    ids = {source.source_id for source in sources}
    again = {i for i in ids if retry_rejected and before.get(i) == "rejected"}
    uncaptioned = dataset.failed_captions(list(CAPTIONERS), ids) if before and retry_captions else {}
    anew = again.union(*uncaptioned.values())
    todo = [source for source in sources if source.source_id not in before or source.source_id in anew]
    if todo:
        with connected(address):
            checked = check_models(config)  # before a dataset is made: it is a wish to be corrected, not a failed run
            dataset.create_or_open(config.described())
            _keep_models(dataset, checked, config)
            run = _take_over(dataset)
            dataset.take_back(uncaptioned)
            if again:
                dataset.forget_rejected(again)
            for notice in checked.notices:
                note(notice)
            with Reporter("curate", len(todo), unit="sources", quiet=quiet) as report:
                clips = 0
                for committed in _stream(todo, dataset, config, run, checked):
                    if committed["error"]:
                        raise RunStopped(committed["error"])
                    clips += committed["clips"]
                    report.advance(committed["sources"], f"{clips:,} clips")
        dataset.remove_unfinished()
    found, now = status(dataset), dataset.statuses()
    if not any(now.get(i) == "ok" for i in ids):
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.rejected.items())
        raise UserError(f"no usable input: all {len(ids)} sources were rejected ({kinds}); see {out}")
    duplicates = None
    if config.duplicates is not None and found.unscored.get("embedding", found.clips) < found.clips:
        duplicates = find_duplicates(dataset, config.duplicates)
    return CurateResult(
        dataset=out,
        sources_given=len(sources),
        sources_done_before=len(sources) - len(todo),
        sources_done_now=len(todo),
        wall_s=time.monotonic() - started_s,
        duplicates=duplicates,
        status=found,
    )


def _stream(
    todo: Sequence[Source], dataset: Dataset, config: CurateConfig, run: str, checked: CheckedModels
) -> Iterator[dict[str, Any]]:
    """The graph. Yields {"sources", "clips", "error"} for every part as it is committed, or could not be."""
    import ray

    rows = [{"source": pickle.dumps(source)} for source in todo]
    scans = ray.data.from_items(rows, override_num_blocks=min(len(rows), _TASKS_AT_MOST)).map(
        partial(scan_source, config=config), num_cpus=1
    )
    written = with_models(scans, config, checked).map_batches(
        partial(write_part, dataset=dataset, run=run), batch_size=_part_size(todo), num_cpus=0.1
    )
    yield from written.iter_rows()


def scan_source(row: dict[str, Any], config: CurateConfig) -> dict[str, Any]:
    """First stage: one source, in a child process with limits; a rejected one is a row like the others."""
    source: Source = pickle.loads(row["source"])
    return {"scan": pickle.dumps(scan_safely(_child(config.limits), source, config))}


def write_part(batch: dict[str, Any], dataset: Dataset, run: str) -> dict[str, Any]:
    """Last stage: the rows of some sources become one part, committed by its sources file, written last."""
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


@lru_cache(maxsize=1)
def _child(limits: Limits) -> Isolated:
    """Ray keeps worker processes from task to task: the child lives as long as its worker does."""
    return Isolated(limits)


def _part_size(todo: Sequence[Source]) -> int:
    """Sources per part: few files for many small sources, and little to do again when a run is killed."""
    mean_bytes = max(1, sum(source.size_bytes or 0 for source in todo) // len(todo))
    sources = max(1, min(_SOURCES_PER_PART, len(todo) // _PARTS_AT_LEAST, _PART_SOURCE_BYTES // mean_bytes))
    # Whole batches of the stage before: what is left over from one would be a part of its own.
    return sources if sources < _SOURCES_PER_SCORING else sources - sources % _SOURCES_PER_SCORING


def _statuses(dataset: Dataset, config: CurateConfig) -> dict[str, str]:
    """What earlier runs did: nothing, if there is no dataset yet. Raises UserError as `Dataset.create_or_open`."""
    if not dataset.exists():
        return {}
    dataset.create_or_open(config.described())
    _take_over(dataset)
    dataset.remove_unfinished()
    return dataset.statuses()


def _keep_models(dataset: Dataset, checked: CheckedModels, config: CurateConfig) -> None:
    """Note which weights score this dataset, or check that they are those of the runs before."""
    path, wanted = dataset.file(_MODELS_FILE), asdict(checked)
    wanted["duplicates"] = config.duplicates and config.duplicates.model_dump(mode="json")
    try:
        found = json.loads(storage.read_bytes(dataset.fs, path))
    except FileNotFoundError:
        storage.write_bytes(dataset.fs, path, (json.dumps(wanted, indent=2, ensure_ascii=False) + "\n").encode())
        return
    if found["digests"] != wanted["digests"]:
        raise UserError(
            f"the clips in {dataset.url} were scored with other weights:\n"
            + "\n".join(f"  {line}" for line in differences(found["digests"], wanted["digests"]))
            + "\nScores of two models do not mix: give a new --out, or the old weights."
        )


def _take_over(dataset: Dataset) -> str:
    """Make this run the one that may commit. What an older one still has under way fails at its next commit."""
    run = uuid.uuid4().hex
    storage.write_bytes(dataset.fs, dataset.file(_RUN_FILE), json.dumps({"run": run}).encode())
    return run


def _check_still_ours(dataset: Dataset, run: str) -> None:
    current = json.loads(storage.read_bytes(dataset.fs, dataset.file(_RUN_FILE)))["run"]
    if current != run:
        raise UserError(f"another run has taken over {dataset.url}; this one stops here and loses nothing")
