"""Precision and recall of transitions by kind, on real and rendered footage, compared with PySceneDetect's detectors.

    python -m benchmarks.cuts [--rendered N]

All detectors see downscaled frames. A detection matches a label if its middle lies within the labeled span widened by
two frames; several in one gradual span count once. "Leaked" are mixed frames of a labeled transition that the detection
leaves in the adjacent clips.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import cv2
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, SceneDetector

from benchmarks.common import real_videos, report
from curation.shots.cuts import CutDetector
from curation.video.decode import Video
from curation.video.resize import FrameResizer
from footage.render import corpus

SLACK_FRAMES = 2
OURS = "clipmill"
Span = tuple[str, int, int]
"""Kind, first changed frame, first frame of the next shot."""


@dataclass
class Case:
    """A video and its labels. Detections within `ignore` do not count."""

    path: Path
    labels: list[Span]
    ignore: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Count:
    """Matches of one kind. A false detection counts for the kind that it reports."""

    found: int = 0
    missed: int = 0
    false: int = 0
    leaked: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """Precision, recall and F1 from 0 to 1; 1 if there are no labels or no detections."""
        precision = self.found / (self.found + self.false) if self.found + self.false else 1.0
        recall = self.found / (self.found + self.missed) if self.found + self.missed else 1.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"precision": round(precision, 3), "recall": round(recall, 3), "f1": round(f1, 3)}


def real_cases(folder: Path) -> Iterator[Case]:
    """The videos labeled in cuts.json."""
    for name, entry in json.loads((folder / "cuts.json").read_text()).items():
        if not name.startswith("_"):
            labels = [(kind, start, end) for kind, start, end in entry["cuts"]]
            yield Case(folder / name, labels, [(start, end) for start, end in entry["ignore"]])


def rendered_cases(folder: Path, videos: int) -> Iterator[Case]:
    """Rendered footage with its ground truth; wipes are labeled separately from dissolves."""
    for truth in corpus(folder, seed=7, videos=videos):
        labels = [(t.effect, t.start_frame, t.end_frame) for t in truth.transitions]
        yield Case(folder / truth.file, labels)


def detect(path: Path) -> tuple[dict[str, list[Span]], float, int]:
    """Detections of each detector in a video, CPU seconds of ours, and the number of frames."""
    ours = CutDetector()
    others: dict[str, SceneDetector] = {"ContentDetector": ContentDetector(), "AdaptiveDetector": AdaptiveDetector()}
    spans: dict[str, list[Span]] = defaultdict(list)
    resizer, seconds, frames = FrameResizer(), 0.0, 0
    with path.open("rb") as file, Video(file) as video:
        tick_s = float(video.info.time_base)
        for frame in video.frames():
            luma = resizer.small_luma(frame.av_frame)
            bgr = resizer.upright_bgr(frame.av_frame, video.info, long_side_px=160)
            before = process_time()
            ours.push(frame.index, frame.pts, frame.pts * tick_s, luma)
            seconds += process_time() - before
            for name, detector in others.items():
                cuts = detector.process_frame(FrameTimecode(frame.index, video.info.fps or 25.0), bgr)
                spans[name] += [("hard", cut.frame_num, cut.frame_num) for cut in cuts]
            frames += 1
    before = process_time()
    spans[OURS] = [(t.kind, t.start_frame, t.end_frame) for t in ours.finish()]
    return spans, seconds + process_time() - before, frames


def count(case: Case, detected: Sequence[Span], counts: dict[str, Count]) -> None:
    """Add the matches of one video to `counts`, by the kind of the label."""

    def within(span: Span, start: int, end: int) -> bool:
        return start - SLACK_FRAMES <= (span[1] + span[2]) / 2 <= end + SLACK_FRAMES

    for kind, start, end in case.labels:
        hits = [span for span in detected if within(span, start, end)]
        counts[kind].found += bool(hits)
        counts[kind].missed += not hits
        if hits and end > start:
            covered = {frame for span in hits for frame in range(span[1], span[2])}
            counts[kind].leaked += len(set(range(start, end)) - covered)
    known = [(start, end) for _, start, end in case.labels] + case.ignore
    for span in detected:
        if not any(within(span, start, end) for start, end in known):
            counts[span[0]].false += 1


def total(counts: dict[str, Count]) -> Count:
    return Count(*(sum(getattr(c, name) for c in counts.values()) for name in ("found", "missed", "false", "leaked")))


def measure(cases: Iterator[Case]) -> tuple[dict[str, dict[str, Count]], float]:
    """Counts by detector and kind, and CPU milliseconds per frame of ours."""
    counts: dict[str, dict[str, Count]] = defaultdict(lambda: defaultdict(Count))
    seconds, frames = 0.0, 0
    for case in cases:
        detected, case_seconds, case_frames = detect(case.path)
        seconds, frames = seconds + case_seconds, frames + case_frames
        for detector in (OURS, "ContentDetector", "AdaptiveDetector"):
            count(case, detected[detector], counts[detector])
    return counts, 1000 * seconds / max(1, frames)


def rows(footage: str, counts: dict[str, dict[str, Count]]) -> Iterator[tuple[Any, ...]]:
    for detector, by_kind in counts.items():
        kinds = sorted(by_kind.items()) if detector == OURS else []
        for kind, c in [*kinds, ("all", total(by_kind))]:
            yield footage, detector, kind, c.found, c.missed, c.false, *c.figures.values(), c.leaked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rendered", type=int, default=24, help="number of videos to render")
    videos = parser.parse_args().rendered
    cv2.setNumThreads(1)
    real, real_ms = measure(real_cases(real_videos()))
    with tempfile.TemporaryDirectory() as folder:
        rendered, rendered_ms = measure(rendered_cases(Path(folder), videos))
    report(
        f"Transitions; ours costs {real_ms:.2f} ms per real frame and {rendered_ms:.2f} ms per rendered frame",
        ("footage", "detector", "kind", "found", "missed", "false", "precision", "recall", "F1", "leaked frames"),
        (*rows("real", real), *rows("rendered", rendered)),
        {"real": total(real[OURS]).figures, "rendered": total(rendered[OURS]).figures},
    )


if __name__ == "__main__":
    main()
