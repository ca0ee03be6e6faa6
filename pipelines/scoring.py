"""The two steps that every source goes through, with a cluster or without: a scan in a child process, then scores."""

import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from curation.errors import SourceError
from curation.isolation import Isolated
from curation.scan import Scan, rejected, scan
from curation.scores import SCORERS, ClipView, Scorer
from curation.sources import Source
from pipelines.config import CurateConfig


def scan_safely(child: Isolated, source: Source, config: CurateConfig) -> Scan:
    """Scan in the child process. Whatever happens there, the answer is a scan: a rejected one says why."""
    try:
        return child.run(scan, source, config)
    except SourceError as error:
        return rejected(source, error)


def load_scorers(config: CurateConfig, device: str = "cpu") -> list[Scorer]:
    """Every registered scorer with its settings, models loaded."""
    scorers = [kind(getattr(config, name)) for name, kind in SCORERS.items()]
    for scorer in scorers:
        scorer.load(device)
    return scorers


def score_clips(scorers: Sequence[Scorer], scans: Sequence[Scan]) -> None:
    """Add every scorer's columns to the clips of the scans, as one batch over all of them, and what that cost."""
    views = [
        ClipView(
            pictures=tuple(decode_jpeg(jpeg) for jpeg in jpegs),
            captions=tuple(caption["text"] for caption in clip["captions"]),
        )
        for found in scans
        for clip, jpegs in zip(found.clips, found.pictures, strict=True)
    ]
    started_s = time.process_time()
    scores = [scorer.score(views) for scorer in scorers]
    seconds_per_clip = (time.process_time() - started_s) / max(1, len(views))
    rows = zip(*scores, strict=True)
    for found in scans:
        found.source["score_cpu_s"] = seconds_per_clip * len(found.clips)
        for clip in found.clips:
            for columns in next(rows):
                clip.update(columns)


def decode_jpeg(jpeg: bytes) -> Any:
    """(height, width, 3) uint8 BGR."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, "a picture that the scan itself compressed"
    return picture
