"""Sizes of clusters after clips have left the dataset."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from clipmill.columns import with_values
from curation.dataset.score_versions import table_of
from curation.dataset.tables import Dataset
from curation.scores.columns import SCORES

CLUSTER = "cluster"
"""Name of the score."""
CLUSTERS = f"{SCORES}/{CLUSTER}"
"""Its tables, see `pipelines.clustering`."""


def refresh_cluster_sizes(dataset: Dataset, check: Callable[[], None] = lambda: None) -> None:
    """Correct `cluster_size` in every version of the score: count the clips that each cluster has left.

    After a kill, call it again. `check` raises if another run owns the dataset.
    """
    for version in dataset.recorded_versions(CLUSTERS):
        table = table_of(CLUSTERS, version.version)
        clusters = {part: _clusters(dataset, table, part) for part in dataset.parts(table)}
        counts = np.bincount(np.concatenate([c.drop_null().to_numpy() for c in clusters.values()] or [[]]).astype(int))
        for part, cluster in clusters.items():
            sizes = [None if number is None else int(counts[number]) for number in cluster.to_pylist()]
            rows = dataset.read_part(table, part)
            if rows["cluster_size"].to_pylist() != sizes:
                check()
                dataset.write_part(table, part, with_values(rows, "cluster_size", sizes))


def _clusters(dataset: Dataset, table: str, part: str) -> pa.Array:
    return dataset.read_part(table, part, ["cluster"])["cluster"].combine_chunks()
