"""Near-duplicates: clips of different sources with almost the same content, and which of them to keep.

Copies have almost equal embeddings (SemDeDup, arXiv 2303.09540, section 3). The result is a table of scores; the rule
`duplicate_rank: {max: 0}` keeps, of each group, the best clip that passes the other rules. Sizes: N clips, D =
embedding width.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill import storage
from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.description import fingerprint
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.sql import batches
from curation.dataset.tables import Dataset
from curation.dedup.groups import CLIP_COLUMNS, DuplicatesConfig, RankedClips, keepers, read_ranked

__all__ = [
    "DUPLICATES",
    "DuplicatesConfig",
    "DuplicatesResult",
    "find_duplicates",
    "is_current",
    "last_config",
    "rank_duplicates",
]

DUPLICATES = pa.schema(
    [
        column("clip_id", pa.string(), "clip; clips without an embedding have no row"),
        column(
            "duplicate_rank",
            pa.int32(),
            "rank in its group of duplicates, from the best (0) to the worst; 0 for a clip without duplicates",
            better="lower",
        ),
        column("duplicate_of", pa.string(), "the clip of rank 0 in its group; null for rank 0"),
        column(
            "duplicate_cosine",
            pa.float32(),
            "cosine similarity to the clip of rank 0; null for rank 0",
            unit="cosine, -1 to 1",
        ),
    ]
)
"""The table `scores/duplicates`."""

_METHOD = 1
"""Incremented when the same clips and settings would give another table."""

_TABLE, _PART = "scores/duplicates", "duplicates"
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated")
_INPUTS, _RESULT, _CONFIG = b"clipmill.inputs", b"clipmill.result", b"clipmill.config"
_BATCH_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class DuplicatesResult:
    """Totals. clips = kept + duplicates; all clips of the dataset = clips + without_embedding."""

    clips: int
    kept: int
    duplicates: int
    groups: int
    """Kept clips that have duplicates."""
    largest_group: int
    """Number of clips, including the kept one."""
    without_embedding: int
    """Null, not finite, or zero."""
    approximate: bool
    reused: bool = False
    """The table was already current; nothing was computed."""


def find_duplicates(dataset: Dataset, config: DuplicatesConfig | None = None) -> DuplicatesResult:
    """Write `scores/duplicates/duplicates.parquet`, see `DUPLICATES`, for all committed clips.

    The file is replaced atomically; if it is current, nothing is done. Raises UserError if no clip has an embedding, if
    the dataset has no embedding column, or if embeddings have two widths.
    """
    config = config or DuplicatesConfig()
    inputs = _inputs(dataset, config)
    known = _written(dataset, inputs)
    if known is not None:
        return replace(known, reused=True)
    with dataset.connect() as connection:
        table, result = rank_duplicates(_batches(dataset, connection), config)
    if result.without_embedding and not result.clips:
        raise UserError(
            f"no clip of {dataset.url} has an embedding to compare: it was curated without CLIP. Remove the rule on "
            "duplicate_rank, or curate with CLIP into a new folder."
        )
    metadata = {_INPUTS: inputs, _RESULT: json.dumps(asdict(result)), _CONFIG: config.model_dump_json()}
    dataset.write_part(_TABLE, _PART, table.replace_schema_metadata(metadata))
    return result


def is_current(dataset: Dataset, config: DuplicatesConfig | None = None) -> bool:
    """Whether the table exists and was computed from the current clips with these settings."""
    return _written(dataset, _inputs(dataset, config or DuplicatesConfig())) is not None


def last_config(dataset: Dataset) -> DuplicatesConfig | None:
    """The settings of the existing table; None without a table, or one of an earlier release."""
    metadata = _metadata(dataset)
    try:
        return DuplicatesConfig.model_validate_json(metadata[_CONFIG]) if _CONFIG in metadata else None
    except ValueError:
        return None


def rank_duplicates(
    batches: Iterable[pa.RecordBatch], config: DuplicatesConfig | None = None
) -> tuple[pa.Table, DuplicatesResult]:
    """The table `DUPLICATES`, sorted by clip_id, for batches of clips in any order.

    Their columns: clip_id, source_id, width, height, aesthetic, duration_s, and embedding, a list of D numbers or
    null. Embeddings go through a temporary file of 2 D bytes per clip. Raises UserError for two widths D.
    """
    config = config or DuplicatesConfig()
    with tempfile.TemporaryFile(prefix="clipmill-duplicates-") as file:
        clips = read_ranked(batches, file, config)
        keeper_N, approximate = keepers(clips, config)
        table = _table(clips, keeper_N)
    members_N = np.bincount(keeper_N, minlength=len(keeper_N))
    keeper_count = int((members_N > 0).sum())
    result = DuplicatesResult(
        clips=len(keeper_N),
        kept=keeper_count,
        duplicates=len(keeper_N) - keeper_count,
        groups=int((members_N > 1).sum()),
        largest_group=int(members_N.max(initial=0)),
        without_embedding=clips.without_embedding,
        approximate=approximate,
    )
    return table, result


def _table(clips: RankedClips, keeper_N: NDArray[np.int64]) -> pa.Table:
    number_N = np.arange(len(keeper_N))
    joined = np.flatnonzero(keeper_N != number_N)
    joined = joined[np.argsort(keeper_N[joined], kind="stable")]
    keeper = keeper_N[joined]
    group_start = np.searchsorted(keeper, keeper)
    rank_N = np.zeros(len(keeper_N), np.int32)
    rank_N[joined] = np.arange(len(joined)) - group_start + 1
    cosine_N = np.zeros(len(keeper_N), np.float32)
    cosine_N[joined] = clips.cosines(joined, keeper)
    kept_N = rank_N == 0
    of = clips.clip_id.take(pa.array(keeper_N, mask=kept_N))
    columns = [clips.clip_id, pa.array(rank_N), of, pa.array(cosine_N, mask=kept_N)]
    return pa.table(columns, schema=DUPLICATES).sort_by("clip_id")


def _batches(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    known = joined_columns(connection)
    if "embedding" not in known:
        raise UserError(
            f"{dataset.url} has no column 'embedding': it was written by a release without CLIP scores. Create a new "
            "dataset, or add embeddings: Parquet files with clip_id and embedding in its folder scores/clip/."
        )
    aesthetic = "CASE WHEN isfinite(aesthetic::FLOAT) THEN aesthetic::FLOAT END" if "aesthetic" in known else "NULL"
    chosen = ", ".join(f"{aesthetic}::FLOAT AS aesthetic" if name == "aesthetic" else name for name in CLIP_COLUMNS)
    rows = joined_query(connection, [name for name in CLIP_COLUMNS if name in known])
    return batches(connection, f"SELECT {chosen} FROM ({rows})", _BATCH_ROWS)


def _inputs(dataset: Dataset, config: DuplicatesConfig) -> str:
    """Digest of the settings and input files.

    Taken before the files are read, so that a part committed meanwhile makes the table outdated.
    """
    with dataset.connect() as connection:
        known = joined_columns(connection)
    table_of = dataset.views()
    tables = sorted({table_of[known[name][0]] for name in CLIP_COLUMNS if name in known})
    files = {table: _file_versions(dataset, table) for table in tables}
    return fingerprint({"method": _METHOD, "config": config.model_dump(mode="json"), "files": files})


def _file_versions(dataset: Dataset, table: str) -> dict[str, str]:
    """Committed part -> size and version of its file."""
    folder = dataset.file(table)
    parts = set(dataset.parts(table))
    with storage.explained("read", dataset.fs, folder):
        entries = dataset.fs.ls(folder, detail=True) if parts else []
    versions = {}
    for entry in entries:
        part = entry["name"].rpartition("/")[2].removesuffix(".parquet")
        if part in parts:
            version = next((str(entry[key]) for key in _VERSION_KEYS if entry.get(key)), "")
            versions[part] = f"{entry['size']} {version}"
    return versions


def _written(dataset: Dataset, inputs: str) -> DuplicatesResult | None:
    """The recorded totals, if the table was computed from these inputs."""
    metadata = _metadata(dataset)
    try:
        if metadata.get(_INPUTS, b"").decode() == inputs:
            return DuplicatesResult(**json.loads(metadata[_RESULT]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged: it is made anew
    return None


def _metadata(dataset: Dataset) -> dict[bytes, bytes]:
    """Metadata of the file; empty if it is missing or damaged."""
    path = dataset.file(_TABLE, f"{_PART}.parquet")
    if not storage.exists(dataset.fs, path):
        return {}
    with storage.explained("read", dataset.fs, path), dataset.fs.open(path, "rb") as file:
        try:
            return dict(pq.read_schema(file).metadata or {})
        except pa.ArrowException:
            return {}
