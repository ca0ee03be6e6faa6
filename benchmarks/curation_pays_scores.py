"""Evaluation of generated videos in `benchmarks.curation_pays`: `clipmill curate`, and a Fréchet distance."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill import curate
from clipmill.video_writer import Encoding, write_video
from curation.dataset.tables import Dataset
from curation.scan.one_pass import ScanConfig
from curation.shots.spans import SpanConfig
from demo.model import demo_config

FPS = 4
_ENLARGED = 4
"""The scorers are made for real footage, so frames of 64 x 96 are enlarged by this factor."""
STILL_BELOW = 0.5
"""Motion in percent of the shorter side per second: the threshold of the rules for pretraining."""

FIGURES = {
    "cuts": "share of videos with a cut in them",
    "stills": "share of stills (motion below 0.5 %/s)",
    "text_area": "text area, mean share of the frame",
    "similarity": "similarity to the caption (CLIP)",
    "frechet": "Fréchet distance to good clips kept back (CLIP)",
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Curation results for a folder of videos."""

    cuts: float
    stills: float
    text_area: float
    similarity: float
    embeddings_ND: NDArray[np.float64]
    """Normalized embeddings of the clips."""

    def figures(self, against: "Scores") -> dict[str, float]:
        """Figures by name, including the distance to the clips of `against`."""
        figures = {name: float(getattr(self, name)) for name in FIGURES if name != "frechet"}
        return figures | {"frechet": frechet_distance(self.embeddings_ND, against.embeddings_ND)}


def write_videos(folder: Path, videos: NDArray[np.uint8], captions: list[str]) -> None:
    """Write (N, T, H, W, 3) RGB as N enlarged mp4 files with caption sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (frames_THWC, caption) in enumerate(zip(videos, captions, strict=True)):
        path = folder / f"{number:04d}.mp4"
        size = frames_THWC.shape[2] * _ENLARGED, frames_THWC.shape[1] * _ENLARGED
        write_video(
            path,
            (np.ascontiguousarray(cv2.resize(f[..., ::-1], size, interpolation=cv2.INTER_CUBIC)) for f in frames_THWC),
            range(len(frames_THWC)),
            time_base=Fraction(1, FPS),
            fps=Fraction(FPS),
            width=size[0],
            height=size[1],
            encoding=Encoding(crf=10),
        )
        path.with_suffix(".json").write_text(json.dumps({"captions": [{"text": caption}]}))


def score(folder: Path, dataset: Path) -> Scores:
    """Curate the videos of `folder` into `dataset` and aggregate the scores.

    Each video has equal weight, regardless of its number of clips; a video without clips only counts for the cuts.
    """
    config = demo_config().model_copy(
        update={"scan": ScanConfig(spans=SpanConfig(min_s=0.7, max_s=20.0)), "duplicates": None}
    )
    curate([str(folder)], str(dataset), config=config, quiet=True)
    with Dataset(str(dataset)).connect() as connection:
        ((videos, cut),) = connection.execute(
            "SELECT count(*), count(*) FILTER (len(transitions) > 0) FROM sources"
        ).fetchall()
        rows = connection.execute(
            "SELECT avg(motion), max(text_area), avg(similarity) FROM joined GROUP BY uri ORDER BY uri"
        ).fetchall()
        embeddings = connection.execute("SELECT embedding FROM joined ORDER BY clip_id").fetchall()
    motion, text_area, similarity = (np.array(column, float) for column in zip(*rows, strict=True))
    return Scores(
        cuts=cut / videos,
        stills=float((motion < STILL_BELOW).mean()),
        text_area=float(text_area.mean()),
        similarity=float(similarity.mean()),
        embeddings_ND=np.array([row for (row,) in embeddings], np.float64),
    )


def frechet_distance(a_ND: NDArray[np.float64], b_ND: NDArray[np.float64]) -> float:
    """Distance between two Gaussians with the samples' means and covariances (Heusel et al., arXiv 1706.08500, equation
    6): |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).
    """
    a_DD, b_DD = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    root_DD = _root(a_DD)
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root_DD @ b_DD @ root_DD), 0, None)).sum()
    apart = np.square(a_ND.mean(0) - b_ND.mean(0)).sum()
    return float(apart + np.trace(a_DD) + np.trace(b_DD) - 2 * mixed)


def _root(matrix_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix_DD)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
