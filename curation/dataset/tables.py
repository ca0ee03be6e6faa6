"""The dataset folder: Parquet parts, written atomically, and DuckDB views of them.

A part is committed by its file in `sources/`, which is written last; clips and previews without it are ignored.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill import storage
from clipmill.errors import RunStopped, UserError
from clipmill.formats import DATASET
from clipmill.text import is_unicode
from curation.dataset.description import check_config, checked_description, describe
from curation.dataset.joined import VERSIONS, joined_query, view_of
from curation.dataset.joined_captions import run_order
from curation.dataset.metadata import add_metadata_columns
from curation.dataset.schemas import SCHEMAS
from curation.dataset.score_versions import (
    VERSIONS_FILE,
    RecordedVersion,
    counted_version,
    read_versions,
    scores_of_clips,
    table_of,
    write_versions,
)
from curation.dataset.sql import open_connection, sentence
from curation.scores.columns import CAPTIONS, SCORES

COSTS = "costs"
"""The folder of records of what runs cost."""
_DESCRIPTION = "dataset.json"
REMOVAL = "removal.json"
"""The note of a removal in progress, see `curation.dataset.removal`."""
_NOT_TABLES = {"commits", "removed", "report", "selections", "shards"}
"""Folders without tables."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ROWS_PER_GROUP = {"previews": 256}
"""Pictures are read some at a time; other tables have one group per part."""
_VERSION = re.compile(r"v[1-9][0-9]{0,8}")

_VERSION_ROWS = pa.schema(
    [
        ("scorer", pa.string()),
        ("version", pa.int32()),
        ("view", pa.string()),
        ("counted", pa.bool_()),
        ("created", pa.string()),
    ]
)


