"""Small datasets with pictures, whose texts try to become code."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.tables import Dataset

HOSTILE = (
    "<script>window.attacked = 1</script>",
    "</script><script>window.attacked = 2</script>",
    "<img src=x onerror='window.attacked = 3'>",
    "\"'><svg/onload=window.attacked=4>",
    "javascript:window.attacked=5",
    "]]>--><!--<![CDATA[\u2028\u2029\x00\x1b[31m\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "{{constructor.constructor('window.attacked=6')()}} ${window.attacked=7}",
)


def jpeg(seed: int, size: tuple[int, int] = (160, 90)) -> bytes:
    """A small picture of blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(written, "JPEG")
    return written.getvalue()


def make(
    folder: Path | str, count: int = 60, *, seed: int = 0, scores: bool = True, video: str | None = None, parts: int = 2
) -> Dataset:
    """Clips with ties, missing and infinite scores and hostile texts; every tenth is a copy of the one before it."""
    random, dataset = np.random.default_rng(seed), Dataset(str(folder)).create_or_open({})
    rows: list[dict[str, Any]] = []
    for i in range(count):
        motion = np.float32(random.choice([random.gamma(2, 3), round(random.gamma(2, 3)), 0.1]))
        rows.append(
            {
                "clip_id": f"{i % 5:016x}-{i * 1000}-{i * 1000 + 900}",
                "source_id": f"{i % 5:016x}",
                "uri": video or f"/videos/{i % 5}{HOSTILE[i % 5].replace('/', '')}.mp4",
                "start_s": 0.2 if video else float(i),
                "end_s": 0.6 if video else i + 0.9,
                "duration_s": float(random.uniform(0.5, 9)),
                "width": int(random.choice([320, 640, 1280])),
                "codec": "h264",
                "motion": None if i % 11 == 10 else float("inf") if i % 13 == 12 else float(motion),
                "motion_error": "<b>flow</b> failed" if i % 11 == 10 else None,
                "aesthetic": float(np.float32(random.normal(5, 1))),
                "text_area": float(np.float32(random.choice([0, 0, 0.07, random.uniform(0, 0.3)]))),
                "text_area_frames": [0.0, 0.07, 0.01],
                "text_boxes": [{"frame": 1, "corners": [0.1, 0.1, 0.4, 0.1, 0.4, 0.3, 0.1, 0.3]}],
                "source_captions": [i % len(HOSTILE)],
            }
        )
    for part in range(parts):
        mine = rows[part::parts]
        previews = [
            {"clip_id": row["clip_id"]} | {name: jpeg(i) for i, name in enumerate(("first", "middle", "last"))}
            for row in mine
        ]
        dataset.write_part("previews", f"p{part}", pa.Table.from_pylist(previews, PREVIEWS))
        dataset.write_part("clips", f"p{part}", pa.Table.from_pylist(mine, CLIPS))
        sources = [_source(i, rows) for i in range(5)] + [_without_clips(), _rejected()] if part == 0 else []
        dataset.write_part("sources", f"p{part}", pa.Table.from_pylist(sources, SOURCES))
    if scores:
        _write_scores(dataset, rows, random)
    return dataset


def _source(i: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    transitions = [{"kind": "hard", "start_frame": 25, "end_frame": 25, "start_s": 1.0, "end_s": 1.0}]
    columns = {
        "status": "ok",
        "start_s": 0.0,
        "duration_s": 80.0,
        "clip_s": 60.0,
        "lost_transition_s": 5.0,
        "scan_cpu_s": 2.0,
    }
    refused = {"kind": "dissolve", "start_frame": 60, "end_frame": 70, "start_s": 2.4, "end_s": 2.8}
    columns |= {"refused_cuts": [refused | {"reason": HOSTILE[3]}]}
    columns |= {"hdr": i == 4, "bit_depth": 10 if i == 4 else 8, "audio": False}
    columns |= {"metadata": [("license", "CC0" if i < 3 else "CC BY 4.0"), ("author", HOSTILE[i]), (HOSTILE[3], "tag")]}
    columns |= {"captions": [{"source": t[:20], "text": t, "error_kind": None, "error": None} for t in HOSTILE]}
    columns |= {"frame_changes": [1] * 25 + [60] + [1] * 74, "frame_brightness": [100] * 100}
    return {"source_id": f"{i:016x}", "uri": rows[i]["uri"], "codec": "h264", "transitions": transitions} | columns


def _without_clips() -> dict[str, Any]:
    cut = {"kind": HOSTILE[3], "start_frame": 3, "end_frame": 3, "start_s": 0.1, "end_s": 0.1}
    texts = {"uri": "/videos/only-short-shots.mp4", "note": f"no shot yields a clip of 2 s {HOSTILE[5]}"}
    return {"source_id": "e" * 16, "status": "ok", "start_s": 0.0, "duration_s": 3.0, "transitions": [cut], **texts}


def _rejected() -> dict[str, Any]:
    texts = {"uri": HOSTILE[0], "error_kind": HOSTILE[1], "error": HOSTILE[2]}
    return {"source_id": "f" * 16, "status": "rejected", **texts}


def _write_scores(dataset: Dataset, rows: list[dict[str, Any]], random: np.random.Generator) -> None:
    ids = [row["clip_id"] for row in rows]
    copies = [i % 10 == 1 for i in range(len(rows))]
    duplicates = {
        "clip_id": ids,
        "duplicate_rank": pa.array([int(copy) for copy in copies], pa.int32()),
        "duplicate_of": pa.array([ids[i - 1] if copy else None for i, copy in enumerate(copies)], pa.string()),
        "duplicate_cosine": pa.array([0.97 if copy else None for copy in copies], pa.float32()),
    }
    dataset.write_part("scores/duplicates", "duplicates", pa.table(duplicates))
    sharpness = pa.array(random.normal(0, 1, len(rows)))
    meaning = {"meaning": "how sharp <i>it</i> is", "unit": "dB", "better": "higher"}
    schema = pa.schema(
        [
            pa.field("clip_id", pa.string()),
            pa.field("sharpness", pa.float64(), metadata=meaning),
            pa.field('<img src=x onerror="window.attacked=8">', pa.float64()),
        ]
    )
    dataset.write_part("scores/mine", "mine", pa.table([pa.array(ids), sharpness, sharpness], schema=schema))
