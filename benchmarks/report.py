"""The report's page for 20,000 clips and for a million: time and memory to write it, its size, and its latency.

    python -m benchmarks.report [--clips N] [--skip-browser]

Each page is written in its own process. Chromium (`chromium` on PATH) opens it from disk, without a network, and drags
a threshold; the latency is from the input to the frame with the new counts.
"""

import argparse
import io
import json
import os
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.common import cpu_s, in_child, memory_bytes
from benchmarks.common import report as print_table
from benchmarks.select_scale import clips_table, filled
from curation.dataset.schemas import PREVIEWS, SOURCES
from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.rules import Rules
from curation.selection.select import select_clips

_RULES = {"motion": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}, "duration_s": {"min": 2.0}}
_LARGE, _WHOLE = 1_000_000, 20_000
_PARTS = 64
_CLIPS_PER_SOURCE = 20
_PICTURES = 64
"""Number of different images; the 20,000 clips draw from them, each with its own JPEG quality."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=_LARGE, help="clips of the larger dataset")
    parser.add_argument("--skip-browser", action="store_true")
    parser.add_argument("--write", metavar="DATASET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps(_write(options.write)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="clipmill-report-") as folder:
        for name, clips in (("whole", _WHOLE), ("sample", options.clips)):
            dataset = f"{folder}/{name}"
            _build(dataset, clips)
            written = in_child("benchmarks.report", "--write", dataset)
            file = written.pop("file")
            browser = {} if options.skip_browser else _open(file, dataset)
            figures |= {f"{name}_{key}": value for key, value in ({"clips": clips} | written | browser).items()}
            shutil.rmtree(dataset)
    goals = {"write_s": "60", "peak_gib": "2", "size_mb": "40", "ready_s": "3", "slider_ms": "100", "error": "0.01"}
    rows = [
        (key, *(figures.get(f"{name}_{key}", "–") for name in ("whole", "sample")), goals.get(key, ""))
        for key in (
            "clips",
            "shown",
            "with_pictures",
            "write_s",
            "write_cpu_s",
            "peak_gib",
            "size_mb",
            "ready_s",
            "slider_ms",
            "error",
        )
    ]
    print_table("the report's page", ("", "all clips in it", "a sample", "at most"), rows, figures)


def _write(dataset: str) -> dict[str, Any]:
    start, cpu_before_s = time.perf_counter(), cpu_s()
    opened = Dataset(dataset)
    built = build_report(opened)
    file = write_page(opened, "all", built)
    return {
        "file": file,
        "shown": built.shown,
        "with_pictures": built.with_pictures,
        "write_cpu_s": round(cpu_s() - cpu_before_s, 1),
        "write_s": round(time.perf_counter() - start, 1),
        "peak_gib": round(memory_bytes() / 2**30, 2),
        "size_mb": round(os.path.getsize(file) / 1e6, 1),
    }


def _open(file: str, dataset: str) -> dict[str, float]:
    """Seconds until the page is usable, median milliseconds from moving a threshold to the new counts, and the error.

    The error is the difference between the page's count of clips and that of `select`, as a share of all.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        executable = os.environ.get("CLIPMILL_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True).new_page()
        start = time.perf_counter()
        page.goto(Path(file).as_uri(), timeout=120_000)
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        ready_s = time.perf_counter() - start
        moved = """async step => {
            const start = performance.now();
            const handle = document.querySelector('[data-column=motion] .handle.min');
            handle.dispatchEvent(new KeyboardEvent('keydown', {key: 'PageUp', bubbles: true}));
            await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            return performance.now() - start;
        }"""
        latencies_ms = sorted(page.evaluate(moved, step) for step in range(11))
        judge = """rules => {
            const clips = clipmill.judge.judge(new Map(Object.entries(rules)), false).clips;
            return clips * clipmill.scale;
        }"""
        counted = page.evaluate(judge, _RULES)
        browser.close()
    rules = Rules.from_values({"name": "benchmark", "rules": _RULES}, origin="benchmark")
    selection = select_clips(Dataset(dataset), rules, dry_run=True)
    error = abs(counted - selection.clips) / selection.total_clips
    return {"error": round(error, 5), "ready_s": round(ready_s, 2), "slider_ms": round(latencies_ms[5], 1)}


def _build(folder: str, clips: int) -> None:
    """Clips with thumbnails of a realistic size: JPEGs of 320 x 180 of about 8 kB."""
    dataset = Dataset(folder).create_or_open({"benchmark": "report", "clips": clips})
    pictures = [_picture(seed) for seed in range(_PICTURES)]
    bounds = np.linspace(0, clips / _CLIPS_PER_SOURCE, _PARTS + 1).astype(int) * _CLIPS_PER_SOURCE  # whole sources
    for part, (first, last) in enumerate(pairwise(bounds.tolist())):
        random = np.random.default_rng(part)
        table = clips_table(random, first, last)
        chosen = pa.array(pictures, pa.binary())
        drawn = {
            name: chosen.take(pa.array(random.integers(0, _PICTURES, last - first))) for name in PREVIEWS.names[1:]
        }
        dataset.write_part("previews", f"{part:04d}", pa.table({"clip_id": table["clip_id"], **drawn}, PREVIEWS))
        dataset.write_part("clips", f"{part:04d}", table)
        ids = table["source_id"].unique()
        columns = {"source_id": ids, "status": pa.array(["ok"] * len(ids))}
        dataset.write_part("sources", f"{part:04d}", filled(SOURCES, columns, len(ids)))


def _picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (9, 16, 3), dtype=np.uint8)).resize((320, 180))
    noisy = np.clip(np.asarray(coarse, np.int16) + random.normal(0, 6, (180, 320, 3)), 0, 255).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(noisy).save(written, "JPEG", quality=75)
    return written.getvalue()


if __name__ == "__main__":
    main()
