"""Near-duplicates: clips of different sources with almost the same content, and which of them to keep.

Copies have almost equal embeddings (SemDeDup, arXiv 2303.09540, section 3). The result is a table of scores; the rule
`duplicate_rank: {max: 0}` keeps, of each group, the best clip that passes the other rules. Sizes: N clips, D =
embedding width.
"""

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

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
from curation.dataset.source_rows import rows_in_file
from curation.dataset.sql import batches
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.dedup.groups import Groups, find_groups
from curation.dedup.hashes import HASH, hash_vectors
from curation.dedup.kept import LocalIndex, MakeIndex
from curation.dedup.known import keep_known, read_known
from curation.dedup.ranked import CLIP_COLUMNS, RankedClips, read_ranked

__all__ = [
    "DUPLICATES",
    "DuplicatesConfig",
    "DuplicatesResult",
    "find_duplicates",
    "forget_search",
    "has_embeddings",
    "is_current",
    "last_config",
    "rank_duplicates",
    "refresh_duplicates",
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
            "cosine similarity to the clip of rank 0, of embeddings or of picture hashes as 1 and -1; null for rank 0",
            unit="cosine, -1 to 1",
        ),
    ]
)
"""The table `scores/duplicates`."""

_METHOD = 2
"""Incremented when the same clips and settings would give another table."""

_TABLE, _PART = "scores/duplicates", "duplicates"
_INPUTS, _RESULT, _CONFIG = b"clipmill.inputs", b"clipmill.result", b"clipmill.config"
_BATCH_ROWS = 8192
Result = TypeVar("Result")


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
    compared: int
    """Clips that were compared with all kept ones; what the others are was known from the search before."""
    by: str = "embedding"
    """What was compared: embedding or picture_hash."""
    reused: bool = False
    """The table was already current; nothing was computed."""


def find_duplicates(
    dataset: Dataset, config: DuplicatesConfig | None = None, *, make_index: MakeIndex = LocalIndex
) -> DuplicatesResult:
    """Write `scores/duplicates/duplicates.parquet`, see `DUPLICATES`, for all committed clips.

    The file is replaced atomically; if it is current, nothing is done. After clips were added or removed, only those
    that are new, and those whose kept clip is gone, are compared with all; the result is the same as from scratch.
    `make_index` decides where kept clips are held. Raises UserError if no clip has an embedding, if the dataset has no
    embedding column, or if embeddings have two widths.
    """
    given = config or DuplicatesConfig()
    config = with_source(dataset, given)
    inputs = inputs_digest(dataset, config)
    recorded = _written(dataset, inputs)
    if recorded is not None:
        return replace(recorded, reused=True)
    with tempfile.TemporaryFile(prefix="clipmill-duplicates-") as file:
        with dataset.connect() as connection:
            clips = read_ranked(clip_batches(dataset, connection, config), file, config)
        if clips.without_embedding and not len(clips.clip_id):
            raise _nothing_to_compare(dataset)
        known = read_known(dataset, clips, config, _METHOD)
        groups = find_groups(clips, config, make_index=make_index, known=known)
        table, result = _table(clips, groups.keeper_N), _result(clips, groups, config)
        keep_known(dataset, clips, groups, config, _METHOD)
    metadata = {_INPUTS: inputs, _RESULT: json.dumps(asdict(result)), _CONFIG: given.model_dump_json()}
    dataset.write_part(_TABLE, _PART, table.replace_schema_metadata(metadata))
    return result


def forget_search(dataset: Dataset, source_ids: Collection[str]) -> None:
    """Delete what the last search kept for the next one if it has clips of these sources.

    It refers to clips by their number among those it compared, so rows cannot be removed from it.
    """
    files = storage.list_files(dataset.fs, dataset.file(_TABLE, "last"))
    if any(_has_rows(dataset, path, source_ids) for path in files):
        for path in files:
            storage.remove(dataset.fs, path)


