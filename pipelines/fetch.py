"""`clipmill fetch`: read some samples out of shards by byte range, from a disk or an object store.

What is read grows with the samples that are wanted, not with the shards that hold them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from clipmill import storage
from clipmill.atomic import atomic_path
from clipmill.errors import RunStopped, UserError
from clipmill.range_reader import Pieces, RangeReader
from clipmill.ranges import StoredObject, find_object
from curation.dataset.metadata import add_metadata_columns
from curation.dataset.sql import literal, open_connection, quoted, sentence
from curation.selection.condition import read_condition
from curation.shards.places import CATALOG, PLACE, check_catalog
from pipelines.progress import Reporter

_AT_ONCE_BYTES = 256 << 20
_AT_ONCE_FILES = 256
_SAMPLES = "samples"
_RETRY_S = 60.0
"""How long to repeat a request that a store does not answer, before its samples fail."""


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
    """Clip id -> why its files could not be read."""


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

    Raises UserError if the folder has no clips.parquet, if `where` is not a condition on its columns, or if nothing
    matches; RunStopped if the store does not answer.
    """
    check_catalog(shards)
    with Reporter("fetch", unit="clips", quiet=quiet) as report:
        report.waiting(f"reading {CATALOG}")
        fs, folder = storage.filesystem(shards)
        samples = _matching(fs, f"{folder}/{CATALOG}", where, clip_ids, limit)
        if not samples.num_rows:
            raise UserError(f"no sample of {shards} matches: see its columns and values in {CATALOG}")
        target = _made_folder(out)
        rows = samples.select(["key", "shard", "shard_bytes", "files"]).to_pylist()
        missing = [row for row in rows if not _is_there(target, row)]
        report.begin(len(missing))
        stored, failed = _stored_shards(fs, folder, missing)
        reader = RangeReader(retry_s=_RETRY_S)
        for batch in _batches([row for row in missing if row["key"] not in failed]):
            _fetch_batch(reader, stored, batch, target, failed)
            report.advance(len(batch))
        with atomic_path(target / CATALOG) as temporary:
            pq.write_table(samples, temporary, compression="zstd")
    return FetchRun(
        out=out,
        wanted=len(rows),
        fetched=len(missing) - len(failed),
        there_before=len(rows) - len(missing),
        bytes=reader.read_bytes,
        failed=failed,
    )


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
            return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise UserError(f"the query over {storage.shown(fs, path)} failed: {sentence(error)}") from error


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


def _path(target: Path, key: str, extension: str) -> Path:
    name = f"{key}.{extension}"
    if name in {".", ".."} or os.sep in name or "\0" in name:
        raise ValueError(f"expected a key and an extension, got {name!r}")
    return target / name


def _is_there(target: Path, row: dict[str, Any]) -> bool:
    """Whether all files of a sample are there with their sizes. Files are written whole."""
    try:
        paths = [(_path(target, row["key"], file["extension"]), file["size"]) for file in row["files"]]
        return all(path.stat().st_size == size for path, size in paths)
    except (OSError, ValueError):
        return False


def _stored_shards(
    fs: AbstractFileSystem, folder: str, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, StoredObject], dict[str, str]]:
    """The tars by name; and key -> reason, of samples whose tar is missing or was replaced since clips.parquet was
    written."""
    stored: dict[str, StoredObject] = {}
    reasons: dict[str, str] = {}
    for shard, size in {row["shard"]: row["shard_bytes"] for row in rows}.items():
        if "/" in shard or shard in {"", ".", ".."}:
            reasons[shard] = f"{shard!r} is not the name of a tar"
            continue
        try:
            stored[shard] = find_object(storage.address(fs, f"{folder}/{shard}"), retry_s=_RETRY_S)
            if (there := stored[shard].size_bytes) != size:
                reasons[shard] = f"{shard} has {there:,} bytes, expected {size:,}: it was replaced or truncated"
        except RunStopped:
            raise
        except (OSError, UserError) as error:
            reasons[shard] = f"{shard}: {error}"
    return stored, {row["key"]: reasons[row["shard"]] for row in rows if row["shard"] in reasons}


def _batches(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = files = 0
    for row in sorted(rows, key=lambda r: (r["shard"], r["files"][0]["offset"])):
        row_size, row_files = sum(file["size"] for file in row["files"]), len(row["files"])
        if batch and (size + row_size > _AT_ONCE_BYTES or files + row_files > _AT_ONCE_FILES):
            yield batch
            batch, size, files = [], 0, 0
        batch.append(row)
        size, files = size + row_size, files + row_files
    if batch:
        yield batch


def _fetch_batch(
    reader: RangeReader,
    stored: Mapping[str, StoredObject],
    batch: Sequence[dict[str, Any]],
    target: Path,
    failed: dict[str, str],
) -> None:
    """Read and write the files of some samples. Failures are added to `failed`."""
    wanted = [
        Pieces(stored=stored[row["shard"]], ranges=tuple((file["offset"], file["size"]) for file in row["files"]))
        for row in batch
    ]
    for row, future in zip(batch, reader.submit(wanted), strict=True):
        try:
            contents = future.result()
            paths = [_path(target, row["key"], file["extension"]) for file in row["files"]]
        except RunStopped:
            raise
        except (OSError, ValueError) as error:
            failed[row["key"]] = f"{row['shard']}: {error}"
            continue
        for path, content in zip(paths, contents, strict=True):
            try:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
