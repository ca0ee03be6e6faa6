"""Versions of a dataset: each change of its tables is a commit with a number.

    commits/000007.json    what changed, when, and by which command
    commits/pending.json   a change in progress, or that of a run that died

Parts of tables appear one by one, as always; a commit is the line drawn under them. A run that dies leaves none: the
rerun of its command makes one for both, and any other command first makes one that is marked as interrupted.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from clipmill import storage
from clipmill.errors import RunStopped, UserError
from curation.dataset.tables import Dataset

_FOLDER, _PENDING = "commits", "pending.json"
_FILE = re.compile(r"([0-9]{6,12})\.json")
_READS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a run does to a dataset. A rerun with an equal one finishes what it began."""

    command: str
    """Of clipmill, such as "curate"."""
    what: str = ""
    """What it is about, such as "aesthetic, version 2"."""
    reason: str | None = None
    """Why, where a person said so."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A version of a dataset, as recorded."""

    version: int
    """From 1, without gaps."""
    id: str
    command: str
    what: str = ""
    reason: str | None = None
    interrupted: bool = False
    """Whether the run died, and a later one recorded what it had changed."""
    clipmill: str
    """Version of clipmill."""
    started: str
    """Time in UTC, ISO 8601."""
    finished: str
    rows: dict[str, int] = field(default_factory=dict)
    """Table -> rows, such as "clips" or "scores/NAME/v1"."""
    changes: dict[str, int] = field(default_factory=dict)
    """Table that changed -> rows more than in the version before, negative if fewer. 0: rows were replaced."""
    files: dict[str, str] = field(default_factory=dict)
    """Table -> digest of the names and versions of its files: the next commit only counts the rows of other files."""


@dataclass(frozen=True, kw_only=True)
class DatasetVersion:
    """The version that a reader of a dataset sees."""

    version: int
    """0 before the first commit."""
    changing: bool
    """Whether a run is changing the tables, or died while it did: they may hold more than the version, or less."""


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A change that has begun."""

    id: str
    change: Change
    clipmill: str
    started: str
    before: dict[str, dict[str, str]]
    """Table -> part -> mark of its file before the change; beside them, JSON by its name and content."""


_COMMIT, _PENDING_CHANGE = TypeAdapter(Commit), TypeAdapter(_Pending)


def read_commits(dataset: Dataset) -> list[Commit]:
    """All commits, oldest first. Raises UserError if one is damaged or missing."""
    numbers = _numbers(dataset)
    if numbers != list(range(1, len(numbers) + 1)):
        raise UserError(f"{dataset.file(_FOLDER)} is damaged: expected commits 1 to {numbers[-1]}, got {len(numbers)}")
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(pool.map(lambda number: _read(dataset, number), numbers))


def latest_commit(dataset: Dataset) -> Commit | None:
    """The newest commit. Raises UserError if it is damaged."""
    numbers = _numbers(dataset)
    return _read(dataset, numbers[-1]) if numbers else None


def current_version(dataset: Dataset) -> DatasetVersion:
    """The version of the tables now."""
    # First the pending change: it is removed after its commit has been written.
    pending = _pending(dataset)
    latest = latest_commit(dataset)
    changing = pending is not None and (latest is None or latest.id != pending.id)
    return DatasetVersion(version=latest.version if latest else 0, changing=changing)


def unrecorded_change(dataset: Dataset) -> Change | None:
    """The change of a run that is under way, or died before its commit."""
    pending = _pending(dataset)
    return pending.change if pending is not None and not _is_committed(dataset, pending) else None


@contextmanager
def recorded(dataset: Dataset, change: Change, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Record what the block changes in the tables as one commit, when it ends; none if it changes nothing.

    Call it only when this run owns the dataset; `check` raises if another run owns it by now. Raises RunStopped if
    another run has recorded a commit meanwhile.
    """
    pending = _begin(dataset, change, check)
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the error that ended the block takes precedence
            if _files(dataset) == pending.before:
                check()
                _forget(dataset)
        raise
    _finish(dataset, pending, check)


def _begin(dataset: Dataset, change: Change, check: Callable[[], None]) -> _Pending:
    """Note the change before it is made, or go on with the one that a killed run noted."""
    pending = _pending(dataset)
    if pending is not None and pending.change == change and not _is_committed(dataset, pending):
        return pending
    if pending is not None:
        _finish(dataset, pending, check, interrupted=True)
    pending = _Pending(
        id=uuid.uuid4().hex,
        change=change,
        clipmill=installed_version("clipmill"),
        started=_now(),
        before=_files(dataset),
    )
    check()
    storage.write_json(dataset.fs, dataset.file(_FOLDER, _PENDING), asdict(pending))
    return pending