def _has_rows(dataset: Dataset, path: str, source_ids: Collection[str]) -> bool:
    try:
        return rows_in_file(dataset.fs, path, pa.array(source_ids, pa.string())) > 0
    except UserError:
        return True  # damaged: the next search starts from scratch in any case


def refresh_duplicates(dataset: Dataset) -> None:
    """Search again with the settings of the last search, if there was one and clips have changed since.

    Without any embedding left, the table goes.
    """
    if not dataset.parts(_TABLE):
        return
    if has_embeddings(dataset):
        find_duplicates(dataset, last_config(dataset))
    else:
        storage.remove(dataset.fs, dataset.file(_TABLE, f"{_PART}.parquet"))


def has_embeddings(dataset: Dataset, config: DuplicatesConfig | None = None) -> bool:
    """Whether any clip has what a search with these settings compares: an embedding, or picture hashes."""
    vectors = _vectors(with_source(dataset, config or DuplicatesConfig()))
    with dataset.connect() as connection:
        if vectors not in joined_columns(connection):
            return False
        rows = joined_query(connection, [vectors])
        return bool(connection.execute(f"SELECT 1 FROM ({rows}) WHERE {vectors} IS NOT NULL LIMIT 1").fetchall())


def check_comparable(dataset: Dataset, config: DuplicatesConfig | None = None) -> None:
    """Raise UserError if there are clips, but none has what a search with these settings compares."""
    if has_embeddings(dataset, config):
        return
    with dataset.connect() as connection:
        if connection.execute("SELECT 1 FROM clips LIMIT 1").fetchone() is not None:
            raise _nothing_to_compare(dataset)


def _nothing_to_compare(dataset: Dataset) -> UserError:
    return UserError(
        f"no clip of {dataset.url} has an embedding to compare: it was curated without CLIP. Add picture hashes with "
        "`clipmill score DATASET --scorer picture_hash`, remove the rule on duplicate_rank, or curate with CLIP into a "
        "new folder."
    )


def is_current(dataset: Dataset, config: DuplicatesConfig | None = None) -> bool:
    """Whether the table exists and was computed from the current clips with these settings."""
    config = with_source(dataset, config or DuplicatesConfig())
    return _written(dataset, inputs_digest(dataset, config)) is not None


def last_config(dataset: Dataset) -> DuplicatesConfig | None:
    """The settings of the existing table; None without a table, or one of an earlier release."""
    metadata = _metadata(dataset)
    try:
        return DuplicatesConfig.model_validate_json(metadata[_CONFIG]) if _CONFIG in metadata else None
    except ValueError:
        return None


