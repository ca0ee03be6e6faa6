"""What the last search decided, kept beside its table for the next one.

`scores/duplicates/last/clips.parquet` has a row per compared clip, from best to worst; `centroids.parquet` the cells of
an approximate search.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.dedup.groups import Groups, Known
from curation.dedup.ranked import RankedClips

_FOLDER = "scores/duplicates/last"
_SETTINGS = b"clipmill.settings"
_IRRELEVANT = {"block_clips", "exact_up_to"}
"""Settings that do not change what two clips are to each other."""


def keep_known(dataset: Dataset, clips: RankedClips, groups: Groups, config: DuplicatesConfig, method: int) -> None:
    """Write it, replacing that of the search before."""
    number_N = np.arange(len(clips.row_N))
    compared = np.flatnonzero(clips.twin_N == number_N)
    table = pa.table(
        {
            "clip_id": clips.clip_id.take(pa.array(compared)),
            "digest": pa.array(clips.digest_N[compared]),
            # Only clips that were compared are kept in the index, so that every keeper is one of them.
            "keeper": pa.array(np.searchsorted(compared, groups.keeper_N[compared])),
        }
    )
    _remove(dataset)
    settings = {_SETTINGS: _settings(config, method, clips.width if len(compared) else 0)}
    if groups.centroids_CD is not None:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(groups.centroids_CD.reshape(-1)), clips.width)
        _write(dataset, "centroids", pa.table({"centroid": flat}).replace_schema_metadata(settings))
    _write(dataset, "clips", table.replace_schema_metadata(settings))


def read_known(dataset: Dataset, clips: RankedClips, config: DuplicatesConfig, method: int) -> Known | None:
    """What is known of these clips; None if there was no search, it had other settings, or its files are damaged."""
    settings = _settings(config, method, clips.width)
    try:
        table, centroids = _read(dataset, "clips", settings), _read(dataset, "centroids", settings)
        if table is None:
            return None
        keeper = table["keeper"].to_numpy()
        if len(keeper) and not (keeper.min() >= 0 and (keeper <= np.arange(len(keeper))).all()):
            return None
        keeper_N = _keepers_now(clips, table, keeper)
        centroids_CD = None if centroids is None else _matrix(centroids, clips.width)
    except (UserError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None
    return Known(keeper_N=keeper_N, centroids_CD=centroids_CD)


def _keepers_now(clips: RankedClips, table: pa.Table, keeper: NDArray[np.int64]) -> NDArray[np.int64]:
    number_N = np.arange(len(clips.row_N))
    # -1: of a clip that the last search did not have.
    row_N = pc.fill_null(pc.index_in(clips.clip_id, table["clip_id"].combine_chunks()), -1).to_numpy().astype(np.int64)
    digest = np.append(table["digest"].to_numpy(), np.uint64(0))
    same_N = (row_N >= 0) & (clips.twin_N == number_N) & (digest[row_N] == clips.digest_N)
    number_now = np.full(table.num_rows + 1, -1)
    number_now[row_N[same_N]] = number_N[same_N]
    keeper_N: NDArray[np.int64] = np.where(same_N, number_now[np.append(keeper, -1)[row_N]], -1)
    return keeper_N


def _matrix(table: pa.Table, width: int) -> NDArray[np.float32]:
    values = table["centroid"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("expected finite numbers")
    return values.reshape(-1, width)


def _settings(config: DuplicatesConfig, method: int, width: int) -> bytes:
    values = config.model_dump(mode="json", exclude=_IRRELEVANT) | {"method": method, "width": width}
    return json.dumps(values, sort_keys=True).encode()


def _path(dataset: Dataset, name: str) -> str:
    return dataset.file(_FOLDER, f"{name}.parquet")


def _write(dataset: Dataset, name: str, table: pa.Table) -> None:
    with storage.atomic_write(dataset.fs, _path(dataset, name)) as file:
        pq.write_table(table, file, compression="zstd")


def _remove(dataset: Dataset) -> None:
    for name in ("clips", "centroids"):  # the clips first: without them the rest is not looked at
        storage.remove(dataset.fs, _path(dataset, name))


def _read(dataset: Dataset, name: str, settings: bytes) -> pa.Table | None:
    """A file, if it is there and was written with these settings."""
    path = _path(dataset, name)
    if not storage.exists(dataset.fs, path):
        return None
    table = storage.read_parquet(dataset.fs, path)
    return table if (table.schema.metadata or {}).get(_SETTINGS) == settings else None
