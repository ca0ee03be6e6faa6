"""The clip stages: captioners, the CLIP embedder, scorers, previews. They run with or without Ray.

They process the three thumbnails of each clip from the scan, several dozen clips at a time.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, cast

import cv2
import numpy as np

from clipmill.config import Config
from clipmill.errors import UserError
from clipmill.pipeline import Resources, Stage
from curation.captioners import CAPTIONERS
from curation.captioners.endpoint import EndpointCaptioner
from curation.inputs.captions import Caption
from curation.scan.one_pass import Scan
from curation.scores.base import Captioner, ClipView, Embeddings, Scorer
from curation.scores.clip_embedder import ClipEmbedder, embedding_columns
from curation.scores.columns import FAILED, LEFT_OUT, SCORE_COLUMNS
from curation.scores.registry import SCORERS
from curation.video.resize import Image
from pipelines.config import CurateConfig

_CLIPS_AT_ONCE = 64
"""Number of clips with decoded thumbnails in memory at a time, about 130 MB."""
SOURCES_PER_BATCH = 4
"""Number of sources whose clips a worker captions and scores at a time."""
_NOTHING = Resources(num_cpus=0)


class ClipBatch:
    """Clips of one or several sources. Stages read `views()` and fill `rows`."""

    def __init__(self, rows: list[dict[str, Any]], jpegs: list[tuple[bytes, ...]]) -> None:
        self.rows = rows
        """Rows of the clips table."""
        self.jpegs = jpegs
        """First, middle and last thumbnail of each clip, as JPEG."""
        self.embeddings: list[Embeddings | None] = [None] * len(rows)

    @cached_property
    def _thumbnails(self) -> list[tuple[Image, ...]]:
        return [tuple(map(decode_jpeg, jpegs)) for jpegs in self.jpegs]

    def views(self) -> list[ClipView]:
        """Input of captioners and scorers per clip: its captions and embeddings from the stages so far."""
        return [
            ClipView(thumbnails=thumbnails, captions=_captions(row), embeddings=embeddings)
            for row, thumbnails, embeddings in zip(self.rows, self._thumbnails, self.embeddings, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Models:
    """The loaded models of all clip stages."""

    captioners: tuple[Captioner, ...]
    clip: ClipEmbedder | None
    scorers: tuple[Scorer, ...]

    @property
    def resources(self) -> dict[str, Resources]:
        """Name -> resources of a worker, now that the weights are known."""
        models: list[Captioner | ClipEmbedder | Scorer] = [*self.captioners, *self.scorers]
        if self.clip:
            models.append(self.clip)
        return {model.name: model.resources for model in models}

    @property
    def notices(self) -> list[str]:
        """Notices to users of these models."""
        return [self.clip.weights.notice] if self.clip and self.clip.weights.notice else []


def load_models(config: CurateConfig, device: str = "cpu") -> Models:
    """Load every configured captioner and scorer, and the CLIP model if one of them needs it.

    The process caches them for its stages; `forget_models` drops them. Raises UserError if weights are missing or do
    not match.
    """
    models = Models(
        captioners=tuple(_load(*asked, device) for asked in _captioners(config)),
        clip=_load(ClipEmbedder, config.clip_embedder, device) if _needs_clip(config) else None,
        scorers=tuple(_load(*asked, device) for asked in _scorers(config)),
    )
    for scorer in models.scorers:
        if models.clip and scorer.embedding_width not in (None, models.clip.width):
            raise UserError(
                f"the {scorer!r} expects embeddings of width {scorer.embedding_width}, but CLIP model "
                f"{models.clip.weights.name} gives {models.clip.width}: choose a matching head and model"
            )
    return models


def model_loaders(config: CurateConfig) -> dict[str, Callable[[], str]]:
    """Name -> a function that loads a model with weights, cached as by `load_models`, and returns the weights' digest.

    It raises UserError if they are missing or do not match. Without captioners behind an endpoint.
    """
    asked: list[tuple[Callable[..., Any], Config | None]] = [*_captioners(config), *_scorers(config)]
    if _needs_clip(config):
        asked.append((ClipEmbedder, config.clip_embedder))
    models = [(_made(*each), each) for each in asked]
    with_weights = [(model.name, each) for model, each in models if not isinstance(model, EndpointCaptioner)]
    return {name: partial(_load_and_digest, *each) for name, each in with_weights}


def _load_and_digest(kind: Callable[..., Any], settings: Config | None) -> str:
    model = _load(kind, settings, "cpu")
    return model.weights.digest() if isinstance(model, ClipEmbedder) else model.weights_digest or ""


def clip_stages(config: CurateConfig, resources: Mapping[str, Resources] | None = None) -> list[Stage]:
    """Captioners, embedder and scorers of the configuration, and previews, in the order in which they run.

    `resources` by name, of loaded models (`Models.resources`); without them, those that the classes declare.
    """

    def stage(work: Callable[[Any, ClipBatch], None], kind: Callable[..., Any], settings: Config | None) -> Stage:
        model = _made(kind, settings)
        takes = (resources or {}).get(model.name, model.resources)
        return _on_clips(
            model.name,
            needs=model.needs,
            gives=_gives(model),
            load=partial(_load_work, work, kind, settings),
            resources=replace(takes, num_cpus=0) if "embeddings" in model.needs else takes,
        )

    captioners = [stage(_caption, *asked) for asked in _captioners(config)]
    embedder = [stage(_embed, ClipEmbedder, config.clip_embedder)] if _needs_clip(config) else []
    scorers = [stage(_score, *asked) for asked in _scorers(config)]
    # Embeddings do not leave the worker that makes them: scorers that need them come first, and run there.
    scorers.sort(key=lambda scorer: "embeddings" not in scorer.needs)
    previews = _on_clips(
        "previews", needs=("thumbnails",), gives=("previews",), load=_load_previews, resources=_NOTHING
    )
    return [*captioners, *embedder, *scorers, *_left_out(config), previews]


def forget_models() -> None:
    """Drop the models cached by this process."""
    _loaded.cache_clear()


def decode_jpeg(jpeg: bytes, flags: int = cv2.IMREAD_COLOR) -> Any:
    """(height, width, 3) uint8 BGR; with IMREAD_REDUCED_COLOR_2 at half the size."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
    assert image is not None, "a thumbnail that the scan itself compressed"
    return image


