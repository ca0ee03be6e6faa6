"""A dataset -> the content of its page: clips as columns, sources, rules, marks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.sql import quoted
from curation.dataset.tables import Dataset
from curation.report.captions import caption_versions
from curation.report.columns import ReportColumn, report_columns
from curation.report.group_rules import groups_of
from curation.report.overview import overview, rejected_sources
from curation.report.payload import Payload, Report
from curation.report.pictures import BUDGET_BYTES, pictures
from curation.report.rows import LONGEST_TEXT, json_values, table_of
from curation.report.shards import shards_of
from curation.report.sources import sources_of
from curation.selection.condition import read_condition
from curation.selection.funnel import judge
from curation.selection.groups import columns_read
from curation.selection.likeness import add_likes
from curation.selection.marks import dataset_marks
from curation.selection.rules import Like, Rules
from curation.selection.saved import Selection, load_selection, selected_ids
from curation.selection.thresholds import condition_outcome

MOST_CLIPS = 20_000
"""Clips in the page; a larger dataset is represented by a stratified sample of this size."""
LARGEST_FILE_BYTES = 39_000_000
"""Of data and pictures together; pictures are as large as the data leave room for."""
_NUMBER_BYTES, _TEXT_BYTES = 12 << 20, 24 << 20
"""Of all columns of numbers, and of all others, before compression. Lists can bring hundreds of columns."""
_BUCKETS, _STRATIFIED = 6, 5
"""Strata: buckets per score, and number of scores."""
_QUANTILES = 1_000


def build_report(
    dataset: Dataset,
    selection: str | None = None,
    against: str | None = None,
    *,
    most_clips: int = MOST_CLIPS,
    costs: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """Read the content of the page of a selection. Raises UserError if a selection does not exist.

    `costs`: stage, cpu_s and gpu_s of each stage, as recorded by the runs; empty: the CPU time in the sources table.
    """
    description = dataset.description()
    chosen = load_selection(dataset, selection) if selection else None
    other = load_selection(dataset, against) if against else None
    rules = _rules_of(chosen) if chosen else Rules(name="my-selection")
    payload = Payload()
    with dataset.connect() as connection:
        total, microseconds = judge(connection, ()).total()
        ruled = add_likes(dataset, connection, rules)
        columns = [_of_query(c, ruled) for c in report_columns(dataset, connection, ruled.rules, columns_read(rules))]
        clip_ids = _shown(connection, columns, total, most_clips)
        connection.register("shown_clips", pa.table({"clip_id": clip_ids, "place": np.arange(len(clip_ids))}))
        per_source = [column for column in columns if column.table == "sources" and column.kind == "other"]
        per_clip = [column for column in columns if column not in per_source]
        rows = _rows(connection, [column.name for column in per_clip])
        _check_one_each(dataset, rows, clip_ids)
        per_clip, left_out = _fitting(per_clip, rows)
        encoded = [column.described() | _encoded(payload, column, rows[column.name]) for column in per_clip]
        header: dict[str, Any] = {
            "dataset": without_credentials(dataset.url),
            "fingerprint": str(description["fingerprint"]),
            "name": rules.name,
            "total_clips": total,
            "total_microseconds": microseconds,
            "shown_clips": len(clip_ids),
            "columns": encoded,
            "left_out": left_out,
            "microseconds": payload.numbers(_microseconds(rows["duration_s"])),
            "sources": sources_of(connection, payload, per_source, rows["source_id"].to_pylist()),
            "shards": shards_of(dataset, payload, clip_ids),
            "rules": rules.as_given(),
            "queries": {name: like.query for name, like in rules.likes().items()},
            "groups": groups_of(payload, rules, clip_ids),
            "where": _where(connection, payload, rules.where, len(clip_ids)),
            "selection": _saved(chosen) if chosen else None,
            "marks": [asdict(mark) for mark in dataset_marks(dataset).marks],
            "against": _against(dataset, payload, other, clip_ids),
            "captions": caption_versions(dataset, connection),
            "overview": overview(dataset, connection) | {"costs": [dict(cost) for cost in costs]},
            "rejected": rejected_sources(connection),
            "quantiles": _quantiles(connection, payload, columns) if len(clip_ids) < total else {},
        }
    data = payload.encoded(header)
    room_bytes = max(0, (LARGEST_FILE_BYTES - len(data)) * 3 // 4)
    strips = pictures(dataset, clip_ids, budget_bytes=min(BUDGET_BYTES, room_bytes))
    return Report(
        data=data,
        pictures=strips.text,
        title=rules.name if chosen else "all clips",
        clips=total,
        shown=len(clip_ids),
        with_pictures=strips.clips,
    )


def _check_one_each(dataset: Dataset, rows: pa.Table, clip_ids: Sequence[str]) -> None:
    if rows.num_rows != len(clip_ids):
        raise UserError(
            f"a table of {dataset.url} has several rows for one clip or source: {rows.num_rows:,} rows for "
            f"{len(clip_ids):,} clips. A table under scores/ must have at most one row per clip_id."
        )


def _rules_of(selection: Selection) -> Rules:
    """The rules as written, with the queries of `like` as numbers; without likeness to clips that were removed."""
    rules = Rules.from_values(selection.rules, origin=selection.name)
    recorded = Rules.from_values(selection.resolved, origin=selection.name).like
    likes = (like.replace(embedding=known.embedding) for like, known in zip(rules.like, recorded, strict=True))
    return rules.replace(like=tuple(like for like in likes if like.embedding is not None))


def _of_query(column: ReportColumn, rules: Rules) -> ReportColumn:
    """The score of a `like`, which is in no table, with what it says; other columns as they are."""
    rule = rules.rules.get(column.name)
    if not isinstance(rule, Like):
        return column
    return replace(column, meaning=f"likeness to the {rule.query}", unit="cosine", bounds=(-1.0, 1.0))


def _shown(connection: duckdb.DuckDBPyConnection, columns: Sequence[ReportColumn], total: int, most: int) -> list[str]:
    """Sorted ids of the clips to show: all, or a sample that preserves the joint distribution of the scores.

    Clips are sorted by the bucket of each score, then by id, which starts with the hash of the source; every k-th is
    taken (systematic sampling).
    """
    if total <= most:
        ids = table_of(connection, "SELECT clip_id::VARCHAR AS clip_id FROM clips ORDER BY clip_id")
        return list(ids["clip_id"].to_pylist())
    names = [column.name for column in columns if column.slider][:_STRATIFIED]
    buckets: list[str] = []
    if names:
        counts = ", ".join(f"count({quoted(name)})" for name in names)
        [scored] = connection.execute(f"SELECT {counts} FROM ({joined_query(connection, names)})").fetchall()
        ranked = [quoted(name) for name, clips in zip(names, scored, strict=True) if clips]
        buckets = [f"ntile({_BUCKETS}) OVER (ORDER BY {name})" for name in ranked]
    order = ", ".join([*buckets, "clip_id"])
    rows = joined_query(connection, ["clip_id", *names])
    ids = table_of(connection, f"SELECT clip_id::VARCHAR AS clip_id FROM ({rows}) ORDER BY {order}")
    every = pa.array((np.arange(most) * ids.num_rows) // most)
    return sorted(ids["clip_id"].combine_chunks().take(every).to_pylist())


def _rows(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> pa.Table:
    listed = ", ".join(f"rows.{quoted(name)}" for name in names)
    query = joined_query(connection, ["clip_id", *names])
    return table_of(
        connection,
        f"SELECT {listed} FROM ({query}) AS rows JOIN shown_clips USING (clip_id) ORDER BY shown_clips.place",
    )


def _fitting(columns: Sequence[ReportColumn], rows: pa.Table) -> tuple[list[ReportColumn], list[str]]:
    """The columns that the page has room for (those of clips first, then scores, then sources), and the other names."""
    left = {True: _NUMBER_BYTES, False: _TEXT_BYTES}
    fitting: set[str] = set()
    order = {"clips": 0, "sources": 2}
    for column in sorted(columns, key=lambda column: order.get(column.table, 1)):
        values = rows[column.name]
        size_bytes = len(values) * (4 if column.kind == "single" else 8)
        if not column.numeric:
            size_bytes = values.unique().nbytes if column.kind == "text" else values.nbytes
        if size_bytes <= left[column.numeric]:
            left[column.numeric] -= size_bytes
            fitting.add(column.name)
    names = [column.name for column in columns if column.name not in fitting]
    return [column for column in columns if column.name in fitting], names


def _encoded(payload: Payload, column: ReportColumn, values: pa.ChunkedArray) -> dict[str, Any]:
    if column.numeric:
        return {"numbers": payload.numbers(_finite(values, column.kind))}
    if column.kind == "text":
        return payload.texts([text and text[:LONGEST_TEXT] for text in values.to_pylist()])
    return payload.values(json_values(values))


def _finite(values: pa.ChunkedArray, kind: str) -> NDArray[Any]:
    """Values in the precision of the column; null and infinite values, which count as unscored, become NaN."""
    dtype = np.float32 if kind == "single" else np.float64
    numbers = values.cast(pa.float32() if kind == "single" else pa.float64(), safe=False)
    finite = pc.fill_null(numbers, float("nan")).to_numpy().astype(dtype)
    finite[~np.isfinite(finite)] = np.nan
    return finite


def _microseconds(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Whole microseconds, as in the sums of `curation.selection.funnel`."""
    return np.round(pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy() * 1e6)


