"""Clips that are in another dataset too: a benchmark's test set, or an older release.

Every clip gets its nearest clip there and the similarity of the two: the table `scores/against_NAME`, which rules can
name like any other score. Sizes: N clips, M clips of the other dataset, D = width of an embedding, B clips of a
block, K candidates.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import BinaryIO

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill import storage
from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import clip_batches, has_embeddings, inputs_digest, recorded_result, with_source
from curation.dedup.ranked import RankedClips, exact_cosines, read_ranked

_METHOD = 1
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_CHUNK, _BLOCK, _CANDIDATES = 65_536, 8192, 4

Comparison = tuple[NDArray[np.float16], NDArray[np.float16]]
"""Embeddings of clips of the other dataset, (C, D), and of ours, (B, D). Comparisons of the same chunk follow one
another, with the same array."""
Nearest = tuple[NDArray[np.float64], NDArray[np.int64]]
Run = Callable[[Iterable[Comparison]], Iterator[Nearest]]
"""Does `nearest_of` for each, in order."""


@dataclass(frozen=True, kw_only=True)
class AgainstResult:
    """Totals. clips = N: those without an embedding have no row."""

    score: str
    """against_NAME: the score, its table and its first column."""
    clips: int
    other_clips: int
    duplicates: int
    """Clips at least as similar to a clip of the other dataset as duplicates are."""
    threshold: float
    without_embedding: int
    by: str
    reused: bool = False


def find_in_other(
    dataset: Dataset,
    other: Dataset,
    config: DuplicatesConfig | None = None,
    *,
    name: str | None = None,
    run: Run | None = None,
) -> AgainstResult:
    """Write `scores/against_NAME/against_NAME.parquet`: clip_id, against_NAME, against_NAME_clip_id.

    The search is exact, and compares 65,536 clips of the other dataset at a time, with `run` elsewhere than in this
    process. Nothing is done if the table is current.
    Raises UserError: no embeddings in one of the two, different widths, an unfit name.
    """
    config = with_source(dataset, config or DuplicatesConfig())
    score = f"against_{_name(other, name)}"
    inputs = _inputs(dataset, other, config)
    recorded = recorded_result(dataset, f"scores/{score}", score, inputs, AgainstResult)
    if recorded is not None:
        return replace(recorded, reused=True)
    with tempfile.TemporaryFile(prefix="clipmill-against-") as ours, tempfile.TemporaryFile() as theirs:
        clips = _read(dataset, config, ours)
        there = _read(other, config, theirs)
        if clips.width != there.width:
            raise UserError(
                f"the clips of {dataset.url} have embeddings of {clips.width} numbers, those of {other.url} have "
                f"{there.width}: curate both with the same CLIP model"
            )
        cosine_N, nearest_N = _nearest(clips, there, run or _here)
        columns = [clips.clip_id, pa.array(cosine_N), there.clip_id.take(pa.array(nearest_N))]
        table = pa.table(columns, schema=_schema(score, other)).sort_by("clip_id")
    result = AgainstResult(
        score=score,
        clips=len(clips.clip_id),
        other_clips=len(there.clip_id),
        duplicates=int((cosine_N >= np.float32(config.threshold)).sum()),
        threshold=config.threshold,
        without_embedding=clips.without_embedding,
        by=config.by or "embedding",
    )
    metadata = {b"clipmill.inputs": inputs, b"clipmill.result": json.dumps(asdict(result))}
    dataset.write_part(f"scores/{score}", score, table.replace_schema_metadata(metadata))
    return result


def is_current_against(
    dataset: Dataset, other: Dataset, config: DuplicatesConfig | None = None, *, name: str | None = None
) -> bool:
    """Whether the table exists and was computed from the current clips of both with these settings.

    Raises UserError for a request that cannot be carried out: no embeddings in one of the two, the same dataset twice,
    an unfit name.
    """
    if storage.address(dataset.fs, dataset.path) == storage.address(other.fs, other.path):
        raise UserError(f"expected another dataset than {dataset.url} itself, whose clips are all alike their own")
    config = with_source(dataset, config or DuplicatesConfig())
    score = f"against_{_name(other, name)}"
    for each in (dataset, other):
        if not has_embeddings(each, config):
            raise _nothing_to_compare(each)
    inputs = _inputs(dataset, other, config)
    return recorded_result(dataset, f"scores/{score}", score, inputs, AgainstResult) is not None


def _inputs(dataset: Dataset, other: Dataset, config: DuplicatesConfig) -> str:
    return f"{_METHOD} {inputs_digest(dataset, config)} {inputs_digest(other, config)}"


def _schema(score: str, other: Dataset) -> pa.Schema:
    where = other.url.rstrip("/").rpartition("/")[2]
    return pa.schema(
        [
            column("clip_id", pa.string(), "clip; clips without an embedding have no row"),
            column(
                score,
                pa.float32(),
                f"cosine similarity to the nearest clip of {where}",
                unit="cosine, -1 to 1",
                better="lower",
                bounds=(-1, 1),
            ),
            column(f"{score}_clip_id", pa.string(), f"the nearest clip of {where}"),
        ]
    )


def _name(other: Dataset, name: str | None) -> str:
    given = name or re.sub(r"[^a-z0-9]+", "_", other.url.rstrip("/").rpartition("/")[2].lower()).strip("_")
    if not _NAME.fullmatch(given):
        raise UserError(
            f"expected a name of lower-case letters, digits and '_', got {given!r}: pass one with --name, such as "
            "--name ucf101"
        )
    return given


def _read(dataset: Dataset, config: DuplicatesConfig, file: BinaryIO) -> RankedClips:
    with dataset.connect() as connection:
        clips = read_ranked(clip_batches(dataset, connection, config), file, config)
    if not len(clips.clip_id):
        raise _nothing_to_compare(dataset)
    return clips


def _nothing_to_compare(dataset: Dataset) -> UserError:
    return UserError(
        f"no clip of {dataset.url} has an embedding to compare: curate it with the same CLIP model, or pass "
        "--by picture_hash after `clipmill score DATASET --scorer picture_hash` on both"
    )


def nearest_of(
    theirs_CD: NDArray[np.float16], ours_BD: NDArray[np.float16]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(B, K), (B, K): cosines of clips to the nearest of some clips of the other dataset, and the rows of those."""
    index = faiss.IndexFlatIP(theirs_CD.shape[1])
    index.add(theirs_CD.astype(np.float32))
    _, row_BK = index.search(ours_BD.astype(np.float32), min(_CANDIDATES, len(theirs_CD)))
    candidates = row_BK.shape[1]
    cosine_P = exact_cosines(np.repeat(ours_BD, candidates, axis=0), theirs_CD[row_BK.reshape(-1)])
    return cosine_P.reshape(-1, candidates), row_BK


