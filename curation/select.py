"""Rules -> clip ids and a funnel: what stays, and what each rule removed (paper 3.1). No score is computed here."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from curation import storage
from curation.config import unknown_name
from curation.errors import UserError
from curation.rules import Rule, Rules, load_rules
from curation.tables import Dataset, joined_query, quoted
from curation.thresholds import REMOVED, UNSCORED, WHERE, Test, tests_of

__all__ = [
    "FunnelStep",
    "Rule",
    "Rules",
    "Selection",
    "funnel_rows",
    "load_rules",
    "load_selection",
    "select",
    "selected_clips",
    "selection_names",
]

_FOLDER = "selections"
_BATCH_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """What one rule did. `removed_alone` and `unscored` count in all clips, the rest after the rules before it."""

    rule: str
    """The column, or "where"."""
    asked: str
    thresholds: dict[str, float | None] = field(default_factory=dict)
    """Each bound as a number; None where no clip has the score."""
    removed_alone: int = 0
    removed: int = 0
    unscored: int = 0
    unscored_dropped: int = 0
    clips_left: int
    seconds_left: float
    skipped: str | None = None
    """Why the rule was not applied, if it was not."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection as written: total_clips = clips + what every step removed + what it dropped as unscored."""

    name: str
    clips: int
    seconds: float
    total_clips: int
    total_seconds: float
    funnel: tuple[FunnelStep, ...]
    rules: dict[str, Any]
    """As asked for."""
    resolved: dict[str, Any]
    """The same with every bound as a number: usable as rules on another dataset."""
    clips_sha256: str
    """Over the chosen clip ids in order: the same digest, the same clips."""

    @property
    def empty(self) -> bool:
        """Whether no clip passed. It is written all the same; the caller should make it an error."""
        return self.clips == 0


def select(dataset: Dataset, rules: Rules, *, name: str | None = None, allow_missing: bool = False) -> Selection:
    """Choose clips and write `selections/NAME.parquet` (clip_id, source_id, uri; sorted by clip_id) and NAME.json.

    Each file is whole or absent; the JSON comes last and marks the selection as complete. With `allow_missing`,
    rules on columns that the dataset does not have are skipped, and the funnel says so. Raises UserError for a
    column that is not there or holds no numbers, and for a `where` that DuckDB refuses.
    """
    rules = rules.named(name) if name else rules
    description = dataset.description()
    with dataset.connect() as connection:
        tests, skipped = tests_of(connection, rules, allow_missing=allow_missing)
        counts = _count(connection, tests)
        chosen = [code for code in counts if _passes(tests, code)]
        digest = _write_clips(dataset, connection, rules, tests, {code: counts[code] for code in chosen})
    selection = Selection(
        name=rules.name,
        clips=sum(counts[code].clips for code in chosen),
        seconds=sum(counts[code].microseconds for code in chosen) / 1e6,
        total_clips=sum(count.clips for count in counts.values()),
        total_seconds=sum(count.microseconds for count in counts.values()) / 1e6,
        funnel=_funnel(rules, tests, skipped, counts),
        rules=rules.as_given(),
        resolved=_resolved_rules(rules, tests),
        clips_sha256=digest,
    )
    content = {"dataset_fingerprint": description["fingerprint"], **asdict(selection)}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(dataset.fs, _path(dataset, rules.name, "json"), text.encode())
    return selection


def load_selection(dataset: Dataset, name: str) -> Selection:
    """A selection written before. Raises UserError, naming those that are there, when it is not one of them."""
    known = selection_names(dataset)
    if name not in known:
        raise UserError(unknown_name("selection", name, known) + " `clipmill select` makes one.")
    return storage.read_json(dataset.fs, _path(dataset, name, "json"), _SELECTION.validate_python)


def selection_names(dataset: Dataset) -> list[str]:
    """Names of the complete selections, sorted."""
    files = storage.list_files(dataset.fs, dataset.file("selections"), ".json")
    return [file.rpartition("/")[2].removesuffix(".json") for file in files]


def selected_clips(
    dataset: Dataset, name: str, columns: Sequence[str] | None = None, *, batch_rows: int = 10_000
) -> Iterator[pa.RecordBatch]:
    """The rows of the joined view (or some of its columns) for the selected clips, sorted by clip_id."""
    load_selection(dataset, name)
    chosen = storage.read_parquet(dataset.fs, _path(dataset, name, "parquet"), ["clip_id"])
    with dataset.connect() as connection:
        connection.register("selected", chosen)
        wanted = ", ".join(map(quoted, columns)) if columns else "*"
        rows = joined_query(connection, ["clip_id", *columns] if columns else None)
        query = f"SELECT {wanted} FROM ({rows}) SEMI JOIN selected USING (clip_id) ORDER BY clip_id"
        yield from _batches(connection, query, batch_rows)


def funnel_rows(selection: Selection) -> list[dict[str, Any]]:
    """The funnel as rows for a table: first all clips, then each rule in order."""
    start = FunnelStep(
        rule="all clips", asked="", clips_left=selection.total_clips, seconds_left=selection.total_seconds
    )
    return [asdict(step) for step in (start, *selection.funnel)]


_SELECTION = TypeAdapter(Selection)


class _Count(NamedTuple):
    clips: int
    microseconds: int


