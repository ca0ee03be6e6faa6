"""`clipmill search`, `like` rules and `clipmill cluster` on a growing dataset: seconds, CPU seconds and memory.

    python -m benchmarks.search [--clips N N ...] [--clusters K]

Embeddings are those of benchmarks.duplicates: 768 fp16 numbers, in clusters of many sizes. Each step runs in its own
process, so that the file is mapped anew; it is in the page cache, for it was just written. The yardstick reads the
embeddings from the Parquet files and multiplies them with numpy. Figures go to stderr immediately; the last line is
JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import cpu_s, in_child, memory_bytes, report
from benchmarks.duplicates import build_dataset
from curation.dataset.embeddings import open_embeddings
from curation.dataset.tables import Dataset
from curation.dedup.clusters import ClusterConfig
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from pipelines.clustering import cluster
from pipelines.search import search

_CLIPS = (10_000, 100_000, 1_000_000)
_CLUSTERS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=_CLIPS)
    parser.add_argument("--clusters", type=int, default=_CLUSTERS)
    parser.add_argument("--step", nargs=2, metavar=("NAME", "DATASET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(_measured(_STEPS[options.step[0]], options.step[1], options.clusters)))
        return
    rows = [row for clips in options.clips for row in _rows(clips, options.clusters)]
    report(
        "search, like, cluster and balance on embeddings of 768 numbers",
        ("clips", "step", "seconds", "CPU s", "peak MiB"),
        (
            (
                f"{row['clips']:,}",
                row["step"],
                f"{row['seconds']:.2f}",
                f"{row['cpu_s']:.2f}",
                f"{row['peak_mib']:.0f}",
            )
            for row in rows
        ),
        {"search": rows},
    )


def _rows(clips: int, clusters: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="clipmill-search-") as folder:
        build_dataset(folder, clips)
        rows = []
        for step in _STEPS:
            measured = in_child("benchmarks.search", "--step", step, folder, "--clusters", str(clusters))
            rows.append({"clips": clips, "step": step, **measured})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        return rows


def _measured(step: Callable[[str, int], dict[str, Any]], folder: str, clusters: int) -> dict[str, Any]:
    before_cpu_s, start = cpu_s(), time.perf_counter()
    figures = step(folder, clusters)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_s": cpu_s() - before_cpu_s, "peak_mib": memory_bytes() / 2**20, **figures}


def _prepare(folder: str, _: int) -> dict[str, Any]:
    with open_embeddings(Dataset(folder)) as embeddings:
        return {"embeddings": len(embeddings)}


def _search(folder: str, _: int) -> dict[str, Any]:
    """From opening the dataset to the rows of the table; the matrix alone is `matrix_s`."""
    result = search(folder, like=_first_clip(folder), write_sheet=False)
    return {"hits": len(result.hits), "matrix_s": result.search_s}


def _plain(folder: str, _: int) -> dict[str, Any]:
    dataset, query = Dataset(folder), _first_clip(folder)
    found: list[tuple[float, str]] = []
    query_D = None
    for part in dataset.parts("clips"):
        table = dataset.read_part("clips", part, ["clip_id", "embedding"])
        numbers = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows_ND = numbers.reshape(table.num_rows, -1).astype(np.float32)
        ids = table["clip_id"].to_pylist()
        query_D = rows_ND[ids.index(query)] if query_D is None else query_D
        found = sorted([*found, *zip((rows_ND @ query_D).tolist(), ids, strict=True)], reverse=True)[:25]
    return {"hits": len(found) - 1}


def _like(folder: str, _: int) -> dict[str, Any]:
    rules = {"name": "like", "like": {"clip": _first_clip(folder), "drop_lowest": "90%"}}
    return {"selected": select_clips(Dataset(folder), Rules.from_values(rules, origin="benchmark")).clips}


def _cluster(folder: str, clusters: int) -> dict[str, Any]:
    result = cluster(folder, ClusterConfig(clusters=clusters), quiet=True)
    return {"clusters": result.clusters, "largest": result.largest, "smallest": result.smallest}


def _balance(folder: str, _: int) -> dict[str, Any]:
    dataset = Dataset(folder)
    with dataset.connect() as connection:
        [(clips,)] = connection.execute("SELECT count(*) FROM clips").fetchall()
    balance = {"by": "cluster", "power": 0.5, "clips": max(1, clips // 10)}
    rules = Rules.from_values({"name": "balanced", "balance": balance}, origin="benchmark")
    return {"selected": select_clips(dataset, rules).clips}


def _first_clip(folder: str) -> str:
    dataset = Dataset(folder)
    part = dataset.parts("clips")[0]
    clip_id = dataset.read_part("clips", part, ["clip_id"])["clip_id"][0]
    assert isinstance(clip_id, pa.StringScalar)
    return str(clip_id.as_py())


_STEPS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "prepare": _prepare,
    "search": _search,
    "plain numpy": _plain,
    "like rule": _like,
    "cluster": _cluster,
    "cluster again": _cluster,
    "balance": _balance,
}


if __name__ == "__main__":
    main()
