"""Versions of the captions that a dataset has now, and of those that its `similarity` was computed from."""

from typing import Any

import duckdb

from clipmill import storage
from curation.dataset.joined import VERSIONS, view_names
from curation.dataset.tables import Dataset
from curation.scores.columns import SCORES

_MODELS = "models.json"


def caption_versions(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """Captioner -> version: `now` of its captions that count, `scored` of those that `similarity` saw.

    `similarity_captions` has no names, only the order of the captions of that time.
    """
    return {"now": dataset.counted_captions(), "scored": _scored(dataset, connection)}


def _scored(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    query = f"SELECT version FROM {VERSIONS} WHERE scorer = 'similarity' AND counted AND view <> 'clips'"
    counted = connection.execute(query).fetchone() if VERSIONS in view_names(connection) else None
    if counted is None:  # the clips table has it
        models: dict[str, Any] = storage.read_json_if_exists(dataset.fs, dataset.file(_MODELS), dict) or {}
        return dict(models.get("captions") or {})
    [version] = [v for v in dataset.recorded_versions(f"{SCORES}/similarity") if v.version == counted[0]]
    return dict(version.made_with.captions)
