"""What a dataset holds: counts that reconcile, from its tables."""

import json
from dataclasses import dataclass, field
from typing import Any

from curation import storage
from curation.captions import NOTHING_TO_MERGE
from curation.select import Selection, load_selection, selection_names
from curation.tables import Dataset

_LOSSES = ("lost_transition_s", "lost_blank_s", "lost_short_s", "lost_keyframe_s", "lost_damage_s")


@dataclass(frozen=True, kw_only=True)
class Status:
    """sources = sources_ok + rejected; video_s = clip_s + lost_s. Times in seconds, CPU seconds where it says so."""

    dataset: str
    sources: int
    sources_ok: int
    rejected: dict[str, int]
    """error_kind -> sources."""
    clips: int
    takes: dict[str, int]
    """copy and encode -> clips."""
    video_s: float
    clip_s: float
    lost_s: dict[str, float]
    scan_cpu_s: float
    score_cpu_s: float
    unscored: dict[str, int]
    """Score column -> clips without it, but for scores that were left out on purpose."""
    left_out: tuple[str, ...] = ()
    """Scores that the dataset was curated without."""
    captions_failed: dict[str, int] = field(default_factory=dict)
    """Source of captions -> captions that failed."""
    notices: tuple[str, ...] = ()
    """What to know of the models that scored it."""
    selections: list[Selection] = field(default_factory=list)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Shard folder -> its index."""


def status(dataset: Dataset) -> Status:
    """Read the counts. Raises UserError where there is no dataset."""
    dataset.open()
    with dataset.connect() as connection:

        def counts(query: str) -> dict[str, int]:
            return dict(connection.execute(query).fetchall())

        sums = ", ".join(
            f"coalesce(sum({c}), 0)" for c in ("duration_s", "clip_s", "scan_cpu_s", "score_cpu_s", *_LOSSES)
        )
        totals = connection.execute(f"SELECT count(*), count_if(status = 'ok'), {sums} FROM sources").fetchone()
        rejected = counts(
            "SELECT error_kind, count(*) FROM sources WHERE status = 'rejected' GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        takes = counts("SELECT take, count(*) FROM clips GROUP BY 1 ORDER BY 1")
        errors = [row[0] for row in connection.execute("DESCRIBE clips").fetchall() if row[0].endswith("_error")]
        failed = counts(
            "SELECT c.source, count(*) FROM (SELECT unnest(captions) AS c FROM clips) WHERE c.text IS NULL "
            f"AND NOT starts_with(c.error, '{NOTHING_TO_MERGE}') "
            "GROUP BY 1 ORDER BY 1"
        )
        missing = ", ".join(f"count({error})" for error in errors)
        unscored = connection.execute(f"SELECT {missing} FROM clips").fetchone()
    assert totals is not None
    assert unscored is not None
    clips, counted = sum(takes.values()), dict(zip((e.removesuffix("_error") for e in errors), unscored, strict=True))
    left_out = tuple(dataset.description()["config"].get("without", ()))
    no_embedding = ("embedding",) if {"aesthetic", "similarity"} <= set(left_out) else ()
    sources, ok, video_s, clip_s, scan_cpu_s, score_cpu_s, *lost = totals
    return Status(
        dataset=dataset.url,
        sources=sources,
        sources_ok=ok or 0,
        rejected=rejected,
        clips=clips,
        takes=takes,
        video_s=video_s,
        clip_s=clip_s,
        lost_s=dict(zip((name.removeprefix("lost_").removesuffix("_s") for name in _LOSSES), lost, strict=True)),
        scan_cpu_s=scan_cpu_s,
        score_cpu_s=score_cpu_s,
        unscored={name: n for name, n in counted.items() if not (n == clips and name in (*left_out, *no_embedding))},
        left_out=left_out,
        captions_failed=failed,
        notices=tuple(models_of(dataset).get("notices", ())),
        selections=[load_selection(dataset, name) for name in selection_names(dataset)],
        shards=_shards(dataset),
    )


def models_of(dataset: Dataset) -> dict[str, Any]:
    """What models.json says of the models and settings that made a dataset; nothing where there is none."""
    try:
        return dict(json.loads(storage.read_bytes(dataset.fs, dataset.file("models.json"))))
    except FileNotFoundError:
        return {}


def _shards(dataset: Dataset) -> dict[str, dict[str, Any]]:
    indexes = {}
    for folder in storage.list_folders(dataset.fs, dataset.file("shards")):
        try:
            index = json.loads(storage.read_bytes(dataset.fs, f"{folder}/index.json"))
        except FileNotFoundError:
            continue  # begun, not finished
        indexes[folder.rpartition("/")[2]] = {key: index[key] for key in ("kind", "selection", "totals")}
    return indexes
