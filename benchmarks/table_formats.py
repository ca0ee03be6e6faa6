"""Tables of clips in open table formats, beside clipmill's own: Lance, Delta and Iceberg by their Python libraries.

    pip install pylance deltalake "pyiceberg[sql-sqlite,pyarrow]"
    python -m benchmarks.table_formats --clips 1000000

The rows have the columns of clips, with embeddings of 64 half floats. They are committed part by part, as a run does;
read as `select` and `search` do; then the clips of 100 sources are deleted, as `clipmill remove` does, until no file
holds them. Formats whose library is missing are left out. docs/decisions.md has the figures.
"""

import argparse
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.dataset.commits import Change, recorded
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.source_rows import remove_rows
from curation.dataset.tables import Dataset

CLIPS_PER_SOURCE, SOURCES_PER_PART, EMBEDDING, REMOVED_SOURCES = 10, 256, 64, 100


def part_of(number: int, sources: int) -> pa.Table:
    """The clips of the sources of a part."""
    chance = np.random.default_rng(number)
    first = number * SOURCES_PER_PART
    ids = np.repeat([source_id(first + i) for i in range(min(SOURCES_PER_PART, sources - first))], CLIPS_PER_SOURCE)
    rows = len(ids)
    starts = chance.integers(0, 100_000, rows)
    values: dict[str, Any] = {
        "clip_id": [f"{source}-{start}-{start + 90}" for source, start in zip(ids, starts, strict=True)],
        "source_id": ids,
        "uri": [f"s3://bucket/videos/{source}.mp4" for source in ids],
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(chance.normal(size=rows * EMBEDDING).astype(np.float16)), EMBEDDING
        ).cast(pa.list_(pa.float16())),
        "captions": [[{"source": "video", "text": f"clip {n} of {source}"}] for n, source in enumerate(ids)],
    }
    for field in CLIPS:
        if pa.types.is_floating(field.type):
            values[field.name] = chance.normal(size=rows)
        elif pa.types.is_integer(field.type):
            values[field.name] = chance.integers(0, 1000, rows)
    columns = [
        pa.array(values[field.name]).cast(field.type) if field.name in values else pa.nulls(rows, field.type)
        for field in CLIPS
    ]
    return pa.table(columns, schema=pa.schema([field.remove_metadata() for field in CLIPS]))


def source_id(number: int) -> str:
    """As of a real source: 16 hex digits."""
    return hashlib.blake2b(str(number).encode(), digest_size=8).hexdigest()


class TableFormat(Protocol):
    """A table in a folder of its own."""

    packages: tuple[str, ...]

    def commit(self, number: int, table: pa.Table) -> None:
        """Add a part, as one version."""

    def read(self, columns: list[str]) -> pa.Table:
        """All rows of the newest version."""

    def delete(self, source_ids: list[str]) -> None:
        """Delete the rows of these sources, as one version."""

    def purge(self) -> None:
        """Remove what only older versions have."""


class Clipmill:
    """Parquet parts and JSON commits."""

    packages = ()

    def __init__(self, folder: str) -> None:
        self._dataset = Dataset(folder).create_or_open({})

    def commit(self, number: int, table: pa.Table) -> None:
        ids = sorted(set(table["source_id"].to_pylist()))
        with recorded(self._dataset, Change(command="curate")):
            self._dataset.write_part("clips", f"{number:06d}", table)
            rows = [{"source_id": i, "uri": f"s3://bucket/videos/{i}.mp4", "status": "ok"} for i in ids]
            self._dataset.write_part("sources", f"{number:06d}", pa.Table.from_pylist(rows, SOURCES))

    def read(self, columns: list[str]) -> pa.Table:
        files = [self._dataset.file("clips", f"{part}.parquet") for part in self._dataset.parts("clips")]
        return pa.concat_tables(pq.read_table(file, columns=columns) for file in files)

    def delete(self, source_ids: list[str]) -> None:
        with recorded(self._dataset, Change(command="remove")):
            remove_rows(self._dataset, source_ids)

    def purge(self) -> None:
        pass


