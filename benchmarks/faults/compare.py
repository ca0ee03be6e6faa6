"""Digests of a pipeline's results by key, and the missing, duplicate and different results between two runs."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from curation.dataset.sql import quoted
from curation.dataset.tables import Dataset

Contents = dict[str, list[tuple[str, str]]]
"""Table -> (key, digest) of its rows."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Keys, prefixed by their table."""

    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    different: tuple[str, ...]
    """Keys with different content, or absent from the undisturbed run."""


def contents(dataset: Path, latents: Path) -> Contents:
    """Sources, clips with all scores and captions, selected clips, shard samples and latents.

    Without timings, and without tokens, which repeated requests add to.
    """
    content: Contents = {}
    opened = Dataset(str(dataset))
    with opened.connect() as connection:
        versions = {quoted(view): "clip_id" for view in opened.views() if "@" in view}
        for table, key in ({"sources": "source_id", "clips": "clip_id"} | versions).items():
            columns = [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]
            lasting = [column for column in columns if not column.endswith(("_cpu_s", "_tokens", "_price"))]
            listed = ", ".join(f'"{column}"' for column in (key, *lasting))
            content[table] = [
                (row[0], _digest(row)) for row in connection.execute(f"SELECT {listed} FROM {table}").fetchall()
            ]
    for path in sorted((dataset / "selections").glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        content[f"selection {path.stem}"] = [(row["clip_id"], _digest(tuple(row.items()))) for row in rows]
    content["samples"] = list(_members(dataset / "shards"))
    content["latents"] = list(_members(latents))
    return content


def differences(calm: Contents, disturbed: Contents) -> Differences:
    """Differences between an undisturbed and a disturbed run."""
    lost, doubled, different = [], [], []
    for table in calm.keys() | disturbed.keys():
        before, after = dict(calm.get(table, [])), dict(disturbed.get(table, []))
        counts = Counter(key for key, _ in disturbed.get(table, []))
        lost += [f"{table}: {key}" for key in before.keys() - after.keys()]
        doubled += [f"{table}: {key}" for key, count in counts.items() if count > 1]
        different += [f"{table}: {key}" for key in after if after[key] != before.get(key)]
    return Differences(lost=tuple(sorted(lost)), doubled=tuple(sorted(doubled)), different=tuple(sorted(different)))


def _members(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                yield f"{path.parent.name}/{member.name}", hashlib.sha256(file.read() if file else b"").hexdigest()


def _digest(row: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(row).encode()).hexdigest()