class Dataset:
    """One dataset folder, local or in an object store. Constructing the object does no I/O; it can be pickled.

    `while_removing`: open it even if a removal of sources was not finished. Only the removal itself does so.
    """

    def __init__(self, url: str, *, while_removing: bool = False) -> None:
        self.url = url
        self._while_removing = while_removing
        self.fs, self.path = storage.filesystem(url)
        self._listed: Callable[[str], tuple[list[str], list[str]]] = partial(storage.list_folder, self.fs)
        """Files and folders directly in a folder: in an object store each question is a request."""
        if not is_unicode(self.path):
            raise UserError(f"the name of a dataset folder must be valid UTF-8, got {url!r}")

    def __repr__(self) -> str:
        return f"Dataset({self.url!r})"

    def open(self) -> "Dataset":
        """Check that the dataset exists. Raises UserError if not, or if it has another format."""
        self.description()
        return self

    def exists(self) -> bool:
        """Whether the dataset exists. Raises UserError if it is damaged, or has another format."""
        return self._read_description() is not None

    def create_or_open(self, config: Mapping[str, Any]) -> "Dataset":
        """Start a dataset with this configuration (any JSON values), or go on with the one that is there.

        Raises UserError when the folder cannot be written, contains other files, or a dataset that was created
        with a different configuration (the message names what differs).
        """
        description = self._read_description()
        if description is None:
            self._create(config)
            return self
        check_config(description, config, self.url)
        self._check_writable()
        return self

    def description(self) -> dict[str, Any]:
        """What dataset.json says: format_version, fingerprint, config. Raises UserError where there is none."""
        values = self._read_description()
        if values is None:
            raise UserError(
                f"{self.url} is not a dataset: {_DESCRIPTION} not found. Create one with `clipmill curate`."
            )
        return values

    def file(self, *parts: str) -> str:
        """The path within `fs` of a file in this folder."""
        return "/".join((self.path, *parts))

    def write_part(self, table_name: str, part: str, table: pa.Table) -> None:
        """Write one Parquet part atomically; an existing part of the same name is replaced.

        `table_name` is "previews", "clips", "sources" (write them in this order: the sources part commits the three),
        "scores/NAME", or "scores/NAME/vN" and "captions/NAME/vN" for a version of a score or a captioner, with a
        `clip_id` column. Raises ValueError for a table that does not match its schema.
        """
        if table_name in SCHEMAS:
            table = _fitted(table, SCHEMAS[table_name])
        elif not _is_score_table(table_name):
            raise ValueError(f"unknown table {table_name!r}")
        elif "clip_id" not in table.column_names:
            raise ValueError(f"{table_name} needs a clip_id column, got {table.column_names}")
        with storage.atomic_write(self.fs, self.file(table_name, f"{part}.parquet")) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=_ROWS_PER_GROUP.get(table_name))

    def read_part(
        self,
        table_name: str,
        part: str,
        columns: Sequence[str] | None = None,
        rows: NDArray[np.integer] | None = None,
    ) -> pa.Table:
        """Read one part, or some of its columns or rows, by increasing number. Raises UserError if the file is
        damaged."""
        return storage.read_parquet(self.fs, self.file(table_name, f"{part}.parquet"), columns, rows)

    def parts(self, table_name: str) -> list[str]:
        """Names of the committed parts of a table, sorted."""
        if table_name in SCHEMAS:
            # Listed first: whatever is committed by now has its other parts in place.
            committed = self._present("sources")
            return sorted(committed if table_name == "sources" else committed & self._present(table_name))
        return sorted(self._present(table_name))

    def part_versions(self, table_name: str) -> dict[str, str]:
        """Committed part of a table -> size and version (etag or modification time) of its file."""
        committed = set(self.parts(table_name))
        versions = storage.file_versions(self.fs, self.file(table_name), ".parquet")
        parts = {path.rpartition("/")[2].removesuffix(".parquet"): version for path, version in versions.items()}
        return {part: version for part, version in parts.items() if part in committed}

    def tables(self) -> list[str]:
        """All tables, including those of other programs: folders of Parquet files, such as "clips" or "scores/NAME/v1".

        Selections, shards and the history of the dataset are not tables.
        """
        found, folders = [], [path for path in storage.list_folders(self.fs, self.path) if _is_of_tables(path)]
        while folders:
            folder = folders.pop()
            if storage.list_files(self.fs, folder, ".parquet"):
                found.append(folder[len(self.path) + 1 :])
            folders += storage.list_folders(self.fs, folder)
        return sorted(found)

    def versioned_tables(self) -> list[str]:
        """Those of `tables` that versions of the dataset count: not what a search keeps for the next one."""
        return [t for t in self.tables() if t.partition("/")[0] not in (SCORES, CAPTIONS) or _is_score_table(t)]

    def remove_unfinished(self) -> list[str]:
        """Remove uncommitted parts and temporary files; returns their names.

        Call it only when no run writes into this dataset.
        """
        committed, removed = self._present("sources"), []
        for part in sorted(committed - self._present("clips")):  # as if it had never been: a run does it again
            removed.append(self.file("sources", f"{part}.parquet"))
            storage.remove(self.fs, removed[-1])
            committed.discard(part)
        for table_name in (*SCHEMAS, *self.version_tables()):
            for part in sorted(self._present(table_name) - committed):
                removed.append(self.file(table_name, f"{part}.parquet"))
                storage.remove(self.fs, removed[-1])
            removed += storage.remove_leftovers(self.fs, self.file(table_name))
        removed += storage.remove_leftovers(self.fs, self.file(COSTS))
        return removed + storage.remove_leftovers(self.fs, self.path)

    def forget_rejected(self, source_ids: Collection[str]) -> int:
        """Remove the rejected ones of these sources from their parts; returns their number.

        They have no clips, so each part stays consistent. Call it only when no run writes into this dataset.
        """
        forgotten = 0
        for part in self.parts("sources"):
            table = self.read_part("sources", part)
            asked = pc.is_in(table["source_id"], pa.array(source_ids, pa.string()))
            remaining = table.filter(pc.invert(pc.and_(pc.equal(table["status"], "rejected"), asked)))
            if remaining.num_rows < table.num_rows:
                forgotten += table.num_rows - remaining.num_rows
                self.write_part("sources", part, remaining)
        return forgotten

    def statuses(self) -> dict[str, str]:
        """source_id -> "ok", or the error kind of a rejected source: of all that are committed, with their clips."""
        status_of: dict[str, str] = {}
        for part in self.parts("clips"):
            table = self.read_part("sources", part, ["source_id", "status", "error_kind"])
            kinds = pc.coalesce(table["error_kind"], table["status"])
            status_of |= zip(table["source_id"].to_pylist(), kinds.to_pylist(), strict=True)
        return status_of

    def uris(self) -> dict[str, str]:
        """source_id -> uri of every committed source."""
        uri_of: dict[str, str] = {}
        for part in self.parts("sources"):
            table = self.read_part("sources", part, ["source_id", "uri"])
            uri_of |= zip(table["source_id"].to_pylist(), table["uri"].to_pylist(), strict=True)
        return uri_of

    def score_names(self) -> list[str]:
        """Names of the tables without versions in scores/."""
        return [name for name in self._folders(SCORES, _NAME) if self.parts(f"{SCORES}/{name}")]

    def versioned(self) -> list[str]:
        """The scores and captioners with versions, as scores/NAME and captions/NAME."""
        roots = (f"{folder}/{name}" for folder in (SCORES, CAPTIONS) for name in self._folders(folder, _NAME))
        return [root for root in roots if self.file(root, VERSIONS_FILE) in self._listed(self.file(root))[0]]

    def recorded_versions(self, root: str) -> list[RecordedVersion]:
        """The versions of `root`, such as scores/NAME, oldest first. Raises UserError if their record is damaged."""
        return read_versions(self.fs, self.file(root, VERSIONS_FILE))

    def begun_versions(self, root: str) -> list[RecordedVersion]:
        """The recorded versions, without those whose run failed before its first row."""
        return [v for v in self.recorded_versions(root) if v.finished or self.parts(table_of(root, v.version))]

    def record_versions(self, root: str, versions: Sequence[RecordedVersion]) -> None:
        """Replace the record of the versions of `root`. Call it only when no other run writes into the dataset."""
        write_versions(self.fs, self.file(root, VERSIONS_FILE), versions)

    def version_tables(self) -> list[str]:
        """The tables of all versions of scores and captioners, with or without rows."""
        return [f"{root}/{v}" for root in self.versioned() for v in self._folders(root, _VERSION)]

    def counted_captions(self) -> dict[str, int]:
        """Captioner -> version that counts, of those with captions, in the order in which they run."""
        now = self._at_one_moment()
        versions = now._versions(now.views()).to_pylist()
        counted = {v["scorer"]: v["version"] for v in versions if v["counted"] and v["view"].startswith(CAPTIONS)}
        return dict(sorted(counted.items(), key=lambda each: run_order(each[0])))

    @contextmanager
    def connect(self, *, memory: str = "1GiB") -> Iterator[duckdb.DuckDBPyConnection]:
        """A DuckDB connection that sees the committed parts as views, for a `with` block.

        Views: `sources` with a column per metadata name, `clips`, one `scores_NAME` per added table, one
        `scores_NAME@N` or `captions_NAME@N` per version of a score or captioner, listed in `score_versions`, and
        `joined`, a row per clip with every column of them (see `joined_query`). It reads these tables and nothing else
        (see `curation.dataset.sql`); larger queries than `memory` spill to disk. Errors of DuckDB's in the block leave
        it as UserError.
        """
        now = self._at_one_moment()
        tables: dict[str, list[str] | pa.Table] = {
            view: now._part_files(name) or _empty(name) for view, name in now.views().items()
        }
        tables[VERSIONS] = now._versions(tables)
        try:
            with open_connection(self.fs, tables, memory=memory) as connection:
                add_metadata_columns(connection)
                connection.execute(f"CREATE VIEW joined AS {joined_query(connection)}")
                yield connection
        except duckdb.Error as error:
            files = (path for paths in tables.values() if not isinstance(paths, pa.Table) for path in paths)
            gone = next((path for path in files if not storage.exists(self.fs, path)), None)
            if gone is not None:  # DuckDB calls that a lack of permission
                raise RunStopped(
                    f"another run removed {storage.shown(self.fs, gone)} while it was read: rerun the same command"
                ) from error
            raise UserError(f"the query over {self.url} failed: {sentence(error)}") from error

    def views(self) -> dict[str, str]:
        """View of a connection -> its table, such as "clips" or "scores/NAME/vN"; versions without rows have none."""
        now, views = self._at_one_moment(), {name: name for name in ("sources", "clips")}
        views |= {f"{SCORES}_{name}": f"{SCORES}/{name}" for name in now.score_names()}
        for table in now.version_tables():
            root, _, version = table.rpartition("/")
            if now.parts(table):
                views[view_of(root, int(version[1:]))] = table
        return views

    def _versions(self, views: Collection[str]) -> pa.Table:
        """The view `score_versions`, of the versions that have rows."""
        rows = []
        in_clips = [f"{SCORES}/{name}" for name in scores_of_clips(self._read_description() or {})]
        versioned = self.versioned()
        for root in sorted({*in_clips, *versioned}):
            listed = self.recorded_versions(root) if root in versioned else []
            recorded = {v.version: v for v in listed if view_of(root, v.version) in views}
            counted = counted_version(recorded.values(), in_clips=root in in_clips)
            for version in sorted({*recorded, *([1] if root in in_clips else [])}):
                view = view_of(root, version) if version in recorded else "clips"
                created = recorded[version].created if version in recorded else ""
                values = (root.partition("/")[2], version, view, version == counted, created)
                rows.append(dict(zip(_VERSION_ROWS.names, values, strict=True)))
        return pa.Table.from_pylist(rows, _VERSION_ROWS)

    def _folders(self, folder: str, names: re.Pattern[str]) -> list[str]:
        """Names of the folders in a folder that have the form of a name."""
        _, paths = self._listed(self.file(folder))
        return [name for path in paths if names.fullmatch(name := path.rpartition("/")[2])]

    def _read_description(self) -> dict[str, Any] | None:
        description = storage.read_json_if_exists(self.fs, self.file(_DESCRIPTION), checked_description)
        if description is not None:
            DATASET.check(description, self.url)
            if not self._while_removing and storage.exists(self.fs, self.file(REMOVAL)):
                raise UserError(
                    f"sources are being removed from {self.url}, or their removal was interrupted: wait for it to "
                    f"finish, or rerun `clipmill remove {self.url}` to complete it."
                )
        return description

    def _create(self, config: Mapping[str, Any]) -> None:
        entries = storage.list_files(self.fs, self.path) + storage.list_folders(self.fs, self.path)
        if entries:
            names = ", ".join(repr(entry.rpartition("/")[2]) for entry in entries[:3])
            raise UserError(
                f"{self.url} is not a dataset and contains other files ({names}): choose an empty or new folder."
            )
        storage.write_json(self.fs, self.file(_DESCRIPTION), describe(config))

    def _check_writable(self) -> None:
        probe = self.file(".writable.tmp")
        storage.write_bytes(self.fs, probe, b"")
        storage.remove(self.fs, probe)

    def _present(self, table_name: str) -> set[str]:
        files, _ = self._listed(self.file(table_name))
        return {file.rpartition("/")[2].removesuffix(".parquet") for file in files if file.endswith(".parquet")}

    def _at_one_moment(self) -> "Dataset":
        """This dataset, with every folder listed once, for several questions in a row."""
        now = copy(self)
        now._listed = cache(self._listed)
        return now

    def _part_files(self, table_name: str) -> list[str]:
        return [self.file(table_name, f"{part}.parquet") for part in self.parts(table_name)]


