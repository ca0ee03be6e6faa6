"""The clip stages: captioners, the CLIP embedder, scorers, previews. They run with or without Ray.

They process the three thumbnails of each clip from the scan, several dozen clips at a time.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from clipmill.config import Config
from clipmill.errors import SourceError, raise_if_stopped
from clipmill.pipeline import Need, Resources, Stage
from curation.captioners import Captioner
from curation.scan.one_pass import Scan
from curation.scores.base import ClipView, Embeddings, Scorer, needs_clip
from curation.scores.clip_embedder import ClipEmbedder, ClipEmbedderConfig, embedding_columns, stored_mean
from curation.scores.columns import LEFT_OUT, SCORE_COLUMNS
from curation.scores.registry import ScorerSpec
from curation.scores.rows import failed_row, score_columns, score_rows
from curation.video.decode import Limits
from pipelines.clip_batch import GENERATED, ClipBatch
from pipelines.config import CurateConfig
from pipelines.footage import clips_at_once, is_footage, read_footage
from pipelines.model_specs import AskedModels, asked_models, load_model, make_model

_CLIPS_AT_ONCE = 64
"""Number of clips with decoded thumbnails in memory at a time, about 130 MB."""
SOURCES_PER_BATCH = 4
"""Number of sources whose clips a worker captions and scores at a time."""
_NOTHING = Resources(num_cpus=0)
_CAPTION = {"text": "caption", "error_kind": "error_kind", "error": "error"}
Loading = Callable[[str], Callable[[ClipBatch], None]]
"""Takes the device, loads a model, and returns its work on some clips."""


def clip_stages(config: CurateConfig, resources: Mapping[str, Resources] | None = None) -> list[Stage]:
    """Captioners, embedder and scorers of the configuration, and previews, in the order in which they run.

    `resources` by name, of loaded models (`Models.resources`); without them, those that the classes declare.
    """

    def stage(load: Loading, kind: Callable[..., Any], settings: Config | None) -> Stage:
        model = make_model(kind, settings)
        takes = (resources or {}).get(model.name, model.resources)
        return _on_clips(
            model.name,
            needs=tuple(need for need in model.needs if not is_footage(need)),
            gives=_gives(model),
            load=load,
            resources=replace(takes, num_cpus=0) if needs_clip(model.needs) else takes,
        )

    asked = asked_models(config)
    limits = config.scan.limits
    captioners = [stage(partial(_load_caption, spec, limits), spec, None) for spec in asked.captioners]
    embedder = [stage(partial(load_embed, asked.clip), ClipEmbedder, asked.clip)] if asked.clip else []
    scorers = [stage(partial(_load_score, spec, limits), spec, None) for spec in asked.scorers]
    # Embeddings do not leave the worker that makes them: scorers that need them come first, and run there.
    scorers.sort(key=lambda scorer: not needs_clip(scorer.needs))
    previews = _on_clips(
        "previews", needs=("thumbnails",), gives=("previews",), load=_load_previews, resources=_NOTHING
    )
    left_out = _left_out(config, asked)
    return [*captioners, *embedder, *scorers, *left_out, previews]


def divide_clips(scans: Sequence[Scan]) -> Iterator[ClipBatch]:
    """Divide the clips of several scans into batches, across sources, and record the CPU time they take."""
    for scanned in scans:
        scanned.source.setdefault("score_cpu_s", 0.0)
    positions = [(scanned, i) for scanned in scans for i in range(len(scanned.clips))]
    for start in range(0, len(positions), _CLIPS_AT_ONCE):
        some = positions[start : start + _CLIPS_AT_ONCE]
        started_s = time.process_time()
        batch = ClipBatch([scanned.clips[i] for scanned, i in some], [scanned.thumbnails[i] for scanned, i in some])
        yield batch
        seconds_per_clip = (time.process_time() - started_s) / len(some)
        for (scanned, i), jpegs in zip(some, batch.thumbnails, strict=True):
            scanned.thumbnails[i] = jpegs
            scanned.source["score_cpu_s"] += seconds_per_clip


def _on_clips(
    name: str,
    *,
    needs: tuple[Need, ...],
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


def _left_out(config: CurateConfig, asked: AskedModels) -> list[Stage]:
    """The stage that marks skipped scores as skipped; none if no score is skipped."""
    columns: dict[str, str | None] = {}
    if not asked.clip:
        columns |= {"embedding": None, "embedding_norm": None}
        columns |= {"embedding_error": "left out: no score of this run needs it", "embedding_error_kind": LEFT_OUT}
    for name in config.without:
        columns |= {column.name: None for column in SCORE_COLUMNS[name]}
        columns |= {f"{name}_error": f"left out: --without {name}", f"{name}_error_kind": LEFT_OUT}
    if not columns:
        return []
    load = partial(_load_columns, columns)
    return [_on_clips("left_out", needs=(), gives=tuple(columns), load=load, resources=_NOTHING)]


def _gives(model: ClipEmbedder | Scorer) -> tuple[str, ...]:
    if isinstance(model, ClipEmbedder):
        return model.gives
    seen = [f"{model.name}_captions_seen"] if "captions" in model.needs else []
    return (*score_columns(model), *seen, *(["captions"] if isinstance(model, Captioner) else []))


def load_embed(settings: ClipEmbedderConfig, device: str) -> Callable[[ClipBatch], None]:
    """Load CLIP; the function that is returned embeds clips in place."""
    return _load_work(_embed, ClipEmbedder, settings, device)


def load_embed_captions(settings: ClipEmbedderConfig, device: str) -> Callable[[ClipBatch], None]:
    """Load CLIP; the function that is returned embeds captions, and takes the clips' own embeddings from their rows."""
    return _load_work(_embed_captions, ClipEmbedder, settings, device)


