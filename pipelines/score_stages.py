"""Stages of `clipmill score` and `caption`: pieces of a dataset -> their pictures -> their scores or captions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline import Need, Resources, Stage
from curation.dataset.schemas import CLIPS, PREVIEWS
from curation.dataset.score_versions import table_of
from curation.dataset.tables import Dataset
from curation.scan.one_pass import ScanConfig
from curation.scores.clip_embedder import ClipEmbedder
from curation.scores.columns import CAPTIONS
from curation.scores.registry import ScorerSpec
from pipelines.clip_batch import GENERATED, ClipBatch, Jpegs
from pipelines.footage import FOOTAGE_COLUMNS, is_footage, read_footage, remake_thumbnails
from pipelines.model_specs import AskedModels, make_model
from pipelines.scoring import generated_caption, load_embed, load_embed_captions, load_score

_IDENTITY = ("clip_id", "source_id", "uri")
_STORED = ("captions", "embedding", "embedding_norm", "embedding_error")
"""Columns read instead of pictures if the dataset has the embeddings."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some clips of a part of the dataset."""

    part: str
    rows: NDArray[Any]
    """Row numbers in clips/PART.parquet, int32, increasing."""


def grouped(pieces: Iterable[Piece], *, at_least: int, at_most: int) -> list[tuple[Piece, ...]]:
    """The pieces in order, in groups that are scored together: of `at_least` clips if possible, but never more than
    `at_most`, unless one piece has more."""
    groups: list[tuple[Piece, ...]] = []
    clips = at_least
    for piece in pieces:
        fits = clips < at_least and clips + len(piece.rows) <= at_most
        if fits:
            groups[-1] += (piece,)
        else:
            groups.append((piece,))
        clips = len(piece.rows) + (clips if fits else 0)
    return groups


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
    captions: Mapping[str, int] = MappingProxyType({}),
    stored_embeddings: bool = False,
) -> list[Stage]:
    """Read, embed if the scorer needs that, score: groups of pieces.

    `asked` has one scorer, whose table has the columns `schema`.

    `scan`: limits on reading sources, and the size of thumbnails. `captions`: captioner -> version of those to read.
    `stored_embeddings`: the dataset has the clips' embeddings, of the same model, and only captions are embedded.
    """
    (spec,) = asked.scorers
    scorer, needs = spec(), needs_of(asked, stored_embeddings=stored_embeddings)
    read = Stage(
        name="read", needs=("pieces",), gives=_readable(needs), load=partial(_load_read, dataset, needs, scan, captions)
    )
    stages = [read]
    if asked.clip:
        model = make_model(ClipEmbedder, asked.clip)
        takes = (resources or {}).get(model.name, model.resources)
        load = partial(_load_each, partial(load_embed_captions if stored_embeddings else load_embed, asked.clip))
        embed_needs, gives = (_STORED, ("mean_embedding",)) if stored_embeddings else (model.needs, model.gives)
        stages.append(Stage(name=model.name, needs=embed_needs, gives=gives, load=load, resources=takes))
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


def needs_of(asked: AskedModels, *, stored_embeddings: bool) -> tuple[Need, ...]:
    """The inputs to read for a clip: the needs of the scorer, and of CLIP if it runs."""
    (spec,) = asked.scorers
    of_clip = _STORED if stored_embeddings else ClipEmbedder.needs
    return tuple(dict.fromkeys((*spec().needs, *(of_clip if asked.clip else ()))))


def _readable(needs: Sequence[Need]) -> tuple[Need, ...]:
    """The needs that a dataset meets."""
    return tuple(n for n in needs if n in ("previews", "thumbnails", "captions") or n in CLIPS.names or is_footage(n))


def _load_read(
    dataset: Dataset, needs: Sequence[Need], scan: ScanConfig, captions: Mapping[str, int], device: str
) -> Callable[[list[tuple[Piece, ...]]], list[list[ClipBatch]]]:
    return lambda groups: [[read_piece(dataset, piece, needs, scan, captions) for piece in group] for group in groups]


def read_piece(
    dataset: Dataset, piece: Piece, needs: Sequence[Need], scan: ScanConfig, captions: Mapping[str, int]
) -> ClipBatch:
    """Read the rows of some clips and their `needs`. Raises UserError if a file of the dataset is damaged."""
    decodes = "thumbnails" in needs or any(map(is_footage, needs))
    named = (need for need in needs if isinstance(need, str) and need in CLIPS.names)
    captions_of = ("source_captions",) if "captions" in needs else ()
    columns = dict.fromkeys((*_IDENTITY, *named, *captions_of, *(FOOTAGE_COLUMNS if decodes else ())))
    rows = dataset.read_part("clips", piece.part, list(columns), piece.rows).to_pylist()
    previews = _previews(dataset, piece, [row["clip_id"] for row in rows]) if "previews" in needs else []
    if "captions" in needs:
        _add_captions(dataset, piece.part, rows, captions)
    batch = ClipBatch(rows, previews=previews, part=piece.part)
    if "thumbnails" in needs:
        remake_thumbnails(batch, scan.thumbnail_long_side_px, scan.limits)
    read_footage(batch, needs, scan.limits)
    return batch


def _add_captions(dataset: Dataset, part: str, rows: list[dict[str, Any]], captions: Mapping[str, int]) -> None:
    """Add supplied captions to rows of the clips table, and generated ones in the order of `captions`."""
    sources = dataset.read_part("sources", part, ["source_id", "captions"]).to_pylist()
    of_source = {source["source_id"]: source["captions"] or [] for source in sources}
    for row in rows:
        row["captions"] = [of_source[row["source_id"]][i] for i in row.pop("source_captions") or ()]
        row[GENERATED] = []
    for captioner, version in captions.items():
        try:
            table = dataset.read_part(table_of(f"{CAPTIONS}/{captioner}", version), part)
        except FileNotFoundError:
            continue
        of_clip = {row["clip_id"]: row for row in table.to_pylist()}
        for row in rows:
            if row["clip_id"] in of_clip:
                row[GENERATED].append(generated_caption(captioner, of_clip[row["clip_id"]]))


def _previews(dataset: Dataset, piece: Piece, clip_ids: Sequence[str]) -> list[Jpegs]:
    """The stored pictures of clips; empty where missing."""
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


def _load_each(
    load: Callable[[str], Callable[[ClipBatch], None]], device: str
) -> Callable[[list[list[ClipBatch]]], list[list[ClipBatch]]]:
    work = load(device)

    def each(groups: list[list[ClipBatch]]) -> list[list[ClipBatch]]:
        for group in groups:
            for batch in group:
                work(batch)
        return groups

    return each


def _load_score(
    spec: ScorerSpec, schema: pa.Schema, device: str
) -> Callable[[list[list[ClipBatch]]], list[ScoredPiece]]:
    score = load_score(spec, device)

    def scored(groups: list[list[ClipBatch]]) -> list[ScoredPiece]:
        for group in groups:
            score(ClipBatch.joined(group))
        batches = (batch for group in groups for batch in group)
        return [ScoredPiece(part=batch.part, table=pa.Table.from_pylist(batch.rows, schema)) for batch in batches]

    return scored