def part_name(source_ids: Iterable[str]) -> str:
    """Name of the part for these sources, independent of their order."""
    return hashlib.sha256("\n".join(sorted(source_ids)).encode()).hexdigest()[:16]


def _is_of_tables(folder: str) -> bool:
    name = folder.rpartition("/")[2]
    return name not in _NOT_TABLES and not name.startswith(".")


def _is_score_table(table_name: str) -> bool:
    folder, *names = table_name.split("/")
    if len(names) not in {SCORES: (1, 2), CAPTIONS: (2,)}.get(folder, ()):
        return False
    return all(form.fullmatch(name) for form, name in zip((_NAME, _VERSION), names, strict=False))


def _empty(table_name: str) -> pa.Table:
    """An empty table as DuckDB sees it in a file: it reads half floats from Parquet, but not from Arrow."""
    single = pa.list_(pa.float32())
    schema = pa.schema([f.with_type(single) if f.type == pa.list_(pa.float16()) else f for f in SCHEMAS[table_name]])
    return schema.empty_table()


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.column_names != schema.names:
        missing, extra = set(schema.names) - set(table.column_names), set(table.column_names) - set(schema.names)
        if missing or extra:
            raise ValueError(f"columns missing: {sorted(missing)}, unknown: {sorted(extra)}")
    return table.select(schema.names).cast(schema)