def _here(comparisons: Iterable[Comparison]) -> Iterator[Nearest]:
    return (nearest_of(*comparison) for comparison in comparisons)


def _nearest(clips: RankedClips, there: RankedClips, run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N,), (N,): cosine to the nearest clip there, and its number; of equally near ones the first clip_id."""
    rank_M = np.empty(len(there.clip_id), np.int64)
    rank_M[pc.sort_indices(there.clip_id).to_numpy()] = np.arange(len(there.clip_id))
    cosine_N = np.full(len(clips.clip_id), -np.inf)
    nearest_N = np.zeros(len(clips.clip_id), np.int64)
    chunks = [(start, min(start + _CHUNK, len(rank_M))) for start in range(0, len(rank_M), _CHUNK)]
    blocks = [(start, min(start + _BLOCK, len(cosine_N))) for start in range(0, len(cosine_N), _BLOCK)]

    def comparisons() -> Iterator[Comparison]:
        for chunk in chunks:
            theirs_CD = there.block(np.arange(*chunk)).embedding_BD
            for block in blocks:
                yield theirs_CD, clips.block(np.arange(*block)).embedding_BD

    places = ((chunk, block) for chunk in chunks for block in blocks)
    for (chunk, block), (found_BK, row_BK) in zip(places, run(comparisons()), strict=True):
        part = slice(*block)
        # The nearest first, equally near ones by clip_id, with the best of the chunks before.
        cosine_BK = np.column_stack([cosine_N[part], found_BK])
        number_BK = np.column_stack([nearest_N[part], chunk[0] + row_BK])
        best_B = np.lexsort((rank_M[number_BK], -cosine_BK))[:, :1]
        cosine_N[part] = np.take_along_axis(cosine_BK, best_B, 1)[:, 0]
        nearest_N[part] = np.take_along_axis(number_BK, best_B, 1)[:, 0]
    return cosine_N.astype(np.float32), nearest_N