def _where(
    connection: duckdb.DuckDBPyConnection, payload: Payload, where: str | None, clips: int
) -> dict[str, Any] | None:
    """The SQL condition and its outcome per clip (KEPT, REMOVED, UNSCORED), because a browser cannot evaluate SQL."""
    if where is None:
        return None
    condition = read_condition(connection, where, joined_columns(connection))
    if condition.missing:
        return None
    query = joined_query(connection, ["clip_id", *sorted(condition.columns)])
    judged = table_of(
        connection,
        f"SELECT {condition_outcome(condition)} AS outcome "
        f"FROM ({query}) AS joined JOIN shown_clips USING (clip_id) ORDER BY shown_clips.place",
    )
    outcomes = judged["outcome"].to_numpy().astype(np.int32)
    assert len(outcomes) == clips
    return {"sql": where, "outcomes": payload.numbers(outcomes)}


def _saved(selection: Selection) -> dict[str, Any]:
    """What the page needs of the written selection: its funnel and totals, what was removed from it later, and whether
    marks were applied."""
    return {
        "name": selection.name,
        "clips": selection.clips,
        "seconds": selection.seconds,
        "total_clips": selection.total_clips,
        "removed_clips": selection.removed_clips,
        "funnel": [asdict(step) for step in selection.funnel],
        "marked": sum(selection.marks.values()),
    }