def load_score(spec: ScorerSpec, device: str) -> Callable[[ClipBatch], None]:
    """Load a scorer; the function that is returned scores clips in place."""
    return _load_work(_score, spec, None, device)


def _load_score(spec: ScorerSpec, limits: Limits, device: str) -> Callable[[ClipBatch], None]:
    """As `load_score`, but footage is read."""
    with_footage = any(map(is_footage, spec().needs))
    return _load_work(partial(_score_footage, limits) if with_footage else _score, spec, None, device)


def _load_work(
    work: Callable[[Any, ClipBatch], None], kind: Callable[..., Any], settings: Config | None, device: str
) -> Callable[[ClipBatch], None]:
    return partial(work, load_model(kind, settings, device))


def _load_caption(spec: ScorerSpec, limits: Limits, device: str) -> Callable[[ClipBatch], None]:
    """As `_load_score`; later captioners, CLIP and scorers see the captions of earlier ones."""
    name, score = spec().name, _load_score(spec, limits, device)

    def caption(clips: ClipBatch) -> None:
        score(clips)
        for row in clips.rows:
            row.setdefault(GENERATED, []).append(generated_caption(name, row))

    return caption


def generated_caption(captioner: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A caption, as in the column `captions`, from a row with the captioner's columns."""
    values = {key: row[f"{captioner}_{name}"] for key, name in _CAPTION.items()}
    return {"source": captioner, **values}


def _embed(model: ClipEmbedder, clips: ClipBatch) -> None:
    views = clips.views(model.needs)
    embedded = iter(_embedded(model, [view for view in views if isinstance(view, ClipView)]))
    for i, (row, view) in enumerate(zip(clips.rows, views, strict=True)):
        embeddings = next(embedded) if isinstance(view, ClipView) else Embeddings(error=_reason(view))
        clips.embeddings[i] = embeddings
        row.update(embedding_columns(embeddings))


def _embed_captions(model: ClipEmbedder, clips: ClipBatch) -> None:
    captions = model.embed_captions([view.captions for view in clips.views(["captions"]) if isinstance(view, ClipView)])
    for i, (row, captions_CD) in enumerate(zip(clips.rows, captions, strict=True)):
        if row["embedding"] is None or row["embedding_norm"] is None:
            clips.embeddings[i] = Embeddings(error=row["embedding_error"] or "the dataset has none of the clip")
            continue
        mean_D = stored_mean(row["embedding"], row["embedding_norm"])
        clips.embeddings[i] = Embeddings(mean_D=mean_D, captions_CD=captions_CD)


def _embedded(model: ClipEmbedder, views: Sequence[ClipView]) -> list[Embeddings]:
    try:
        return model.embed(views)
    except Exception as error:  # one image, or too little memory for so many, must not end the run
        raise_if_stopped(error)
        if len(views) == 1:
            return [Embeddings(error=f"{type(error).__name__}: {error}")]
        return [embeddings for view in views for embeddings in _embedded(model, [view])]


def _score(scorer: Scorer, clips: ClipBatch) -> None:
    views = clips.views(scorer.needs)
    scored = iter(score_rows(scorer, [view for view in views if isinstance(view, ClipView)]))
    for row, view in zip(clips.rows, views, strict=True):
        row.update(next(scored) if isinstance(view, ClipView) else failed_row(scorer, _reason(view)))
        if "captions" in scorer.needs:
            captions = (*row["captions"], *row.get(GENERATED, ()))
            seen = sum(caption["text"] is not None and caption["source"] != scorer.name for caption in captions)
            row[f"{scorer.name}_captions_seen"] = seen


def _score_footage(limits: Limits, scorer: Scorer, clips: ClipBatch) -> None:
    """Score clips whose footage is read first, as many at a time as fit into memory."""
    for some in clips.divided(clips_at_once(scorer.needs, scorer.clips_at_least)):
        read_footage(some, scorer.needs, limits)
        _score(scorer, some)


def _reason(error: SourceError) -> str:
    return f"{error.kind}: {error.message}"


def _load_columns(columns: Mapping[str, str | None], device: str) -> Callable[[ClipBatch], None]:
    return partial(_fill, columns)


def _fill(columns: Mapping[str, str | None], clips: ClipBatch) -> None:
    for row in clips.rows:
        row.update(columns)


def _load_previews(device: str) -> Callable[[ClipBatch], None]:
    return _shrink


def _shrink(clips: ClipBatch) -> None:
    """Keep the previews instead of the thumbnails. No later stage needs the large ones."""
    clips.thumbnails = [clips.preview(i) for i in range(len(clips.rows))]
