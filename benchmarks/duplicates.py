"""`find_duplicates` on growing datasets: seconds, CPU seconds, memory and recall of planted copies, and their slopes.

    python -m benchmarks.duplicates [--clips N N ...] [--ray]

Embeddings have 768 dimensions and, like CLIP's, form clusters of many sizes; a tenth of the clips are copies with
cosines of 0.955 to 0.99. Each dataset is searched, then searched again after 1 % more clips; with --ray also from a
driver whose kept clips are held by Ray actors. Each search runs in its own process and prints its figures to stderr
immediately. The last line is JSON: the figures, and per search the exponent e of CPU seconds = a clips^e, the bytes per
clip that this process allocates (RssAnon; the rest of its memory are reclaimable pages of the temporary file), and both
at ten million clips.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.common import in_child, memory_bytes, report
from benchmarks.scale import tree_cpu_s
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import DuplicatesConfig, find_duplicates
from curation.dedup.kept import LocalIndex
from pipelines.cluster import connected
from pipelines.duplicates import RayIndex

_CLIPS = (10_000, 30_000, 100_000, 300_000)
_COMPARED = 100_000
"""Up to this many clips, both searches run."""
_LATE = "late"
_LATE_SHARE = 0.01
"""Of the clips, added after the first search."""
_ON_PAPER = 10_000_000
_WIDTH = 768
_PART_CLIPS = 50_000
_SUBJECTS = 1000
_COPIES_PER_CLIP = 0.1


def measure(clips: int, *, ray: bool) -> list[dict[str, Any]]:
    """Build a dataset in a temporary folder and search it: exactly if it is small enough, and approximately."""
    searches = {"exact": 2 * clips, "approximate": 0} if clips <= _COMPARED else {"approximate": 0}
    figures = []
    for search, exact_up_to in searches.items():
        for where in ("here", "ray") if ray else ("here",):
            with tempfile.TemporaryDirectory(prefix="clipmill-duplicates-") as folder:
                copies = build_dataset(folder, clips)
                late = Path(folder, "sources", f"{_LATE}.parquet")
                hidden = late.rename(Path(folder, "late.parquet"))
                for what in ("all", "1 % more"):
                    measured = in_child("benchmarks.duplicates", "--search", folder, str(exact_up_to), where)
                    row = {"clips": measured["searched"], "search": search, "where": where, "what": what}
                    figures.append(row | measured | _compared(folder, copies))
                    print(json.dumps(figures[-1]), file=sys.stderr, flush=True)
                    if hidden.exists():
                        hidden.rename(late)  # which commits the part
    return figures


def slopes(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per kind of search: the exponent of CPU seconds, bytes per clip, and both at ten million clips."""
    kinds = dict.fromkeys((row["search"], row["where"], row["what"]) for row in figures)
    fitted = []
    for kind in kinds:
        rows = [row for row in figures if (row["search"], row["where"], row["what"]) == kind]
        if len(rows) < 2:
            continue
        clips = np.array([row["clips"] for row in rows], float)
        exponent, intercept = np.polyfit(np.log(clips), np.log([row["cpu_s"] for row in rows]), 1)
        bytes_per_clip, base = np.polyfit(clips, [row["anon_mib"] * 2**20 for row in rows], 1)
        fitted.append(
            dict(zip(("search", "where", "what"), kind, strict=True))
            | {
                "exponent": round(float(exponent), 2),
                "cpu_h_at_10m": float(np.exp(intercept) * _ON_PAPER**exponent) / 3600,
                "bytes_per_clip": round(float(bytes_per_clip)),
                "gib_at_10m": float(base + bytes_per_clip * _ON_PAPER) / 2**30,
            }
        )
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=_CLIPS)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--search", nargs=3, metavar=("DATASET", "EXACT_UP_TO", "WHERE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(json.dumps(_search(options.search[0], int(options.search[1]), options.search[2])))
        return
    rows = [row for clips in options.clips for row in measure(clips, ray=options.ray)]
    report(
        f"find_duplicates, embeddings of {_WIDTH} numbers, a tenth of them copies",
        ("clips", "search", "index", "compared", "seconds", "CPU s", "peak MiB", "of it own", "copies found", "false"),
        (
            (
                f"{row['clips']:,}",
                row["search"],
                row["where"],
                f"{row['what']}: {row['compared']:,}",
                f"{row['seconds']:.1f}",
                f"{row['cpu_s']:.1f}",
                f"{row['peak_mib']:.0f}",
                f"{row['anon_mib']:.0f}",
                f"{row['found'] / max(1, row['planted']):.2%}",
                str(row["false"]),
            )
            for row in rows
        ),
        {"duplicates": rows, "slopes": slopes(rows)},
    )


