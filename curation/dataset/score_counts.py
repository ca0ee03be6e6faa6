"""Counts of the scores of a dataset: clips without a score and why, and what each version covers."""

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb

from curation.dataset.joined import VERSIONS, joined_columns, joined_query, listed_columns, own_columns
from curation.dataset.schemas import CLIPS
from curation.dataset.sql import quoted
from curation.scores.columns import FAILED, LEFT_OUT, NOT_SCORED, SCORES


@dataclass(frozen=True, kw_only=True)
class VersionCount:
    """A version of a score."""

    scorer: str
    version: int
    counted: bool
    """Whether the score's name stands for it."""
    clips: int
    """Clips that it has a row for."""
    failed: int


def unscored_clips(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Score -> clips whose score failed or that its version does not cover; without scores that were skipped.

    Only scores of our own schemas: those of the clips table, and those with versions.
    """
    known = listed_columns(joined_columns(connection))
    kinds = [
        name
        for name, (view, original, _) in known.items()
        if name.endswith("_error_kind") and (original in CLIPS.names if view == "clips" else _is_version(view))
    ]
    if not kinds:
        return {}
    counts = ", ".join(
        f"count(*) FILTER ({quoted(kind)} IN ('{FAILED}', '{NOT_SCORED}')), "
        f"count(*) FILTER ({quoted(kind)} = '{LEFT_OUT}')"
        for kind in kinds
    )
    row = connection.execute(f"SELECT {counts} FROM ({joined_query(connection, kinds)})").fetchone()
    assert row is not None
    return {
        kind.removesuffix("_error_kind"): unscored
        for kind, unscored, left_out in zip(kinds, row[::2], row[1::2], strict=True)
        if not left_out
    }


def _is_version(view: str) -> bool:
    """Whether a view is of a version of a score."""
    return view.startswith(f"{SCORES}_") and "@" in view


def commonest_reason(connection: duckdb.DuckDBPyConnection, score: str) -> tuple[str, int]:
    """The most common error of the clips that `unscored_clips` counts, of which there must be one, and its clips."""
    error, kind = f"{score}_error", f"{score}_error_kind"
    row = connection.execute(
        f"SELECT {quoted(error)}, count(*) FROM ({joined_query(connection, [error, kind])}) "
        f"WHERE {quoted(kind)} IN ('{FAILED}', '{NOT_SCORED}') GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
    ).fetchone()
    assert row is not None
    return str(row[0]), row[1]


def commonest_failure(connection: duckdb.DuckDBPyConnection, scorer: str, view: str) -> str | None:
    """The most common error of the clips for which a version of a scorer or captioner failed; None if it has none."""
    error, kind = quoted(f"{scorer}_error"), quoted(f"{scorer}_error_kind")
    row = connection.execute(
        f"SELECT {error} FROM {quoted(view)} WHERE {kind} = '{FAILED}' GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
    ).fetchone()
    return None if row is None else str(row[0])


def version_counts(connection: duckdb.DuckDBPyConnection) -> tuple[VersionCount, ...]:
    """Every version of every score that has one outside the clips table, oldest first."""
    versions = connection.execute(
        f"SELECT scorer, version, view, counted FROM {VERSIONS} WHERE scorer IN "
        f"(SELECT scorer FROM {VERSIONS} WHERE starts_with(view, '{SCORES}_')) ORDER BY scorer, version"
    ).fetchall()
    counts = []
    for scorer, version, view, counted in versions:
        clips, failed = clips_and_failed(connection, scorer, view)
        counts.append(VersionCount(scorer=scorer, version=version, counted=counted, clips=clips, failed=failed))
    return tuple(counts)


def clips_and_failed(connection: duckdb.DuckDBPyConnection, scorer: str, view: str) -> tuple[int, int]:
    """The clips that a version of a score or captioner has a row for, and those among them for which it failed."""
    kind = quoted(f"{scorer}_error_kind")
    [(clips, failed)] = connection.execute(
        f"SELECT count(*), count(*) FILTER ({kind} = '{FAILED}') FROM {quoted(view)} SEMI JOIN clips USING (clip_id)"
    ).fetchall()
    return clips, failed


def versions_of(connection: duckdb.DuckDBPyConnection, columns: Iterable[str]) -> dict[str, int]:
    """Column of the joined view -> version of the score that it comes from; without columns that have none."""
    known = joined_columns(connection)
    rows = connection.execute(f"SELECT scorer, version, view FROM {VERSIONS}").fetchall()
    of_views = {view: version for _, version, view in rows if view != "clips"}
    of_clips = {name: version for scorer, version, view in rows if view == "clips" for name in own_columns(scorer)}
    found = {}
    for column in sorted({*columns} & known.keys()):
        view, original, _ = known[column]
        version = of_clips.get(original) if view == "clips" else of_views.get(view)
        if version is not None:
            found[column] = version
    return found