class Lance:
    """https://lancedb.github.io/lance"""

    packages = ("pylance",)

    def __init__(self, folder: str) -> None:
        import lance

        self._lance, self._folder = lance, folder

    def commit(self, number: int, table: pa.Table) -> None:
        self._lance.write_dataset(table, self._folder, mode="append" if number else "create")

    def read(self, columns: list[str]) -> pa.Table:
        return self._lance.dataset(self._folder).to_table(columns=columns)

    def delete(self, source_ids: list[str]) -> None:
        self._lance.dataset(self._folder).delete(f"source_id IN ({_listed(source_ids)})")

    def purge(self) -> None:
        self._lance.dataset(self._folder).optimize.compact_files(materialize_deletions_threshold=0)
        self._lance.dataset(self._folder).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


class Delta:
    """https://delta-io.github.io/delta-rs"""

    packages = ("deltalake",)

    def __init__(self, folder: str) -> None:
        import deltalake

        self._deltalake, self._folder = deltalake, folder

    def commit(self, number: int, table: pa.Table) -> None:
        self._deltalake.write_deltalake(self._folder, _single(table), mode="append")

    def read(self, columns: list[str]) -> pa.Table:
        table = self._deltalake.DeltaTable(self._folder)
        return pa.table(table.to_pyarrow_dataset().to_table(columns=columns))

    def delete(self, source_ids: list[str]) -> None:
        self._deltalake.DeltaTable(self._folder).delete(f"source_id IN ({_listed(source_ids)})")

    def purge(self) -> None:
        table = self._deltalake.DeltaTable(self._folder)
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


class Iceberg:
    """https://py.iceberg.apache.org with its SQLite catalog"""

    packages = ("pyiceberg", "sqlalchemy")

    def __init__(self, folder: str) -> None:
        from pyiceberg.catalog.sql import SqlCatalog

        os.makedirs(folder)
        uri = f"sqlite:///{folder}/catalog.db"
        self._catalog: Any = SqlCatalog("local", uri=uri, warehouse=f"file://{folder}")
        self._catalog.create_namespace("dataset")

    def commit(self, number: int, table: pa.Table) -> None:
        table = _single(table)
        if not number:
            self._catalog.create_table("dataset.clips", table.schema)
        self._table().append(table)

    def read(self, columns: list[str]) -> pa.Table:
        return self._table().scan(selected_fields=tuple(columns)).to_arrow()

    def delete(self, source_ids: list[str]) -> None:
        from pyiceberg.expressions import In

        self._table().delete(In("source_id", source_ids))

    def purge(self) -> None:
        self._table().maintenance.expire_snapshots().older_than(datetime.now() + timedelta(days=1)).commit()

    def _table(self) -> Any:
        return self._catalog.load_table("dataset.clips")


FORMATS: dict[str, tuple[Callable[[str], TableFormat], str]] = {
    "clipmill": (Clipmill, "curation"),
    "Lance": (Lance, "lance"),
    "Delta": (Delta, "deltalake"),
    "Iceberg": (Iceberg, "pyiceberg"),
}
"""Name -> its table, and the module that it needs."""


def _single(table: pa.Table) -> pa.Table:
    """Without half floats and columns that are all null, which the format does not have."""
    single = [
        field.with_type(pa.list_(pa.float32())) if field.type == pa.list_(pa.float16()) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(single))