def _search(folder: str, exact_up_to: int, where: str) -> dict[str, Any]:
    """Search, in this process or with an index on Ray, whose CPU time is that of all processes under this one."""
    with connected() if where == "ray" else nullcontext():
        before_cpu_s, start = tree_cpu_s(), time.perf_counter()
        settings = DuplicatesConfig(exact_up_to=exact_up_to)
        with _peak("RssAnon") as anon_bytes:
            result = find_duplicates(Dataset(folder), settings, make_index=RayIndex if where == "ray" else LocalIndex)
        seconds, used_cpu_s = time.perf_counter() - start, tree_cpu_s() - before_cpu_s
    return {
        "searched": result.clips,
        "compared": result.compared,
        "seconds": seconds,
        "cpu_s": used_cpu_s,
        "peak_mib": memory_bytes("VmHWM") / 2**20,
        "anon_mib": max(anon_bytes) / 2**20,
    }


@contextmanager
def _peak(field: str) -> Iterator[list[int]]:
    """A field of /proc/self/status, sampled ten times a second until the end of the block."""
    values, over = [memory_bytes(field)], threading.Event()

    def sample() -> None:
        while not over.wait(0.1):
            values.append(memory_bytes(field))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield values
    finally:
        over.set()
        sampler.join()


def _compared(folder: str, copies: dict[str, str]) -> dict[str, int]:
    """Number of copies grouped with their original, and of false duplicates."""
    path = Path(folder, "scores", "duplicates", "duplicates.parquet")
    table = pq.read_table(path, columns=["clip_id", "duplicate_of"])
    of = {c: k for c, k in zip(*(column.to_pylist() for column in table.columns), strict=True) if k is not None}
    ids = set(table["clip_id"].to_pylist())
    joined = sum(of.get(copy) == original or of.get(original) == copy for copy, original in copies.items())
    planted = sum(copy in ids and original in ids for copy, original in copies.items())
    return {"planted": planted, "found": joined, "false": len(of) - joined}


def build_dataset(folder: str, clips: int) -> dict[str, str]:
    """Write the dataset; returns copy -> original, as clip ids."""
    dataset = Dataset(folder).create_or_open({"benchmark": "duplicates", "clips": clips})
    rng = np.random.default_rng(clips)
    subjects = _unit(rng.standard_normal((_SUBJECTS, _WIDTH), np.float32))
    common = _unit(rng.standard_normal(_WIDTH, np.float32))
    copies: dict[str, str] = {}
    bounds = np.linspace(0, clips, max(1, clips // _PART_CLIPS) + 1).astype(int).tolist()
    bounds.append(clips + round(_LATE_SHARE * clips))
    for part, (first, last) in enumerate(pairwise(bounds)):
        originals = round((last - first) / (1 + _COPIES_PER_CLIP))
        crowd = (rng.random(originals) ** 2 * _SUBJECTS).astype(int)
        offset = rng.uniform(0.6, 1.2, (originals, 1)).astype(np.float32)
        rows = _unit(
            common + 0.8 * subjects[crowd] + offset * _unit(rng.standard_normal((originals, _WIDTH), np.float32))
        )
        chosen = rng.permutation(originals)[: last - first - originals]
        cosine = rng.uniform(0.955, 0.99, (len(chosen), 1)).astype(np.float32)
        noise = rng.standard_normal((len(chosen), _WIDTH), np.float32)
        aside = _unit(noise - (noise * rows[chosen]).sum(1, keepdims=True) * rows[chosen])
        again = cosine * rows[chosen] + np.sqrt(1 - cosine**2) * aside
        ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}-0-48" for number in range(first + 1, last + 1)]
        copies |= {ids[originals + i]: ids[original] for i, original in enumerate(chosen.tolist())}
        name = _LATE if part == len(bounds) - 2 else f"{part:04d}"
        _write(dataset, name, ids, np.concatenate([rows, again]), rng)
    return copies


def _write(dataset: Dataset, part: str, ids: list[str], rows_ND: NDArray[np.float32], rng: np.random.Generator) -> None:
    flat = pa.array(rows_ND.astype(np.float16).reshape(-1))
    columns = {
        "clip_id": pa.array(ids),
        "source_id": pa.array([clip_id[:16] for clip_id in ids]),
        "width": rng.choice(np.array([426, 640, 1280, 1920], np.int32), len(ids)),
        "height": rng.choice(np.array([240, 360, 720, 1080], np.int32), len(ids)),
        "aesthetic": rng.normal(5, 1, len(ids)).astype(np.float32),
        "duration_s": rng.uniform(1, 20, len(ids)),
        "embedding": pa.ListArray.from_arrays(pa.array(np.arange(len(ids) + 1) * _WIDTH, pa.int32()), flat),
    }
    for name, schema in (("clips", CLIPS), ("sources", SOURCES)):
        filled = {field.name: columns.get(field.name, pa.nulls(len(ids), field.type)) for field in schema}
        dataset.write_part(name, part, pa.table(filled))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
