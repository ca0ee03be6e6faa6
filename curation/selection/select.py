"""Apply rules: clip ids and a funnel of what each rule removed (paper 3.1). Computes no scores."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.commits import current_version
from curation.dataset.score_counts import versions_of
from curation.dataset.sql import batches
from curation.dataset.tables import Dataset
from curation.selection.funnel import Judged, funnel, judge, judged_rows, passing
from curation.selection.groups import BALANCE, MAX_PER
from curation.selection.likeness import with_queries
from curation.selection.marks import MARKS, Marks, check_marks, keep_marks
from curation.selection.plan import Plan, plan_tests
from curation.selection.rules import Rules
from curation.selection.saved import SELECTION, Selection, lines_of, selection_file
from curation.selection.thresholds import WHERE

_SELECTED = pa.schema([("clip_id", pa.string()), ("source_id", pa.string()), ("uri", pa.string())])
_BATCH_ROWS = 100_000


def select_clips(
    dataset: Dataset,
    rules: Rules,
    *,
    name: str | None = None,
    marks: Marks | None = None,
    allow_missing: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> Selection:
    """Select clips and write `selections/NAME.parquet` (clip_id, source_id, uri, scores of `like`; sorted by clip_id)
    and NAME.json.

    Writes are atomic; the JSON is written last and marks the selection as complete. `marks` are verdicts on single
    clips, which the dataset keeps. `allow_missing` skips rules on missing columns, as the funnel notes; `dry_run`
    writes nothing. Raises UserError for a missing or non-numeric column, for a `where` that DuckDB rejects, for marks
    of another dataset, and, without `replace`, if the name holds a selection with different rules or clips.
    """
    rules = rules.named(name) if name else rules
    description = dataset.description()
    if marks:
        check_marks(marks, description["fingerprint"], dataset.url)
    path = selection_file(dataset, rules.name, "json")
    rules = with_queries(dataset, rules)
    likes = list(rules.likes())
    older = storage.read_json_if_exists(dataset.fs, path, SELECTION.validate_python)
    seen = current_version(dataset)
    with dataset.connect() as connection:
        plan = plan_tests(dataset, connection, rules, marks, allow_missing=allow_missing)
        rules = plan.rules.model_copy(update={"rules": {n: r for n, r in plan.rules.rules.items() if n not in likes}})
        judged = judge(connection, plan.tests)
        chosen, total = judged.chosen(), judged.total()
        versions = versions_of(connection, {column for test in plan.tests for column in (*test.columns, *test.reads)})
        steps = funnel(connection, plan.rules, judged, plan.skipped, {MARKS: _asked_by(marks)} if marks else None)
        clips = _chosen_clips(connection, judged, rules.where, likes)
        protected = None if replace else older
        digest = _digest_of(clips) if dry_run else _write_clips(dataset, rules, clips, protected, likes)
    selection = Selection(
        name=rules.name,
        clips=chosen.clips,
        seconds=chosen.microseconds / 1e6,
        total_clips=total.clips,
        total_seconds=total.microseconds / 1e6,
        funnel=steps,
        rules=rules.as_given(),
        resolved=_resolved_rules(plan),
        clips_sha256=digest,
        marks=marks.counts() if marks else {},
        versions=versions,
        dataset_version=seen.version,
        dataset_changing=seen.changing or current_version(dataset) != seen,
    )
    if not dry_run:
        if marks:
            keep_marks(dataset, marks)
        content = {"dataset_fingerprint": description["fingerprint"], **asdict(selection)}
        storage.write_json(dataset.fs, path, content)
    return selection


def _chosen_clips(
    connection: duckdb.DuckDBPyConnection, judged: Judged, where: str | None, likes: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The selected clips in order, with their scores of `like`. Raises UserError at the end if their number differs
    from the count."""
    columns = ", ".join([*(f"{name}::VARCHAR AS {name}" for name in _SELECTED.names), *likes])
    rows = judged_rows(connection, judged.tests, [*_SELECTED.names, *likes])
    clips = 0
    query = f"SELECT {columns} FROM ({rows}) WHERE {passing(judged.tests)} ORDER BY clip_id"
    for batch in batches(connection, query, _BATCH_ROWS):
        clips += batch.num_rows
        yield batch
    if clips != judged.chosen().clips:
        raise UserError(
            f"{judged.chosen().clips} clips passed when counted but {clips} when written: `where` must be "
            f"deterministic, got {where!r}"
        )


def _digest_of(clips: Iterable[pa.RecordBatch], write: Callable[[pa.RecordBatch], object] = lambda _: None) -> str:
    """The digest of the clip ids; each batch is passed on to `write`."""
    digest = hashlib.sha256()
    for batch in clips:
        write(batch)
        digest.update(lines_of(batch.column(0)))
    return digest.hexdigest()


def _write_clips(
    dataset: Dataset, rules: Rules, clips: Iterable[pa.RecordBatch], older: Selection | None, likes: Sequence[str]
) -> str:
    """Write the selected clips and return the digest of their ids. Raises UserError if `older` is a different
    selection."""
    with storage.atomic_write(dataset.fs, selection_file(dataset, rules.name, "parquet")) as file:
        schema = pa.schema([*_SELECTED, *((name, pa.float32()) for name in likes)])
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            digest = _digest_of(clips, writer.write_batch)
        if older is not None:
            _check_same(dataset, older, rules, digest)
        # An older selection of this name stays complete until the new clips are about to take its place.
        storage.remove(dataset.fs, selection_file(dataset, rules.name, "json"))
    return digest


def _check_same(dataset: Dataset, older: Selection, rules: Rules, digest: str) -> None:
    if older.rules == rules.as_given() and older.clips_sha256 == digest:
        return
    name, what = rules.name, "other clips" if older.rules == rules.as_given() else "other rules"
    folders = [folder.rpartition("/")[2] for folder in storage.list_folders(dataset.fs, dataset.file("shards"))]
    shards = [f"shards/{folder}" for folder in folders if folder in (name, f"{name}-images")]
    used = f", from which {' and '.join(shards)} were made" if shards else ""
    raise UserError(
        f"selection {name!r} already exists with {what} ({older.clips:,} clips{used}): choose another --name, or pass "
        "--replace to overwrite it"
    )


def _asked_by(marks: Marks) -> str:
    return ", ".join(f"{verdict} {clips:,}" for verdict, clips in marks.counts().items())


def _resolved_rules(plan: Plan) -> dict[str, Any]:
    """The rules that ran, with bounds and queries as numbers."""
    rules, likes = plan.rules, plan.rules.likes()
    bounded = {
        test.name: test.resolved() | ({"unscored": "keep"} if test.keeps_unscored else {})
        for test in plan.tests
        if test.name in rules.rules
    }
    ran = {test.name for test in plan.tests}
    groups = rules.model_dump(include={"max_per", "balance"}, exclude_defaults=True)
    limits = {name: limit for name, limit in groups.get(MAX_PER, {}).items() if f"{MAX_PER} {name}" in ran}
    queries = {"text", "clip", "picture", "embedding"}
    resolved: dict[str, Any] = {
        "name": rules.name,
        "rules": {name: bounds for name, bounds in bounded.items() if name not in likes},
        "like": [like.model_dump(include=queries, exclude_none=True) | bounded[name] for name, like in likes.items()],
        WHERE: rules.where if WHERE in ran else None,
        MAX_PER: limits,
        BALANCE: groups.get(BALANCE) if BALANCE in ran else None,
    }
    return {key: value for key, value in resolved.items() if value or key == "rules"}