def last_source(dataset: Dataset) -> str | None:
    """What the last search compared: embedding or picture_hash; None without one."""
    try:
        return str(json.loads(_metadata(dataset)[_RESULT])["by"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def with_source(dataset: Dataset, config: DuplicatesConfig) -> DuplicatesConfig:
    """The settings with what is compared: embeddings if any clip has one, else picture hashes if there are some."""
    if config.by is not None:
        return config
    with dataset.connect() as connection:
        known = joined_columns(connection)
        by = "picture_hash" if HASH in known and not _has_embeddings(connection) else "embedding"
    return DuplicatesConfig.from_values(config.model_dump() | {"by": by}, origin="duplicates")


def _has_embeddings(connection: duckdb.DuckDBPyConnection) -> bool:
    known = joined_columns(connection)
    if "embedding" not in known:
        return False
    reason = "embedding_error" if "embedding_error" in known else "embedding"
    missing = "IS NULL" if reason == "embedding_error" else "IS NOT NULL"
    rows = joined_query(connection, [reason])
    return connection.execute(f"SELECT 1 FROM ({rows}) WHERE {reason} {missing} LIMIT 1").fetchone() is not None


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
        groups = find_groups(clips, config)
        return _table(clips, groups.keeper_N), _result(clips, groups, config)


def _result(clips: RankedClips, groups: Groups, config: DuplicatesConfig) -> DuplicatesResult:
    keeper_N = groups.keeper_N
    members_N = np.bincount(keeper_N, minlength=len(keeper_N))
    keeper_count = int((members_N > 0).sum())
    return DuplicatesResult(
        clips=len(keeper_N),
        kept=keeper_count,
        duplicates=len(keeper_N) - keeper_count,
        groups=int((members_N > 1).sum()),
        largest_group=int(members_N.max(initial=0)),
        without_embedding=clips.without_embedding,
        approximate=groups.centroids_CD is not None,
        compared=groups.compared_with_all,
        by=config.by or "embedding",
    )


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


def clip_batches(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, config: DuplicatesConfig
) -> Iterator[pa.RecordBatch]:
    """The columns `CLIP_COLUMNS` of all clips, in batches; with `by: picture_hash`, its vectors as `embedding`."""
    known, vectors = joined_columns(connection), _vectors(config)
    if vectors not in known:
        raise UserError(
            f"{dataset.url} has no column {HASH!r}: add it with `clipmill score DATASET --scorer picture_hash`"
            if vectors == HASH
            else f"{dataset.url} has no column 'embedding': it was written by a release without CLIP scores. Create a "
            "new dataset, or add embeddings: Parquet files with clip_id and embedding in its folder scores/clip/."
        )
    columns = _read_columns(config)
    aesthetic = "CASE WHEN isfinite(aesthetic::FLOAT) THEN aesthetic::FLOAT END" if "aesthetic" in known else "NULL"
    expressions = {"aesthetic": f"{aesthetic}::FLOAT AS aesthetic", HASH: f"{HASH} AS embedding"}
    chosen = ", ".join(expressions.get(name, name) for name in columns)
    rows = joined_query(connection, [name for name in columns if name in known])
    read = batches(connection, f"SELECT {chosen} FROM ({rows})", _BATCH_ROWS)
    return map(hash_vectors, read) if vectors == HASH else read


def _vectors(config: DuplicatesConfig) -> str:
    """The column that is compared."""
    return HASH if config.by == "picture_hash" else "embedding"


def _read_columns(config: DuplicatesConfig) -> tuple[str, ...]:
    return (*CLIP_COLUMNS[:-1], _vectors(config))


def inputs_digest(dataset: Dataset, config: DuplicatesConfig) -> str:
    """Digest of the settings and input files.

    Taken before the files are read, so that a part committed meanwhile makes the table outdated.
    """
    with dataset.connect() as connection:
        known = joined_columns(connection)
    table_of = dataset.views()
    tables = sorted({table_of[known[name][0]] for name in _read_columns(config) if name in known})
    files = {table: dataset.part_versions(table) for table in tables}
    return fingerprint({"method": _METHOD, "config": config.model_dump(mode="json"), "files": files})


def recorded_result(dataset: Dataset, table: str, part: str, inputs: str, kind: type[Result]) -> Result | None:
    """The recorded totals of a table, if it was computed from these inputs."""
    metadata = _metadata(dataset, table, part)
    try:
        if metadata.get(_INPUTS, b"").decode() == inputs:
            return kind(**json.loads(metadata[_RESULT]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged: it is made anew
    return None


def _written(dataset: Dataset, inputs: str) -> DuplicatesResult | None:
    return recorded_result(dataset, _TABLE, _PART, inputs, DuplicatesResult)


def _metadata(dataset: Dataset, table: str = _TABLE, part: str = _PART) -> dict[bytes, bytes]:
    """Metadata of a file; empty if it is missing or damaged."""
    path = dataset.file(table, f"{part}.parquet")
    if not storage.exists(dataset.fs, path):
        return {}
    with storage.explained("read", dataset.fs, path), dataset.fs.open(path, "rb") as file:
        try:
            return dict(pq.read_schema(file).metadata or {})
        except pa.ArrowException:
            return {}
