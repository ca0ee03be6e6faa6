"""Outdated selections and shards: older than the dataset's version, or with clips that are gone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from clipmill import storage
from curation.dataset.commits import DatasetVersion
from curation.dataset.tables import Dataset
from curation.selection.saved import Selection, selected_ids
from curation.shards.places import CATALOG, has_catalog


@dataclass(frozen=True, kw_only=True)
class Outdated:
    """How a selection or a shard folder differs from the dataset as it is now."""

    dataset_version: int
    """The version it was made from."""
    older: bool
    """Whether the dataset has changed since."""
    gone_clips: int = 0
    """Clips that the dataset no longer has: removed, or of files that were replaced."""
    gone_tars: dict[str, int] = field(default_factory=dict)
    """Of shards: address of a tar -> its samples that are gone."""


def outdated_selections(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, selections: Iterable[Selection], now: DatasetVersion
) -> dict[str, Outdated]:
    """Name of a selection -> how it is outdated, for those that are."""
    found = {}
    for selection in selections:
        connection.register("_ids", selected_ids(dataset, selection.name))
        [(gone,)] = connection.execute("SELECT count(*) FROM _ids ANTI JOIN clips USING (clip_id)").fetchall()
        connection.unregister("_ids")
        made_from = selection.dataset_version
        older = made_from < now.version or selection.dataset_changing or now.changing
        found[selection.name] = Outdated(dataset_version=made_from, older=older, gone_clips=gone)
    return {name: state for name, state in found.items() if state.older or state.gone_clips}


def outdated_shards(
    dataset: Dataset,
    connection: duckdb.DuckDBPyConnection,
    indexes: Mapping[str, Mapping[str, Any]],
    now: DatasetVersion,
) -> dict[str, Outdated]:
    """Shard folder -> how it is outdated, for those that are."""
    found = {}
    for name, index in indexes.items():
        folder = dataset.file("shards", name)
        samples = _samples(dataset, folder)
        connection.register("_samples", samples)
        tars = connection.execute(
            "SELECT shard::VARCHAR, count(*) FROM _samples ANTI JOIN clips USING (clip_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        connection.unregister("_samples")
        made_from = index["dataset_version"]
        found[name] = Outdated(
            dataset_version=made_from,
            older=made_from < now.version or now.changing,
            gone_clips=sum(gone for _, gone in tars),
            gone_tars={storage.address(dataset.fs, f"{folder}/{shard}"): gone for shard, gone in tars},
        )
    return {name: state for name, state in found.items() if state.older or state.gone_clips}


def _samples(dataset: Dataset, folder: str) -> pa.Table:
    """clip_id and tar of every sample of a finished shard folder."""
    if not has_catalog(storage.address(dataset.fs, folder)):
        return pa.table({"clip_id": pa.array([], pa.string()), "shard": pa.array([], pa.string())})
    return storage.read_parquet(dataset.fs, f"{folder}/{CATALOG}", ["clip_id", "shard"])
