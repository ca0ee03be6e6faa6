"""CPU time of a scan, relative to one plain single-threaded decode of the same file.

    python -m benchmarks.scan [--runs N]

PySceneDetect's detection alone is measured for comparison.
"""

import argparse
import os
from pathlib import Path

os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # read when OpenCV is imported

import av
import cv2
from scenedetect import AdaptiveDetector, SceneManager, open_video

from benchmarks.common import cpu_s, interleaved, real_videos, report
from curation.inputs.sources import list_sources
from curation.scan.one_pass import scan

SUMMED = ("v2d_test", "psd_testvideo", "cc_test_video_30s", "dj_video1", "dj_video3")
UNSCANNABLE = ("dec_corrupted",)


def decode(path: Path) -> None:
    """Decode every frame on one thread and discard it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for _ in container.decode(stream):
            pass


def measure(path: Path, runs: int) -> dict[str, float]:
    """Median CPU seconds of decode, scan and PySceneDetect on one file."""
    (source,) = list_sources([str(path)])
    seconds = interleaved(runs, decode=lambda: decode(path), scan=lambda: scan(source))
    before = cpu_s()
    frames = detect_scenes(path)
    return seconds | {"scenedetect": cpu_s() - before if frames else float("nan")}


def detect_scenes(path: Path) -> int:
    """PySceneDetect with its defaults; returns the number of frames it read, 0 for a codec that its OpenCV cannot
    decode.
    """
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector())
    return manager.detect_scenes(open_video(str(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs per file; the median is reported")
    runs = parser.parse_args().runs
    cv2.setNumThreads(1)
    paths = sorted(p for p in real_videos().iterdir() if p.suffix in (".mp4", ".mkv") and p.stem not in UNSCANNABLE)
    seconds = {path.stem: measure(path, runs) for path in paths}
    total = {kind: sum(seconds[name][kind] for name in SUMMED) for kind in ("decode", "scan", "scenedetect")}
    rows = [*sorted(seconds.items(), key=lambda item: item[0] not in SUMMED), ("sum of the first five", total)]
    report(
        "CPU seconds of one scan and of one plain decode",
        ("file", "decode s", "scan s", "scan / decode", "PySceneDetect s", "PySceneDetect / decode"),
        (
            (name, s["decode"], s["scan"], s["scan"] / s["decode"], s["scenedetect"], s["scenedetect"] / s["decode"])
            for name, s in rows
        ),
        {
            "ratio": round(total["scan"] / total["decode"], 3),
            "files": {name: round(s["scan"] / s["decode"], 3) for name, s in seconds.items()},
        },
    )


if __name__ == "__main__":
    main()
