"""The facts in the card of a published selection: counts, licences, sources, rules, versions. No path and no secret."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clipmill.public import public_text
from clipmill.shard_folder import FailedClip
from curation.dataset.joined import VERSIONS
from curation.dataset.tables import Dataset
from curation.shards.sample import caption_of

if TYPE_CHECKING:
    from curation.selection.saved import Selection

_LICENSE_NAMES = ("license", "licence", "license_name", "licence_name", "rights")
_AUTHOR_NAMES = ("author", "creator", "uploader", "channel", "artist", "attribution", "credit")
NOT_STATED = "not stated"

SOURCE_LIST = pa.schema(
    [
        ("source_id", pa.string()),
        ("root", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("author", pa.string()),
        ("clips", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
"""A row per source: with it, a rights holder finds a video, and whoever holds a copy finds its clips."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Totals of the clips that share a value, such as a licence."""

    name: str
    clips: int
    sources: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A score or captioner, the version that counts, and digests of weights by model."""

    name: str
    version: int
    weights: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of the clips that were written."""

    selection: "Selection"
    clips: int
    seconds: float
    bytes: int
    sources: int
    licenses: tuple[Tally, ...]
    captions: Mapping[str, int]
    """Source of the captions in use -> clips."""
    without_caption: int
    with_sound: int
    """Clips of sources with sound."""
    sizes: Mapping[str, int]
    """Width x height -> clips, commonest first."""
    fps: Mapping[str, int]
    duration_s: tuple[float, float, float]
    """Shortest, median, longest."""
    left_out: Mapping[str, int]
    """Kind of error -> selected clips that were not written."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """Format version and fingerprint."""
    scorers: tuple[Scorer, ...] = ()
    notices: tuple[str, ...] = ()
    """Notices about the weights."""
    source_list: pa.Table = field(default_factory=SOURCE_LIST.empty_table)


def collect_facts(
    dataset: Dataset,
    selection: "Selection",
    clips: pa.Table,
    *,
    left_out: Sequence[FailedClip],
    models: Mapping[str, Any],
    size_bytes: int,
) -> Facts:
    """Facts of the rows in `clips`, which were written; `models` is the content of models.json."""
    rows = clips.to_pylist()
    used = [_source_of_caption(row) for row in rows]
    durations = [row["duration_s"] for row in rows]
    sources = _sources(rows)
    description = dataset.description()
    return Facts(
        selection=selection,
        clips=len(rows),
        seconds=sum(durations),
        bytes=size_bytes,
        sources=sources.num_rows,
        licenses=_licenses(sources),
        captions=dict(Counter(source for source in used if source).most_common()),
        without_caption=used.count(""),
        with_sound=sum(bool(row.get("audio")) for row in rows),
        sizes=dict(Counter(f"{row['width']} x {row['height']}" for row in rows).most_common()),
        fps=dict(Counter(f"{row['fps'] or 0:.3g}" for row in rows).most_common()),
        duration_s=(min(durations), statistics.median(durations), max(durations)) if rows else (0.0, 0.0, 0.0),
        left_out=dict(Counter(clip.error_kind for clip in left_out).most_common()),
        dataset={key: description[key] for key in ("format_version", "fingerprint")},
        scorers=_scorers(dataset, models.get("digests") or {}),
        notices=tuple(models.get("notices") or ()),
        source_list=sources,
    )


def _source_of_caption(row: Mapping[str, Any]) -> str:
    text = caption_of(row)
    return next((str(c["source"]) for c in row["captions"] or () if text and c["text"] == text), "")


def _sources(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        metadata = {name.lower(): value for name, value in dict(row.get("metadata") or []).items() if value}
        entry = found.setdefault(
            row["source_id"],
            {
                "source_id": row["source_id"],
                "root": row["root"],
                "path": row["path"],
                "license": _first(metadata, _LICENSE_NAMES),
                "author": _first(metadata, _AUTHOR_NAMES),
                "clips": 0,
                "seconds": 0.0,
            },
        )
        entry["clips"] += 1
        entry["seconds"] += row["duration_s"]
    return pa.Table.from_pylist([found[source_id] for source_id in sorted(found)], SOURCE_LIST)


def _first(metadata: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((public_text(metadata[name]) for name in names if name in metadata), None)


def _licenses(sources: pa.Table) -> tuple[Tally, ...]:
    tallies: dict[str, Tally] = {}
    for row in sources.to_pylist():
        name = row["license"] or NOT_STATED
        before = tallies.get(name, Tally(name=name, clips=0, sources=0, seconds=0.0))
        tallies[name] = Tally(
            name=name,
            clips=before.clips + row["clips"],
            sources=before.sources + 1,
            seconds=before.seconds + row["seconds"],
        )
    return tuple(sorted(tallies.values(), key=lambda tally: (-tally.clips, tally.name)))


def _scorers(dataset: Dataset, digests: Mapping[str, str]) -> tuple[Scorer, ...]:
    with dataset.connect() as connection:
        counted = connection.execute(
            f"SELECT scorer, version, view FROM {VERSIONS} WHERE counted ORDER BY scorer"
        ).fetchall()
    scorers = []
    for name, version, view in counted:
        table = f"{view.partition('_')[0]}/{name}"
        recorded = [] if view == "clips" else dataset.recorded_versions(table)
        made_with = next((each.made_with.weights for each in recorded if each.version == version), digests)
        weights = {model: made_with[model] for model in _models_of(name) if model in made_with}
        scorers.append(Scorer(name=name, version=version, weights=weights))
    return tuple(scorers)


def _models_of(scorer: str) -> tuple[str, ...]:
    return () if scorer == "text_area" else (scorer, "clip")
