"""`select` over ten million clips: seconds and peak memory, in its own process.

    python -m benchmarks.select_scale [--clips N]

Three runs: rules on columns of the clips table; with a score joined from scores/; and with the rule on near-duplicates,
where a tenth of the clips are copies.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from benchmarks.common import in_child, memory_bytes
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from curation.selection.select import select_clips

_CLIPS = 10_000_000
_PARTS = 50
_CLIPS_PER_SOURCE = 20
_RULES = {
    "motion": {"drop_lowest": "25%"},
    "text_area": {"drop_highest": "25%", "max": 0.07},
    "duration_s": {"min": 2.0},
}
_JOINED_RULES = {**_RULES, "beauty": {"drop_lowest": "25%"}}
_ALL_RULES = {"plain": _RULES, "joined": _JOINED_RULES, "duplicates": {**_RULES, "duplicate_rank": {"max": 0}}}
_COPY_EVERY = 10


def measure(clips: int = _CLIPS) -> dict[str, float]:
    """Build a dataset of `clips` rows in a temporary folder and select from it; seconds and peak GiB of each run."""
    with tempfile.TemporaryDirectory(prefix="clipmill-select-") as folder:
        _build(folder, clips)
        plain, joined, duplicates = (
            in_child("benchmarks.select_scale", "--select", folder, name) for name in _ALL_RULES
        )
    return {
        "select_10m_s": plain["seconds"],
        "select_10m_peak_gib": plain["peak_gib"],
        "select_10m_joined_s": joined["seconds"],
        "select_10m_joined_peak_gib": joined["peak_gib"],
        "select_10m_duplicates_s": duplicates["seconds"],
        "select_10m_duplicates_peak_gib": duplicates["peak_gib"],
        "rows": clips,
        "selected": plain["selected"],
        "selected_joined": joined["selected"],
        "selected_duplicates": duplicates["selected"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=_CLIPS)
    parser.add_argument("--select", nargs=2, metavar=("DATASET", "RULES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.select:
        print(json.dumps(_select(*options.select)))
        return
    figures = measure(options.clips)
    table = Table(title=f"select over {options.clips:,} clips in {_PARTS} parts")
    for heading in ("rules on", "selected", "seconds", "peak GiB", "goal"):
        table.add_column(heading, justify="left" if heading == "rules on" else "right")
    for what, end in (
        ("clips table", ""),
        ("clips table and a joined score", "_joined"),
        ("clips table and near-duplicates", "_duplicates"),
    ):
        seconds, peak = figures[f"select_10m{end}_s"], figures[f"select_10m{end}_peak_gib"]
        selected = f"{figures[f'selected{end}']:,}"
        table.add_row(what, selected, f"{seconds:.1f}", f"{peak:.2f}", "" if end else "10 s, 2 GiB")
    Console().print(table)
    print(json.dumps(figures))


def _select(folder: str, name: str) -> dict[str, float]:
    rules = Rules.from_values({"name": name, "rules": _ALL_RULES[name], "where": "width >= 512"}, origin=name)
    start = time.perf_counter()
    selection = select_clips(Dataset(folder), rules)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gib": memory_bytes() / 2**30, "selected": selection.clips}


def _build(folder: str, clips: int) -> None:
    dataset = Dataset(folder).create_or_open({"benchmark": "select_scale", "clips": clips})
    bounds = np.linspace(0, clips, _PARTS + 1).astype(int)
    for part, (first, last) in enumerate(pairwise(bounds)):
        table = clips_table(np.random.default_rng(part), int(first), int(last))
        dataset.write_part("clips", f"{part:04d}", table)
        scores = pa.table({"clip_id": table["clip_id"], "beauty": table["duration_s"].cast(pa.float32())})
        dataset.write_part("scores/beauty", f"{part:04d}", scores)
        dataset.write_part("scores/duplicates", f"{part:04d}", _duplicates(table["clip_id"]))
        ids = pc.unique(table["source_id"])
        dataset.write_part("sources", f"{part:04d}", filled(SOURCES, {"source_id": ids}, len(ids)))


def clips_table(random: np.random.Generator, first: int, last: int) -> pa.Table:
    rows = last - first
    number = np.arange(first, last)
    duration_s = random.uniform(1.0, 20.0, rows)
    start_pts = number % _CLIPS_PER_SOURCE * 300_000
    end_pts = start_pts + (duration_s * 12_800).astype(np.int64)
    # Hashes, like real ids, so that they are not sorted across parts.
    mixed = (number // _CLIPS_PER_SOURCE + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    source_id = pa.array([f"{value:016x}" for value in mixed.tolist()])
    text = [pa.array(values).cast(pa.string()) for values in (start_pts, end_pts)]
    motion = pa.array(random.gamma(2.0, 3.0, rows).astype(np.float32), mask=random.random(rows) < 0.01)
    text_area = np.maximum(0, random.normal(-0.02, 0.05, rows)).astype(np.float32)
    columns = {
        "clip_id": pc.binary_join_element_wise(source_id, *text, "-"),
        "source_id": source_id,
        "uri": pc.binary_join_element_wise("s3://bucket/videos/", source_id, ".mp4", ""),
        "start_pts": start_pts,
        "end_pts": end_pts,
        "duration_s": duration_s,
        "width": random.choice(np.array([426, 640, 1280, 1920], np.int32), rows),
        "motion": motion,
        "text_area": text_area,
    }
    return filled(CLIPS, columns, rows)


def _duplicates(clip_id: pa.ChunkedArray) -> pa.Table:
    """Every tenth clip is a copy of the one before it."""
    number = np.arange(len(clip_id))
    copy = (number % _COPY_EVERY == 1) & (number > 0)
    of = pc.if_else(pa.array(copy), clip_id.take(pa.array(np.maximum(0, number - 1))), pa.scalar(None, pa.string()))
    return pa.table({"clip_id": clip_id, "duplicate_rank": copy.astype(np.int32), "duplicate_of": of})


def filled(schema: pa.Schema, columns: dict[str, object], rows: int) -> pa.Table:
    return pa.table({f.name: columns.get(f.name, pa.nulls(rows, f.type)) for f in schema})


if __name__ == "__main__":
    main()