def _listed(texts: list[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


def _files(folder: str) -> dict[tuple[str, int], int]:
    """(path, inode) -> size of every file."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {(str(file), file.stat().st_ino): file.stat().st_size for file in files}


def _with_rows_of(folder: str, source_ids: list[str]) -> set[tuple[str, int]]:
    """Data files that hold rows of the sources: of Parquet files by their column, all of others."""
    held, ids = set(), pa.array(source_ids)
    for path, inode in _files(folder):
        if path.endswith(".lance"):
            held.add((path, inode))
        elif path.endswith(".parquet") and "source_id" in pq.read_schema(path).names:
            column = pq.read_table(path, columns=["source_id"])["source_id"]
            if pa.compute.any(pa.compute.is_in(column, ids)).as_py():
                held.add((path, inode))
    return held


def install_mb(packages: tuple[str, ...]) -> float:
    """Size of packages with those that they require, without the ones that clipmill requires anyway."""
    wanted = set(packages)
    ours = _required({"pyarrow", "duckdb", "fsspec", "pydantic", "numpy", "pyyaml", "rich"})
    files = [file for name in _required(wanted) - ours for file in metadata.distribution(name).files or ()]
    return sum(size for file in files if (size := _size(file.locate()))) / 1e6


def _size(path: Any) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _required(names: set[str]) -> set[str]:
    found, waiting = set[str](), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or not _is_installed(name):
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", text)[0] for text in metadata.requires(name) or () if "extra ==" not in text]
    return found


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def measure(name: str, folder: str, clips: int) -> Iterator[tuple[str, str]]:
    """(measure, figure) of a format."""
    make, _ = FORMATS[name]
    table_format, sources = make(f"{folder}/{name}"), clips // CLIPS_PER_SOURCE
    parts = -(-sources // SOURCES_PER_PART)
    commits = []
    for number in range(parts):
        table = part_of(number, sources)
        started = time.perf_counter()
        table_format.commit(number, table)
        commits.append(time.perf_counter() - started)
    tenth = max(1, parts // 10)
    yield "commit, first tenth", f"{1000 * np.mean(commits[:tenth]):.0f} ms"
    yield "commit, last tenth", f"{1000 * np.mean(commits[-tenth:]):.0f} ms"
    files = _files(f"{folder}/{name}")
    yield "size", f"{sum(files.values()) / 1e6:,.0f} MB"
    yield "files", f"{len(files):,}"
    for title, columns in (("motion", ["motion"]), ("embeddings", ["clip_id", "embedding"])):
        started = time.perf_counter()
        rows = table_format.read(columns)
        if title == "motion":
            duckdb.sql("SELECT quantile_cont(motion, 0.25) FROM rows").fetchall()
        yield f"read {title}", f"{time.perf_counter() - started:.2f} s"
        assert rows.num_rows == sources * CLIPS_PER_SOURCE
    chance = np.random.default_rng(0)
    gone = [
        source_id(int(number)) for number in chance.choice(sources, min(REMOVED_SOURCES, sources // 2), replace=False)
    ]
    held = _with_rows_of(f"{folder}/{name}", gone)
    started = time.perf_counter()
    table_format.delete(gone)
    yield f"delete {len(gone)} sources", f"{time.perf_counter() - started:.2f} s"
    assert table_format.read(["clip_id"]).num_rows == (sources - len(gone)) * CLIPS_PER_SOURCE
    yield "files that still hold them", f"{len(held & set(_files(f'{folder}/{name}'))):,} of {len(held):,}"
    started = time.perf_counter()
    table_format.purge()
    yield "purge", f"{time.perf_counter() - started:.2f} s"
    yield "files that hold them then", f"{len(held & set(_files(f'{folder}/{name}'))):,}"
    yield "packages to install", f"{install_mb(table_format.packages):,.0f} MB"


def main() -> None:
    """Print the figures of each format whose library is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    arguments = parser.parse_args()
    for name in arguments.formats:
        if find_spec(FORMATS[name][1]) is None:
            print(f"{name}: not installed")
            continue
        folder = tempfile.mkdtemp(prefix="clipmill-formats-")
        try:
            for what, figure in measure(name, folder, arguments.clips):
                print(f"{name:10} {what:28} {figure}", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