def _against(
    dataset: Dataset, payload: Payload, other: Selection | None, clip_ids: Sequence[str]
) -> dict[str, Any] | None:
    if other is None:
        return None
    ids = selected_ids(dataset, other.name)["clip_id"]
    member = pc.is_in(pa.array(clip_ids, pa.string()), ids.cast(pa.string()))
    groups = groups_of(payload, Rules.from_values(other.rules, origin=other.name), clip_ids)
    said = {"name": other.name, "rules": other.rules, "clips": other.clips, "seconds": other.seconds}
    return said | {"groups": groups, "member": payload.numbers(member.to_numpy(zero_copy_only=False).astype(np.int32))}


def _quantiles(
    connection: duckdb.DuckDBPyConnection, payload: Payload, columns: Sequence[ReportColumn]
) -> dict[str, Any]:
    """For each score over all clips: the number of clips that have it, and a thousand quantiles."""
    names = [column.name for column in columns if column.slider]
    if not names:  # parts rewritten by another tool have lost their metadata, and with it the polarity of scores
        return {}
    at = [i / _QUANTILES for i in range(_QUANTILES + 1)]
    values = [f"{quoted(name)}::DOUBLE" for name in names]
    aggregates = [
        f"{aggregate} FILTER (WHERE isfinite({value}))"
        for value in values
        for aggregate in (f"count({value})", f"quantile_cont({value}, {at})")
    ]
    [row] = connection.execute(f"SELECT {', '.join(aggregates)} FROM ({joined_query(connection, names)})").fetchall()
    return {
        name: {"scored": scored, "quantiles": payload.numbers(np.array(quantiles, np.float64))}
        for name, scored, quantiles in zip(names, row[::2], row[1::2], strict=True)
        if scored
    }
