"""Counts of a dataset's sources, clips, scores, selections and shards, read from its tables."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from clipmill import storage
from clipmill.formats import SHARDS
from clipmill.shard_folder import read_index
from curation.dataset.caption_counts import CaptionCount, caption_counts, count_failed_captions
from curation.dataset.commits import current_version
from curation.dataset.schemas import SCHEMAS
from curation.dataset.score_counts import VersionCount, commonest_reason, unscored_clips, version_counts
from curation.dataset.tables import Dataset
from curation.dataset.totals import source_totals
from curation.scores.columns import CAPTIONS, SCORES
from curation.selection.marks import dataset_marks
from curation.selection.saved import Selection, load_selection, selection_names
from pipelines.costs import RunCosts, StageCost, read_costs, stage_costs
from pipelines.outdated import Outdated, outdated_selections, outdated_shards

FIRST_REJECTED = 10
"""Number of rejected sources that a run prints at its end."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A source that could not be used, and why."""

    uri: str
    error_kind: str
    error: str


@dataclass(frozen=True)
class Reason:
    """The most common reason for missing scores, and the number of clips it applies to."""

    text: str
    clips: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """Counts of a dataset: sources = sources_ok + rejected, video_s = clip_s + lost_s.

    `_s` are seconds of footage, `_cpu_s` CPU seconds.
    """

    dataset: str
    sources: int
    sources_ok: int
    rejected: dict[str, int]
    """error_kind -> number of sources."""
    clips: int
    extractions: dict[str, int]
    """remux or transcode -> number of clips."""
    video_s: float
    clip_s: float
    lost_s: dict[str, float]
    scan_cpu_s: float
    score_cpu_s: float
    unscored: dict[str, int]
    """Score column -> number of clips without it; scores that were skipped (`--without`) are not listed."""
    costs: tuple[StageCost, ...] = ()
    """What each stage used, in all runs."""
    runs: tuple[RunCosts, ...] = ()
    """Their records, oldest first."""
    stored_bytes: int = 0
    """Size of all files of the dataset, its shards included."""
    unscored_reasons: dict[str, Reason] = field(default_factory=dict)
    """Score column -> most common reason, for each column in `unscored`."""
    left_out: tuple[str, ...] = ()
    """Scores that were skipped (`--without`)."""
    versions: tuple[VersionCount, ...] = ()
    """Of scores with a version outside the clips table."""
    captions: tuple[CaptionCount, ...] = ()
    """Of captioners."""
    captions_failed: dict[str, int] = field(default_factory=dict)
    """Caption source -> number of failed captions: supplied ones, and those of the version of each captioner
    that counts."""
    notices: tuple[str, ...] = ()
    """Notices about the models that scored the dataset."""
    rejected_sources: tuple[Rejected, ...] = ()
    """Sorted by kind and address; all, or the first few."""
    marks: dict[str, int] = field(default_factory=dict)
    """Verdict -> number of clips, of the marks that were passed to `select`."""
    selections: list[Selection] = field(default_factory=list)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Shard folder -> kind, selection, dataset_version and totals of its index."""
    version: int = 0
    """Version of the dataset, see `clipmill log`; 0 before its first."""
    changing: bool = False
    """Whether a run is changing the dataset, or died while it did."""
    outdated_selections: dict[str, Outdated] = field(default_factory=dict)
    """Those that are older than the dataset or have clips that are gone, by name."""
    outdated_shards: dict[str, Outdated] = field(default_factory=dict)
    """The same of shard folders."""


def status(dataset: Dataset, *, list_rejected: int | None = FIRST_REJECTED) -> Status:
    """Read the counts, and at most `list_rejected` rejected sources (None: all).

    Raises UserError if it is not a dataset or one of its files is damaged.
    """
    config = dataset.description()["config"]
    now = current_version(dataset)
    selections, shards = [load_selection(dataset, name) for name in selection_names(dataset)], _shards(dataset)
    with dataset.connect() as connection:
        totals = source_totals(connection)
        extractions = _counts(connection, "SELECT extraction::VARCHAR, count(*) FROM clips GROUP BY 1 ORDER BY 1")
        unscored, versions = unscored_clips(connection), version_counts(connection)
        captions = caption_counts(connection)
        scored_later = {count.scorer for count in versions}
        runs = read_costs(dataset)
        stored = _stored_bytes(dataset)
        return Status(
            dataset=dataset.url,
            sources=totals.sources,
            sources_ok=totals.sources_ok,
            rejected=totals.rejected,
            clips=sum(extractions.values()),
            extractions=extractions,
            video_s=totals.duration_s,
            clip_s=totals.clip_s,
            lost_s={name.removeprefix("lost_").removesuffix("_s"): lost_s for name, lost_s in totals.lost_s.items()},
            scan_cpu_s=totals.cpu_s.get("scan_cpu_s", 0.0),
            score_cpu_s=totals.cpu_s.get("score_cpu_s", 0.0),
            costs=stage_costs(runs, connection, _bytes_of_stages(stored, shards, int(totals.size_bytes))),
            stored_bytes=sum(stored.values()),
            runs=tuple(runs),
            unscored=unscored,
            unscored_reasons={
                name: Reason(*commonest_reason(connection, name)) for name, count in unscored.items() if count
            },
            versions=versions,
            left_out=tuple(str(name) for name in config.get("without") or () if name not in scored_later),
            captions=captions,
            captions_failed=count_failed_captions(dataset)
            | {each.captioner: each.failed for each in captions if each.counted and each.failed},
            notices=tuple(map(str, models_of(dataset).get("notices") or ())),
            rejected_sources=_rejected_sources(connection, list_rejected),
            marks=dataset_marks(dataset).counts(),
            selections=selections,
            shards=shards,
            version=now.version,
            changing=now.changing,
            outdated_selections=outdated_selections(dataset, connection, selections, now),
            outdated_shards=outdated_shards(dataset, connection, shards, now),
        )


def models_of(dataset: Dataset) -> dict[str, Any]:
    """The content of models.json: the models and settings that the dataset was scored with; {} if missing."""
    return storage.read_json_if_exists(dataset.fs, dataset.file("models.json"), _checked_models) or {}


def clip_digest(dataset: Dataset) -> str | None:
    """Digest of the CLIP weights that embedded the dataset; None if it has no embeddings or no record of them."""
    digest = (models_of(dataset).get("digests") or {}).get("clip")
    return None if digest is None else str(digest)


def _checked_models(values: dict[str, Any]) -> dict[str, Any]:
    for key, kind in {"notices": list, "duplicates": dict, "digests": dict, "scorers": dict, "captions": dict}.items():
        if not isinstance(values.get(key), kind | None):
            raise TypeError(f"expected {key} to be of type {kind.__name__}, got {type(values[key]).__name__}")
    return values


def _stored_bytes(dataset: Dataset) -> Counter[str]:
    """Bytes of all files, by folder: `clips`, `scores/NAME`, ..."""
    stored: Counter[str] = Counter()
    with storage.explained("list", dataset.fs, dataset.path):
        for path, info in dataset.fs.find(dataset.path, detail=True).items():
            folder, *below = path[len(dataset.path) + 1 :].split("/")
            stored[f"{folder}/{below[0]}" if folder in (SCORES, CAPTIONS) and below else folder] += info["size"]
    return stored


def _bytes_of_stages(
    stored: Mapping[str, int], shards: Mapping[str, Mapping[str, Any]], source_bytes: int
) -> dict[str, int]:
    """Stage -> bytes: read by `decode`, stored of the others."""
    folders = {name.partition("/")[2]: size for name, size in stored.items() if "/" in name}
    tables = sum(stored.get(table, 0) for table in SCHEMAS)
    tars = sum(int(index["totals"]["bytes"]) for index in shards.values())
    return folders | {"decode": source_bytes, "write": tables, "shard": tars}


def _counts(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, int]:
    return dict(connection.execute(query).fetchall())


def _rejected_sources(connection: duckdb.DuckDBPyConnection, limit: int | None) -> tuple[Rejected, ...]:
    rows = connection.execute(
        "SELECT coalesce(uri, ''), coalesce(error_kind, ''), coalesce(error, '') FROM sources "
        f"WHERE status = 'rejected' ORDER BY 2, 1 LIMIT {'ALL' if limit is None else limit}"
    ).fetchall()
    return tuple(Rejected(uri=uri, error_kind=kind, error=error) for uri, kind, error in rows)


def _shards(dataset: Dataset) -> dict[str, dict[str, Any]]:
    indexes = {}
    for folder in storage.list_folders(dataset.fs, dataset.file("shards")):
        index = read_index(storage.address(dataset.fs, folder), SHARDS, _shard_totals)
        if index is not None:  # None: unfinished
            indexes[folder.rpartition("/")[2]] = index
    return indexes


def _shard_totals(index: dict[str, Any]) -> dict[str, Any]:
    totals = {key: _number(value) for key, value in index["totals"].items()}
    for key in ("shards", "samples", "bytes", "failed"):
        totals[key]  # a KeyError says which is missing
    version = int(_number(index.get("dataset_version", 0)))
    names = {"kind": str(index["kind"]), "selection": str(index["selection"])}
    return {**names, "dataset_version": version, "totals": totals}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value