def _rows(connection: duckdb.DuckDBPyConnection, tests: Sequence[Test], columns: Sequence[str]) -> str:
    """SQL for those columns and a `code` per clip: its outcome under each test, as digits to the base 3."""
    used = dict.fromkeys([*columns, *(c for t in tests for c in sorted(t.columns))])
    code = " + ".join(f"{3**i}::HUGEINT * ({t.outcome})" for i, t in enumerate(tests)) or "0::HUGEINT"
    listed = ", ".join(map(quoted, columns))
    return f"SELECT {listed}, {code} AS code FROM ({joined_query(connection, used)}) AS joined"


def _count(connection: duckdb.DuckDBPyConnection, tests: Sequence[Test]) -> dict[int, _Count]:
    """Clips and whole microseconds (whose sum does not depend on the order) per combination of outcomes."""
    counted = connection.execute(
        "SELECT code, count(*), coalesce(sum(round(duration_s * 1e6)::BIGINT), 0) "
        f"FROM ({_rows(connection, tests, ['duration_s'])}) GROUP BY code"
    ).fetchall()
    return {int(code): _Count(int(clips), int(microseconds)) for code, clips, microseconds in counted}


def _outcomes(tests: Sequence[Test], code: int) -> list[tuple[Test, int]]:
    return [(test, code // 3**i % 3) for i, test in enumerate(tests)]


def _passes(tests: Sequence[Test], code: int) -> bool:
    return all(test.keeps(outcome) for test, outcome in _outcomes(tests, code))


def _funnel(
    rules: Rules, tests: Sequence[Test], skipped: Mapping[str, str], counts: Mapping[int, _Count]
) -> tuple[FunnelStep, ...]:
    asked = {name: _asked(rule) for name, rule in rules.rules.items()}
    if rules.where is not None:
        asked[WHERE] = rules.where
    place = {test.name: i for i, test in enumerate(tests)}
    left, steps = dict(counts), []
    for name, request in asked.items():
        if name in skipped:
            steps.append(_step(name, request, left, skipped=skipped[name]))
            continue
        test, digit = tests[place[name]], 3 ** place[name]
        before = left
        left = {code: count for code, count in before.items() if test.keeps(code // digit % 3)}
        steps.append(
            _step(
                name,
                request,
                left,
                thresholds=dict(test.thresholds),
                removed_alone=_clips_with(counts, digit, REMOVED),
                removed=_clips_with(before, digit, REMOVED),
                unscored=_clips_with(counts, digit, UNSCORED),
                unscored_dropped=0 if test.keeps_unscored else _clips_with(before, digit, UNSCORED),
            )
        )
    return tuple(steps)


def _step(rule: str, asked: str, left: Mapping[int, _Count], **numbers: Any) -> FunnelStep:
    return FunnelStep(
        rule=rule,
        asked=asked,
        clips_left=sum(count.clips for count in left.values()),
        seconds_left=sum(count.microseconds for count in left.values()) / 1e6,
        **numbers,
    )


def _clips_with(counts: Mapping[int, _Count], digit: int, outcome: int) -> int:
    return sum(count.clips for code, count in counts.items() if code // digit % 3 == outcome)


def _asked(rule: Rule) -> str:
    bounds = [f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in rule.bounds().items()]
    return ", ".join([*bounds, *(["unscored keep"] if rule.unscored == "keep" else [])])


def _write_clips(
    dataset: Dataset,
    connection: duckdb.DuckDBPyConnection,
    rules: Rules,
    tests: Sequence[Test],
    chosen: Mapping[int, _Count],
) -> str:
    """Write the clips with the chosen outcome codes, and return the digest of their ids."""
    columns = ["clip_id", "source_id", "uri"]
    codes = ", ".join(f"{code}::HUGEINT" for code in chosen) or "NULL"
    rows = _rows(connection, tests, columns)
    query = f"SELECT {', '.join(columns)} FROM ({rows}) WHERE code IN ({codes}) ORDER BY clip_id"
    batches = _batches(connection, query, _BATCH_ROWS)
    clips, digest = 0, hashlib.sha256()
    with storage.atomic_write(dataset.fs, _path(dataset, rules.name, "parquet")) as file:
        with pq.ParquetWriter(file, batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                clips += batch.num_rows
                digest.update("".join(f"{clip_id}\n" for clip_id in batch.column(0).to_pylist()).encode())
        counted = sum(count.clips for count in chosen.values())
        if clips != counted:
            raise UserError(
                f"{counted} clips passed when counted but {clips} when written: `where` must give the same answer "
                f"each time, came {rules.where!r}"
            )
        # An older selection of this name stays complete until the new clips are about to take its place.
        storage.remove(dataset.fs, _path(dataset, rules.name, "json"))
    return digest.hexdigest()


def _batches(connection: duckdb.DuckDBPyConnection, query: str, rows: int) -> pa.RecordBatchReader:
    relation = connection.sql(query)
    assert relation is not None
    return relation.to_arrow_reader(rows)


def _resolved_rules(rules: Rules, tests: Sequence[Test]) -> dict[str, Any]:
    bounded = {
        test.name: test.resolved() | ({"unscored": "keep"} if test.keeps_unscored else {})
        for test in tests
        if test.name in rules.rules
    }
    where = {WHERE: rules.where} if any(test.name == WHERE for test in tests) else {}
    return {"name": rules.name, "rules": bounded} | where


def _path(dataset: Dataset, name: str, suffix: str) -> str:
    return dataset.file(_FOLDER, f"{name}.{suffix}")
