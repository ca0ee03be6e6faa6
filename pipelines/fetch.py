"""`clipmill fetch`: read some samples out of shards by byte range, from a disk or an object store.

What is read grows with the samples that are wanted, not with the shards that hold them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.atomic import atomic_path
from clipmill.errors import EmptyResult, RunStopped, UserError
from clipmill.range_reader import Pieces, RangeReader
from clipmill.ranges import StoredObject, find_object
from curation.dataset.metadata import add_metadata_columns
from curation.dataset.sql import batches, literal, open_connection, quoted, sentence
from curation.selection.condition import read_condition
from curation.shards.places import CATALOG, PLACE, check_catalog
from pipelines.progress import Reporter

_AT_ONCE_BYTES = 256 << 20
_AT_ONCE_FILES = 256
_MAX_ROWS_BYTES = 4 << 30
"""Of the rows of clips.parquet that match, in memory."""
_MAX_FILE_BYTES = {"mp4": 1 << 30, "jpg": 256 << 20, "txt": 1 << 20, "json": 16 << 20}
"""By extension, of the files of a sample; they have no others."""
_KEY, _TAR = re.compile(r"\w[\w-]{0,200}", re.ASCII), re.compile(r"\w[\w.-]{0,200}\.tar", re.ASCII)
_ROWS_AT_ONCE = 10_000
_SAMPLES = "samples"
_RETRY_S = 60.0
"""How long to repeat a request that a store does not answer, before its samples fail."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Where a sample is. Read from clips.parquet, which may be of others: names become those of local files."""

    key: str
    shard: str
    shard_bytes: int
    files: tuple[tuple[str, int, int], ...]
    """Extension, offset and size."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Sample":
        """Raises ValueError for what `clipmill shard` does not write."""
        key, shard, shard_bytes = row["key"], row["shard"], row["shard_bytes"]
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"its key {_shown(key)} is not that of a sample")
        if not isinstance(shard, str) or not _TAR.fullmatch(shard):
            raise ValueError(f"{_shown(shard)} is not the name of a tar")
        files = [(file["extension"], file["offset"], file["size"]) for file in row["files"] or () if file is not None]
        if not files or len({extension for extension, _, _ in files}) < len(row["files"]):
            raise ValueError("its list of files is damaged")
        for extension, offset, size in files:
            if extension not in _MAX_FILE_BYTES:
                raise ValueError(f"expected files of {', '.join(_MAX_FILE_BYTES)}, got one of {_shown(extension)}")
            inside = None not in (offset, size, shard_bytes) and 0 <= offset <= offset + size <= shard_bytes
            if not inside or size > _MAX_FILE_BYTES[extension]:
                raise ValueError(f"the {extension} cannot be {size} bytes at {offset} in a tar of {shard_bytes}")
        return cls(key=key, shard=shard, shard_bytes=shard_bytes, files=tuple(files))

    def paths(self, folder: Path) -> list[Path]:
        """The local paths of the files."""
        return [folder / f"{self.key}.{extension}" for extension, _, _ in self.files]

    def is_in(self, folder: Path) -> bool:
        """Whether all files are there with their sizes. Files are written whole."""
        try:
            sizes = [path.stat().st_size for path in self.paths(folder)]
        except OSError:
            return False
        return sizes == [size for _, _, size in self.files]


def _shown(name: object) -> str:
    return repr(name)[:100]


@dataclass(frozen=True, kw_only=True)
class FetchRun:
    """Result of a run. wanted = fetched + there_before + failed."""

    out: str
    wanted: int
    fetched: int
    there_before: int
    bytes: int
    """Read from the shards."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key of a sample -> why its files could not be read."""

    @property
    def empty(self) -> bool:
        """Whether the folder has none of the samples."""
        return not self.fetched and not self.there_before