def divide_clips(scans: Sequence[Scan]) -> Iterator[ClipBatch]:
    """Divide the clips of several scans into batches, across sources, and record the CPU time they take."""
    for scanned in scans:
        scanned.source.setdefault("score_cpu_s", 0.0)
    places = [(scanned, i) for scanned in scans for i in range(len(scanned.clips))]
    for start in range(0, len(places), _CLIPS_AT_ONCE):
        some = places[start : start + _CLIPS_AT_ONCE]
        started_s = time.process_time()
        batch = ClipBatch([scanned.clips[i] for scanned, i in some], [scanned.thumbnails[i] for scanned, i in some])
        yield batch
        seconds_per_clip = (time.process_time() - started_s) / len(some)
        for (scanned, i), jpegs in zip(some, batch.jpegs, strict=True):
            scanned.thumbnails[i] = jpegs
            scanned.source["score_cpu_s"] += seconds_per_clip


def _on_clips(
    name: str,
    *,
    needs: tuple[str, ...],
    gives: tuple[str, ...],
    load: Callable[[str], Callable[[Any], Any]],
    resources: Resources,
) -> Stage:
    return Stage(
        name=name,
        needs=needs,
        gives=gives,
        load=load,
        resources=resources,
        batch_size=SOURCES_PER_BATCH,
        divide=divide_clips,
    )


def _captioners(config: CurateConfig) -> list[tuple[Callable[..., Captioner], Config]]:
    asked = ((kind, getattr(config.captioners, name)) for name, kind in CAPTIONERS.items())
    return [(kind, settings) for kind, settings in asked if settings is not None]


def _scorers(config: CurateConfig) -> list[tuple[Callable[..., Scorer], Config | None]]:
    fields = type(config).model_fields
    asked = ((name, kind) for name, kind in SCORERS.items() if name not in config.without)
    return [(kind, getattr(config, name) if name in fields else None) for name, kind in asked]


