"""Stages of `clipmill score`: pieces of a dataset -> their pictures -> their scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline import Need, Resources, Stage
from curation.dataset.schemas import CLIPS, PREVIEWS
from curation.dataset.tables import Dataset
from curation.scan.one_pass import ScanConfig
from curation.scores.clip_embedder import ClipEmbedder
from curation.scores.registry import ScorerSpec
from pipelines.clip_batch import ClipBatch, Jpegs
from pipelines.footage import FOOTAGE_COLUMNS, is_footage, read_footage, remake_thumbnails
from pipelines.model_specs import AskedModels, make_model
from pipelines.scoring import load_embed, load_score

_IDENTITY = ("clip_id", "source_id", "uri")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some clips of a part of the dataset."""

    part: str
    rows: NDArray[Any]
    """Row numbers in clips/PART.parquet, int32, increasing."""


@dataclass(frozen=True, kw_only=True)
class ScoredPiece:
    """Their scores: a table with clip_id and the scorer's columns."""

    part: str
    table: pa.Table


def score_stages(
    dataset: Dataset,
    asked: AskedModels,
    schema: pa.Schema,
    scan: ScanConfig,
    resources: Mapping[str, Resources] | None = None,
) -> list[Stage]:
    """Read, embed if the scorer needs that, score. `asked` has one scorer, whose table has the columns `schema`.

    `scan`: limits on reading sources, and the size of thumbnails.
    """
    (spec,) = asked.scorers
    scorer, needs = spec(), needs_of(asked)
    read = Stage(name="read", needs=("piece",), gives=_readable(needs), load=partial(_load_read, dataset, needs, scan))
    stages = [read]
    if asked.clip:
        model = make_model(ClipEmbedder, asked.clip)
        takes = (resources or {}).get(model.name, model.resources)
        load = partial(_load_each, partial(load_embed, asked.clip))
        stages.append(Stage(name=model.name, needs=model.needs, gives=model.gives, load=load, resources=takes))
    takes = (resources or {}).get(scorer.name, scorer.resources)
    return [
        *stages,
        Stage(
            name=scorer.name,
            needs=scorer.needs,
            gives=("scored",),
            load=partial(_load_score, spec, schema),
            resources=replace(takes, num_cpus=0) if asked.clip else takes,
        ),
    ]


def needs_of(asked: AskedModels) -> tuple[Need, ...]:
    """What is read of a clip: the needs of the scorer, and of CLIP if it runs."""
    (spec,) = asked.scorers
    return tuple(dict.fromkeys((*spec().needs, *(ClipEmbedder.needs if asked.clip else ()))))


def _readable(needs: Sequence[Need]) -> tuple[Need, ...]:
    """The needs that a dataset meets."""
    return tuple(n for n in needs if n in ("previews", "thumbnails") or n in CLIPS.names or is_footage(n))


def _load_read(
    dataset: Dataset, needs: Sequence[Need], scan: ScanConfig, device: str
) -> Callable[[list[Piece]], list[ClipBatch]]:
    return lambda pieces: [read_piece(dataset, piece, needs, scan) for piece in pieces]


def read_piece(dataset: Dataset, piece: Piece, needs: Sequence[Need], scan: ScanConfig) -> ClipBatch:
    """The rows of some clips and what is needed of them. Raises UserError if a file of the dataset is damaged."""
    decodes = "thumbnails" in needs or any(map(is_footage, needs))
    named = (need for need in needs if isinstance(need, str) and need in CLIPS.names)
    columns = dict.fromkeys((*_IDENTITY, *named, *(FOOTAGE_COLUMNS if decodes else ())))
    rows = dataset.read_part("clips", piece.part, list(columns), piece.rows).to_pylist()
    previews = _previews(dataset, piece, [row["clip_id"] for row in rows]) if "previews" in needs else []
    batch = ClipBatch(rows, previews=previews, part=piece.part)
    if "thumbnails" in needs:
        remake_thumbnails(batch, scan.thumbnail_long_side_px, scan.limits)
    read_footage(batch, needs, scan.limits)
    return batch


def _previews(dataset: Dataset, piece: Piece, clip_ids: Sequence[str]) -> list[Jpegs]:
    """The stored pictures of clips; none where there are none."""
    try:
        table = dataset.read_part("previews", piece.part, PREVIEWS.names, piece.rows)
        if table["clip_id"].to_pylist() != list(clip_ids):  # another program has written them in another order
            table = dataset.read_part("previews", piece.part, PREVIEWS.names)
            table = table.filter(pc.is_in(table["clip_id"], pa.array(clip_ids, pa.string())))
    except FileNotFoundError:
        return [()] * len(clip_ids)
    rows = zip(*(table[name].to_pylist() for name in PREVIEWS.names), strict=True)
    stored = {clip_id: jpegs for clip_id, *pictures in rows if all(jpegs := tuple(pictures))}
    return [stored.get(clip_id, ()) for clip_id in clip_ids]


def _load_each(load: Callable[[str], Callable[[ClipBatch], None]], device: str) -> Callable[[list[Any]], list[Any]]:
    work = load(device)

    def each(batches: list[ClipBatch]) -> list[ClipBatch]:
        for batch in batches:
            work(batch)
        return batches

    return each


def _load_score(spec: ScorerSpec, schema: pa.Schema, device: str) -> Callable[[list[ClipBatch]], list[ScoredPiece]]:
    score = _load_each(partial(load_score, spec), device)

    def scored(batches: list[ClipBatch]) -> list[ScoredPiece]:
        return [
            ScoredPiece(part=batch.part, table=pa.Table.from_pylist(batch.rows, schema)) for batch in score(batches)
        ]

    return scored