def fetch(
    shards: str,
    out: str,
    *,
    where: str | None = None,
    clip_ids: Sequence[str] = (),
    limit: int | None = None,
    quiet: bool = False,
) -> FetchRun:
    """Read the samples of a shard folder (any fsspec URL) that match, into the local folder `out`.

    `where` is a condition on the columns of its clips.parquet, as in a selection; `clip_ids` names clips; given both,
    both must hold. At most `limit` samples: a random choice, the same on every run. Writes KEY.mp4 (or .jpg), .txt,
    .json, and clips.parquet with their rows. Files that are there with their size are not read again.

    Raises UserError if the folder has no clips.parquet, or if `where` is not a condition on its columns; EmptyResult
    if no sample does; RunStopped if the store does not answer.
    """
    check_catalog(shards)
    with Reporter("fetch", unit="clips", quiet=quiet) as report:
        report.waiting(f"reading {CATALOG}")
        fs, folder = storage.filesystem(shards)
        samples = _matching(fs, f"{folder}/{CATALOG}", where, clip_ids, limit)
        if not samples.num_rows:
            raise EmptyResult(
                f"no sample of {without_credentials(shards)} matches: see its columns and values in {CATALOG}"
            )
        target = _made_folder(out)
        located, failed = _located(samples)
        missing = [sample for sample in located.values() if not sample.is_in(target)]
        report.begin(len(missing))
        stored, of_shards = _stored_shards(fs, folder, missing)
        failed |= of_shards
        reader = RangeReader(retry_s=_RETRY_S)
        for batch in _batches([sample for sample in missing if sample.key not in failed]):
            _fetch_batch(reader, stored, batch, target, failed)
            report.advance(len(batch))
        with atomic_path(target / CATALOG) as temporary:
            pq.write_table(samples, temporary, compression="zstd")
    return FetchRun(
        out=out,
        wanted=len(located) + len(failed) - len(located.keys() & failed.keys()),
        fetched=sum(sample.key not in failed for sample in missing),
        there_before=len(located) - len(missing),
        bytes=reader.read_bytes,
        failed=failed,
    )


def _located(samples: pa.Table) -> tuple[dict[str, _Sample], dict[str, str]]:
    """The samples by key; and key -> reason, of rows without a valid place."""
    located: dict[str, _Sample] = {}
    failed: dict[str, str] = {}
    for number, row in enumerate(samples.select(["key", "shard", "shard_bytes", "files"]).to_pylist()):
        try:
            sample = _Sample.of(row)
        except ValueError as error:
            failed[row["key"] or f"row {number}"] = f"{CATALOG}: {error}"
            continue
        if sample.key in located:
            failed[f"row {number}"] = f"{CATALOG}: another row has its key {sample.key}"
        else:
            located[sample.key] = sample
    return located, failed


def _matching(
    fs: AbstractFileSystem, path: str, where: str | None, clip_ids: Sequence[str], limit: int | None
) -> pa.Table:
    """The rows of the catalog that match, sorted by clip id."""
    try:
        with open_connection(fs, {_SAMPLES: [path]}) as connection:
            missing = {"clip_id", *PLACE.names} - set(_columns(connection))
            if missing:
                raise UserError(
                    f"{storage.shown(fs, path)} is not a list of samples: it has no column {sorted(missing)[0]!r}"
                )
            given = ", ".join(map(quoted, _columns(connection)))
            add_metadata_columns(connection, _SAMPLES)
            connection.execute(f"CREATE VIEW joined AS SELECT * FROM {_SAMPLES}")
            conditions = [_condition(connection, where)] if where is not None else []
            if clip_ids:
                conditions.append(f"clip_id IN ({', '.join(map(literal, clip_ids))})")
            chosen = f"SELECT clip_id FROM joined WHERE {' AND '.join(conditions) or 'true'}"
            if limit is not None:
                chosen += f" ORDER BY md5(clip_id), clip_id LIMIT {limit}"
            query = f"SELECT {given} FROM joined WHERE clip_id IN ({chosen}) ORDER BY clip_id, key"
            return _checked_table(connection, query, storage.shown(fs, path))
    except duckdb.Error as error:
        raise UserError(f"the query over {storage.shown(fs, path)} failed: {sentence(error)}") from error