def _needs_clip(config: CurateConfig) -> bool:
    return any("embeddings" in _made(*asked).needs for asked in _scorers(config))


def _left_out(config: CurateConfig) -> list[Stage]:
    """The stage that marks skipped scores as skipped; none if no score is skipped."""
    columns: dict[str, str | None] = {}
    if not _needs_clip(config):
        columns |= {"embedding": None, "embedding_error": "left out: no score of this run needs it"}
        columns |= {"embedding_error_kind": LEFT_OUT}
    for name in config.without:
        columns |= {column.name: None for column in SCORE_COLUMNS[name]}
        columns |= {f"{name}_error": f"left out: --without {name}", f"{name}_error_kind": LEFT_OUT}
    if not columns:
        return []
    load = partial(_load_columns, columns)
    return [_on_clips("left_out", needs=(), gives=tuple(columns), load=load, resources=_NOTHING)]


def _gives(model: Captioner | ClipEmbedder | Scorer) -> tuple[str, ...]:
    if isinstance(model, ClipEmbedder):
        return model.gives
    columns = getattr(model, "columns", None)
    if columns is None:
        return ("captions",)
    return (*(column.name for column in columns), f"{model.name}_error_kind")


def _captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    return tuple(Caption(**caption) for caption in row["captions"])


def _made(kind: Callable[..., Any], settings: Config | None) -> Any:
    return kind(settings) if settings is not None else kind()


def _load(kind: Callable[..., Any], settings: Config | None, device: str) -> Any:
    """A cached model: loaded once per process for equal settings."""
    values = settings.model_dump_json() if settings is not None else None
    return _loaded(kind, cast("Hashable", type(settings)), values, device)


@lru_cache(maxsize=16)
def _loaded(kind: Callable[..., Any], settings: Any, values: str | None, device: str) -> Any:
    model = _made(kind, None if values is None else settings.model_validate_json(values))
    model.load(device)
    return model


def _load_work(
    work: Callable[[Any, ClipBatch], None], kind: Callable[..., Any], settings: Config | None, device: str
) -> Callable[[ClipBatch], None]:
    return partial(work, _load(kind, settings, device))


def _caption(captioner: Captioner, clips: ClipBatch) -> None:
    """Run captioners in order; later ones see the captions of earlier ones."""
    for row, caption in zip(clips.rows, captioner.caption(clips.views()), strict=True):
        row["captions"].append(asdict(caption))


def _embed(model: ClipEmbedder, clips: ClipBatch) -> None:
    clips.embeddings = list(_embedded(model, clips.views()))
    for row, embeddings in zip(clips.rows, clips.embeddings, strict=True):
        assert embeddings is not None
        row.update(embedding_columns(embeddings))


def _embedded(model: ClipEmbedder, views: Sequence[ClipView]) -> list[Embeddings]:
    try:
        return model.embed(views)
    except Exception as error:  # one image, or too little memory for so many, must not end the run
        if len(views) == 1:
            return [Embeddings(error=f"{type(error).__name__}: {error}")]
        return [found for view in views for found in _embedded(model, [view])]


def _score(scorer: Scorer, clips: ClipBatch) -> None:
    for row, columns in zip(clips.rows, scorer.score(clips.views()), strict=True):
        kind = FAILED if columns.get(f"{scorer.name}_error") else None
        row.update(columns | {f"{scorer.name}_error_kind": kind})


def _load_columns(columns: Mapping[str, str | None], device: str) -> Callable[[ClipBatch], None]:
    return partial(_fill, columns)


def _fill(columns: Mapping[str, str | None], clips: ClipBatch) -> None:
    for row in clips.rows:
        row.update(columns)


def _load_previews(device: str) -> Callable[[ClipBatch], None]:
    return _shrink


def _shrink(clips: ClipBatch) -> None:
    """Halve the thumbnails for previews: no later stage needs the large ones."""
    clips.jpegs = [tuple(map(_preview, jpegs)) for jpegs in clips.jpegs]


def _preview(jpeg: bytes) -> bytes:
    small = decode_jpeg(jpeg, cv2.IMREAD_REDUCED_COLOR_2)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
