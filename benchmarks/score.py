"""`clipmill score` from the stored pictures, beside a plain loop over the same pictures.

    python -m benchmarks.score [--clips 10000] [--num-cpus 1]

Both decode three pictures per clip and run the scorer `sharpness` of examples/ on them. The loop reads one part after
another in this process and writes one table. CPU seconds of the run include the driver, Ray and its workers, but not
their start: they are warmed up on another dataset.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import cpu_s, report
from benchmarks.scale import tree_cpu_s
from clipmill import ClipView, Dataset, score
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.scores.registry import scorer_spec
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from tests.media import texture

_SCORER = f"{Path(__file__).parents[1] / 'examples' / 'clipmill_examples' / 'sharpness.py'}:Sharpness"
_CLIPS_PER_PART = 500
_SIZE = (320, 180)
_PICTURES = 64


def pictures() -> list[bytes]:
    """JPEGs as previews are, some 12 kB each."""
    jpegs = []
    for i in range(_PICTURES):
        image = cv2.GaussianBlur(cv2.resize(texture(180, 320, seed=i), _SIZE), (0, 0), 1 + i % 4)
        jpegs.append(cv2.imencode(".jpg", cv2.merge([image] * 3).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
    return [jpeg.tobytes() for jpeg in jpegs]


def write_dataset(folder: Path, clips: int) -> Dataset:
    """A dataset of clips that were never scanned, with pictures."""
    dataset = Dataset(str(folder)).create_or_open(CurateConfig().described())
    jpegs = pictures()
    for start in range(0, clips, _CLIPS_PER_PART):
        part, numbers = f"{start:016x}", range(start, min(start + _CLIPS_PER_PART, clips))
        ids = [f"{start:016x}-{i}-{i + 1}" for i in numbers]
        rows = [{"clip_id": clip_id, "source_id": part, "uri": "/nowhere.mp4", "duration_s": 2.0} for clip_id in ids]
        strips = [
            {"clip_id": clip_id, **{name: jpegs[(3 * i + j) % _PICTURES] for j, name in enumerate(PREVIEWS.names[1:])}}
            for i, clip_id in enumerate(ids)
        ]
        dataset.write_part("previews", part, pa.Table.from_pylist(strips, PREVIEWS))
        dataset.write_part("clips", part, pa.Table.from_pylist(rows, CLIPS))
        dataset.write_part("sources", part, pa.Table.from_pylist([{"source_id": part, "status": "ok"}], SOURCES))
    return dataset


def plain_loop(dataset: Dataset, out: Path) -> None:
    """What a script would do."""
    scorer = scorer_spec(_SCORER)()
    rows = []
    for path in sorted(Path(dataset.url, "previews").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            images = [cv2.imdecode(np.frombuffer(row[name], np.uint8), cv2.IMREAD_COLOR) for name in PREVIEWS.names[1:]]
            assert all(image is not None for image in images)
            (values,) = scorer.score([ClipView(previews=tuple(images))])  # type: ignore[arg-type]
            rows.append({"clip_id": row["clip_id"], **values})
    pq.write_table(pa.Table.from_pylist(rows), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--num-cpus", type=int, default=1)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="clipmill-score-"))
    cv2.setNumThreads(1)
    try:
        dataset = write_dataset(work / "dataset", arguments.clips)
        before_s, started_s = cpu_s(), time.monotonic()
        plain_loop(dataset, work / "plain.parquet")
        loop_cpu_s, loop_wall_s = cpu_s() - before_s, time.monotonic() - started_s
        with connected(num_cpus=arguments.num_cpus):
            score(write_dataset(work / "warm", 2 * _CLIPS_PER_PART).url, _SCORER, quiet=True)
            before_s = tree_cpu_s()
            result = score(dataset.url, _SCORER, quiet=True)
            run_cpu_s = tree_cpu_s() - before_s
        assert result.scored_now == arguments.clips
        plain = {row["clip_id"]: row["sharpness"] for row in pq.read_table(work / "plain.parquet").to_pylist()}
        with dataset.connect() as connection:
            scored = dict(connection.execute("SELECT clip_id, sharpness FROM joined").fetchall())
        assert scored.keys() == plain.keys()
        assert all(np.float32(plain[clip_id]) == value for clip_id, value in scored.items())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rows = [
        ("clipmill score", arguments.clips / run_cpu_s, arguments.clips / result.wall_s),
        ("a plain loop", arguments.clips / loop_cpu_s, arguments.clips / loop_wall_s),
    ]
    figures = {
        "clips": arguments.clips,
        "num_cpus": arguments.num_cpus,
        "score_clips_per_cpu_s": round(rows[0][1], 1),
        "loop_clips_per_cpu_s": round(rows[1][1], 1),
        "score_clips_per_s": round(rows[0][2], 1),
        "loop_clips_per_s": round(rows[1][2], 1),
    }
    report("scores from stored pictures", ("", "clips / CPU s", "clips / s"), rows, figures)


if __name__ == "__main__":
    main()
