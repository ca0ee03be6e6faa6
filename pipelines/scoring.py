"""What every source goes through, with a cluster or without: a scan in a child process, captions, scores."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from clipmill.columns import LEFT_OUT
from clipmill.errors import SourceError, UserError
from curation.captioners import CAPTIONERS
from curation.inputs.captions import Caption
from curation.inputs.sources import Source
from curation.scan.isolation import Isolated
from curation.scan.one_pass import Scan, rejected, scan
from curation.scan.validate import check_scan
from curation.scores.base import Captioner, ClipView, Embeddings, Scorer
from curation.scores.clip_embedder import ClipEmbedder, embedding_columns
from curation.scores.columns import SCORE_COLUMNS
from curation.scores.registry import SCORERS
from pipelines.config import CurateConfig

_CLIPS_AT_ONCE = 64
"""Of their thumbnails, decoded, so many are in memory at a time: about 130 MB."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Whatever looks at clips, loaded."""

    scorers: tuple[Scorer, ...]
    clip: ClipEmbedder | None
    left_out: tuple[str, ...]

    @property
    def notices(self) -> list[str]:
        """What a user of these models should be told."""
        return [self.clip.weights.notice] if self.clip and self.clip.weights.notice else []


def scan_safely(child: Isolated, source: Source, config: CurateConfig) -> Scan:
    """Scan in the child process. Whatever happens there, the answer is a scan: a rejected one says why.

    Raises RunStopped where it is the machine that fails: no child can start, the temporary folder is full.
    """
    try:
        scanned = child.run_on(source.uri, scan, source, config.scan_settings())
        check_scan(scanned, source)
        return scanned
    except SourceError as error:
        return rejected(source, error)


def load_models(config: CurateConfig, device: str = "cpu") -> Models:
    """Every scorer that is not left out, and the CLIP model if one of them needs it, loaded onto `device`.

    Raises UserError where weights are missing or do not fit together.
    """
    scorers = tuple(_made(kind, config, name) for name, kind in SCORERS.items() if name not in config.without)
    clip = ClipEmbedder(config.clip_embedder) if any(scorer.needs_embeddings for scorer in scorers) else None
    if clip:
        clip.load(device)
    for scorer in scorers:
        scorer.load(device)
        if clip and scorer.embedding_width not in (None, clip.width):
            raise UserError(
                f"the {scorer!r} was made for embeddings of width {scorer.embedding_width}, but CLIP model "
                f"{clip.weights.name} gives {clip.width}: choose a head and a model that belong together"
            )
    return Models(scorers=scorers, clip=clip, left_out=config.without)


def load_captioners(config: CurateConfig, device: str = "cpu") -> list[Captioner]:
    """Every captioner that the configuration asks for, loaded, in the order in which they run."""
    asked = {name: settings for name in CAPTIONERS if (settings := getattr(config.captioners, name)) is not None}
    captioners = [CAPTIONERS[name](settings) for name, settings in asked.items()]
    for captioner in captioners:
        captioner.load(device)
    return captioners


def caption_clips(captioners: Sequence[Captioner], scans: Sequence[Scan]) -> None:
    """Add every captioner's caption to the clips of the scans; later ones see those of the earlier ones."""
    for clips, seen in _views(scans):
        views = seen
        for captioner in captioners:
            for clip, caption in zip(clips, captioner.caption(views), strict=True):
                clip["captions"].append(asdict(caption))
            views = [replace(view, captions=_captions(clip)) for view, clip in zip(views, clips, strict=True)]


def score_clips(models: Models, scans: Sequence[Scan]) -> None:
    """Add every scorer's columns to the clips of the scans, in batches across sources, and what that cost."""
    started_s = time.process_time()
    clips_in_all = 0
    for clips, seen in _views(scans):
        clips_in_all += len(clips)
        embeddings = _embedded(models, seen)
        views = [replace(view, embeddings=found) for view, found in zip(seen, embeddings, strict=True)]
        for clip, found in zip(clips, embeddings, strict=True):
            clip.update(embedding_columns(found) | _null_columns(models.left_out))
        for scorer in models.scorers:
            for clip, columns in zip(clips, scorer.score(views), strict=True):
                clip.update(columns)
    seconds_per_clip = (time.process_time() - started_s) / max(1, clips_in_all)
    for scanned in scans:
        scanned.source["score_cpu_s"] = seconds_per_clip * len(scanned.clips)


def decode_jpeg(jpeg: bytes) -> Any:
    """(height, width, 3) uint8 BGR."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "a thumbnail that the scan itself compressed"
    return image


def _made(kind: Any, config: CurateConfig, name: str) -> Scorer:
    scorer: Scorer = kind(getattr(config, name)) if name in type(config).model_fields else kind()
    return scorer


def _views(scans: Sequence[Scan]) -> Iterator[tuple[list[dict[str, Any]], list[ClipView]]]:
    """The clips of all scans, some at a time, with what models see of them."""
    pairs = [pair for scanned in scans for pair in zip(scanned.clips, scanned.thumbnails, strict=True)]
    for i in range(0, len(pairs), _CLIPS_AT_ONCE):
        some = pairs[i : i + _CLIPS_AT_ONCE]
        views = [ClipView(thumbnails=tuple(map(decode_jpeg, jpegs)), captions=_captions(clip)) for clip, jpegs in some]
        yield [clip for clip, _ in some], views


def _captions(clip: dict[str, Any]) -> tuple[Caption, ...]:
    return tuple(Caption(**caption) for caption in clip["captions"])


def _embedded(models: Models, views: Sequence[ClipView]) -> list[Embeddings]:
    if models.clip is None:
        return [Embeddings(error=f"{LEFT_OUT}: no score of this run needs it")] * len(views)
    try:
        return models.clip.embed(views)
    except Exception as error:  # one image, or too little memory for so many, must not end the run
        if len(views) == 1:
            return [Embeddings(error=f"{type(error).__name__}: {error}")]
        return [found for view in views for found in _embedded(models, [view])]


def _null_columns(left_out: Sequence[str]) -> dict[str, Any]:
    """Null columns for the scores that were left out."""
    names = {name: [column.name for column in SCORE_COLUMNS[name]] for name in left_out}
    return {
        column: f"{LEFT_OUT}: --without {name}" if column == f"{name}_error" else None
        for name, columns in names.items()
        for column in columns
    }