def _checked_table(connection: duckdb.DuckDBPyConnection, query: str, address: str) -> pa.Table:
    """The answer, with the columns of `PLACE` in their types."""
    read: list[pa.RecordBatch] = []
    empty = connection.sql(f"{query} LIMIT 0").to_arrow_table()
    for batch in batches(connection, query, _ROWS_AT_ONCE):
        read.append(batch)
        if sum(each.nbytes for each in read) > _MAX_ROWS_BYTES:
            raise UserError(
                f"the matching rows of {address} have more than {_MAX_ROWS_BYTES >> 30} GiB: narrow them with --where "
                "or --limit"
            )
    table = pa.Table.from_batches(read, empty.schema)
    for name, kind in zip(PLACE.names, PLACE.types, strict=True):
        try:
            cells = table[name].cast(kind)
        except pa.ArrowException as error:
            raise UserError(
                f"{address} is damaged: expected {kind} in its column {name}, got {table[name].type}"
            ) from error
        table = table.set_column(table.column_names.index(name), name, cells)
    return table


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute(f"DESCRIBE {_SAMPLES}").fetchall()]


def _condition(connection: duckdb.DuckDBPyConnection, where: str) -> str:
    known = [row[0] for row in connection.execute("DESCRIBE joined").fetchall()]
    condition = read_condition(connection, where, known, rows="joined")
    if condition.missing:
        raise UserError(f"where: {condition.complaint}")
    return condition.sql


def _made_folder(out: str) -> Path:
    if "://" in out:
        raise UserError(f"expected a local folder for --out, got {out!r}")
    target = Path(out)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {out}: {error.strerror or error}") from error
    return target


def _stored_shards(
    fs: AbstractFileSystem, folder: str, samples: Sequence[_Sample]
) -> tuple[dict[str, StoredObject], dict[str, str]]:
    """The tars by name; and key -> reason, of samples whose tar is missing or was replaced since clips.parquet was
    written."""
    stored: dict[str, StoredObject] = {}
    reasons: dict[str, str] = {}
    for shard, size in {sample.shard: sample.shard_bytes for sample in samples}.items():
        try:
            stored[shard] = find_object(storage.address(fs, f"{folder}/{shard}"), retry_s=_RETRY_S)
            if (there := stored[shard].size_bytes) != size:
                reasons[shard] = f"{shard} has {there:,} bytes, expected {size:,}: it was replaced or truncated"
        except RunStopped:
            raise
        except (OSError, UserError) as error:
            reasons[shard] = f"{shard}: {error}"
    return stored, {sample.key: reasons[sample.shard] for sample in samples if sample.shard in reasons}


def _batches(samples: Sequence[_Sample]) -> Iterator[list[_Sample]]:
    batch: list[_Sample] = []
    bytes_, files = 0, 0
    for sample in sorted(samples, key=lambda s: (s.shard, s.files[0][1])):
        sample_bytes, sample_files = sum(size for _, _, size in sample.files), len(sample.files)
        if batch and (bytes_ + sample_bytes > _AT_ONCE_BYTES or files + sample_files > _AT_ONCE_FILES):
            yield batch
            batch, bytes_, files = [], 0, 0
        batch.append(sample)
        bytes_, files = bytes_ + sample_bytes, files + sample_files
    if batch:
        yield batch


def _fetch_batch(
    reader: RangeReader,
    stored: Mapping[str, StoredObject],
    batch: Sequence[_Sample],
    target: Path,
    failed: dict[str, str],
) -> None:
    """Read and write the files of some samples. Failures are added to `failed`."""
    wanted = [
        Pieces(stored=stored[sample.shard], ranges=tuple((offset, size) for _, offset, size in sample.files))
        for sample in batch
    ]
    for sample, future in zip(batch, reader.submit(wanted), strict=True):
        try:
            contents = future.result()
        except RunStopped:
            raise
        except (OSError, UserError) as error:
            failed[sample.key] = f"{sample.shard}: {error}"
            continue
        for path, content in zip(sample.paths(target), contents, strict=True):
            try:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