def _finish(dataset: Dataset, pending: _Pending, check: Callable[[], None], *, interrupted: bool = False) -> None:
    """Write the commit of a change unless it is there, or nothing has changed."""
    after = _files(dataset)
    if after != pending.before and not _is_committed(dataset, pending):
        latest = latest_commit(dataset)
        before = latest.rows if latest else {}
        changed = {t for t in pending.before.keys() | after.keys() if pending.before.get(t) != after.get(t)}
        counted = {t: _digest(files) for t, files in pending.before.items()} if latest else {}
        known = {t: n for t, n in before.items() if latest and latest.files.get(t) == counted.get(t)}
        rows = {t: _rows(dataset, t, known.get(t), pending.before.get(t, {}), files) for t, files in after.items()}
        commit = Commit(
            version=latest.version + 1 if latest else 1,
            id=pending.id,
            **asdict(pending.change),
            interrupted=interrupted,
            clipmill=pending.clipmill if interrupted else installed_version("clipmill"),
            started=pending.started,
            finished=_now(),
            rows=rows,
            files={table: _digest(files) for table, files in after.items()},
            changes={table: rows.get(table, 0) - before.get(table, 0) for table in sorted(changed)},
        )
        check()
        try:
            storage.create_bytes(dataset.fs, _path(dataset, commit.version), storage.json_bytes(asdict(commit)))
        except FileExistsError as error:
            raise RunStopped(
                f"another run recorded version {commit.version} of {dataset.url} meanwhile; stopping. Rerun the same "
                "command to record this one."
            ) from error
    _forget(dataset)


def _forget(dataset: Dataset) -> None:
    storage.remove(dataset.fs, dataset.file(_FOLDER, _PENDING))


def _is_committed(dataset: Dataset, pending: _Pending) -> bool:
    latest = latest_commit(dataset)
    return latest is not None and latest.id == pending.id


def _files(dataset: Dataset) -> dict[str, dict[str, str]]:
    """Table -> committed part -> size and version of its file; name of JSON files beside them -> digest."""
    found = {}
    for table in (*dataset.versioned_tables(), "removed"):
        versions = dataset.part_versions(table)
        record = table.rpartition("/")[0]  # of scores with versions: which of them counts
        for path in storage.list_files(dataset.fs, dataset.file(record), ".json") if record and versions else ():
            versions[path.rpartition("/")[2]] = hashlib.sha256(storage.read_bytes(dataset.fs, path)).hexdigest()
        if versions:
            found[table] = versions
    return found


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def _rows(dataset: Dataset, table: str, known: int | None, before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Rows of a table, of which `known` were in the files `before`. Only new files are read, if the others stayed."""
    grew = known is not None and before.items() <= after.items()
    parts = [part for part in dataset.parts(table) if not (grew and part in before)]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return (known if grew and known else 0) + sum(pool.map(lambda p: _rows_of_part(dataset, table, p), parts))


def _rows_of_part(dataset: Dataset, table: str, part: str) -> int:
    path = dataset.file(table, f"{part}.parquet")
    with storage.explained("read", dataset.fs, path), dataset.fs.open(path, "rb") as file:
        try:
            return int(pq.read_metadata(file).num_rows)
        except pa.ArrowException as error:
            raise UserError(f"{storage.shown(dataset.fs, path)} is damaged: {error}") from error


def _numbers(dataset: Dataset) -> list[int]:
    names = (path.rpartition("/")[2] for path in storage.list_files(dataset.fs, dataset.file(_FOLDER), ".json"))
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def _read(dataset: Dataset, number: int) -> Commit:
    def parse(values: dict[str, Any]) -> Commit:
        commit = _COMMIT.validate_python(values)
        if commit.version != number:
            raise ValueError(f"expected version {number}, got {commit.version}")
        return commit

    return storage.read_json(dataset.fs, _path(dataset, number), parse)


def _pending(dataset: Dataset) -> _Pending | None:
    return storage.read_json_if_exists(dataset.fs, dataset.file(_FOLDER, _PENDING), _PENDING_CHANGE.validate_python)


def _path(dataset: Dataset, number: int) -> str:
    return dataset.file(_FOLDER, f"{number:06d}.json")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
