"""`clipmill cluster`: the clusters of a dataset as a score with versions.

scores/cluster/vN/centroids.npy    K centroids (K x D float32), written before the first row
scores/cluster/vN/PART.parquet     cluster, size and distance of the clips in clips/PART.parquet
"""

import hashlib
import io
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.commits import Change
from curation.dataset.embeddings import ClipEmbeddings, check_embeddings, open_embeddings
from curation.dataset.rows import rows_of_clips
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, score_schema, stamped, table_of
from curation.dataset.tables import Dataset
from curation.dedup.cluster_sizes import CLUSTER, CLUSTERS
from curation.dedup.clusters import CLUSTER_COLUMNS, METHOD, ClusterConfig, Clusters, assign, train_centroids
from curation.scores.columns import FAILED
from pipelines.changes import changing
from pipelines.costs import measured_here, recorded_costs
from pipelines.fence import Fence
from pipelines.progress import Reporter
from pipelines.status import clip_digest
from pipelines.versions import record_version

_CENTROIDS = "centroids.npy"
_SCHEMA = score_schema(CLUSTER, CLUSTER_COLUMNS)
_TRAINED_ON = "trained_on_clips"


@dataclass(frozen=True, kw_only=True)
class ClusterSummary:
    """A cluster and the clip nearest to its center."""

    cluster: int
    clips: int
    clip_id: str
    caption: str | None


@dataclass(frozen=True, kw_only=True)
class ClusterResult:
    """What a run wrote. All clips of the dataset = clips + without_embedding."""

    dataset: str
    version: int
    trained: bool
    """Whether new centroids were trained, rather than clips put into the clusters of an earlier run."""
    clusters: int
    """With clips."""
    clips: int
    without_embedding: int
    smallest: int
    largest: int
    mean_distance: float
    examples: tuple[ClusterSummary, ...]
    """The largest clusters."""
    wall_s: float


def cluster(
    dataset: str,
    config: ClusterConfig | None = None,
    *,
    retrain: bool = False,
    examples: int = 10,
    take_over: bool = False,
    quiet: bool = False,
) -> ClusterResult:
    """Put every clip of a dataset into a cluster of similar ones: columns cluster, cluster_size and cluster_distance.

    Settings that no version has make a new version of the score, which counts from then on. Otherwise all clips, also
    those added since, are assigned to the clusters of that version; `retrain` trains new ones on the current clips.
    Raises UserError if no clip has an embedding, or the dataset is in use; RunStopped.
    """
    config, started_s = config or ClusterConfig(), time.monotonic()
    opened = Dataset(dataset).open()
    change = Change(command="cluster", what=_what(config, retrain=retrain))
    check_embeddings(opened)
    with (
        Reporter(CLUSTER, unit="clips", quiet=quiet) as report,
        changing(opened, change, take_over=take_over) as fence,
        recorded_costs(opened, CLUSTER),
        measured_here(CLUSTER),
    ):
        opened.remove_unfinished()
        report.waiting("reading the embeddings")
        with open_embeddings(opened) as embeddings:
            report.waiting("training the centroids")
            version, centroids_KD, trained = _version(opened, embeddings, config, fence, retrain=retrain)
            report.waiting("assigning the clips to clusters")
            clusters = assign(embeddings, centroids_KD)
            sizes_K = clusters.sizes(len(centroids_KD))
            report.begin(len(embeddings))
            without = _write(opened, embeddings, clusters, sizes_K, version, _digest(centroids_KD), fence, report)
            record_version(opened, CLUSTERS, version, finished=True)
            shown = _summaries(opened, embeddings, clusters, sizes_K, examples)
    filled_K = sizes_K[sizes_K > 0]
    return ClusterResult(
        dataset=dataset,
        version=version.version,
        trained=trained,
        clusters=len(filled_K),
        clips=len(clusters.cluster_N),
        without_embedding=without,
        smallest=int(filled_K.min()),
        largest=int(filled_K.max()),
        mean_distance=float(clusters.distance_N.mean()),
        examples=shown,
        wall_s=time.monotonic() - started_s,
    )


def _what(config: ClusterConfig, *, retrain: bool) -> str:
    """For the record of versions."""
    clusters = [] if config.clusters is None else [f"{config.clusters:,} clusters"]
    return ", ".join([*clusters, *(["retrained"] if retrain else [])])


def _version(
    dataset: Dataset, embeddings: ClipEmbeddings, config: ClusterConfig, fence: Fence, *, retrain: bool
) -> tuple[RecordedVersion, NDArray[np.float32], bool]:
    """The version to write and its centroids, trained now if no version has these settings."""
    digest = clip_digest(dataset)
    made_with = ScoreVersion(
        scorer_version=METHOD,
        settings=config.model_dump(mode="json"),
        weights={"clip": digest} if digest else {},
        columns={field.name: str(field.type) for field in CLUSTER_COLUMNS},
    )
    recorded = dataset.recorded_versions(CLUSTERS)
    if not retrain:
        for known in reversed(recorded):
            if _without_clips(known.made_with) == made_with and (
                (found_KD := _centroids(dataset, known, embeddings.width)) is not None
            ):
                return known, found_KD, False
    trained_on = {**made_with.settings, _TRAINED_ON: len(embeddings)}
    version = RecordedVersion(
        version=max((each.version for each in recorded), default=0) + 1,
        made_with=replace(made_with, settings=trained_on),
        target=f"{train_centroids.__module__}:{train_centroids.__name__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    centroids_KD = train_centroids(embeddings, config)
    fence.check()
    content = io.BytesIO()
    np.save(content, centroids_KD)
    storage.write_bytes(dataset.fs, _path(dataset, version), content.getvalue())
    record_version(dataset, CLUSTERS, version)
    return version, centroids_KD, True


def _without_clips(made_with: ScoreVersion) -> ScoreVersion:
    settings = {name: value for name, value in made_with.settings.items() if name != _TRAINED_ON}
    return replace(made_with, settings=settings)


def _centroids(dataset: Dataset, version: RecordedVersion, width: int) -> NDArray[np.float32] | None:
    """The centroids of a version; None if there are none, or for embeddings of another width."""
    path = _path(dataset, version)
    try:
        content = storage.read_bytes(dataset.fs, path)
    except FileNotFoundError:
        return None
    try:
        found_KD: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        if found_KD.ndim != 2 or found_KD.dtype != np.float32 or not found_KD.size or not np.isfinite(found_KD).all():
            raise ValueError(f"expected finite float32 rows, got {found_KD.dtype} of shape {found_KD.shape}")
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{storage.shown(dataset.fs, path)} is damaged: {error}. Pass --retrain to make new clusters."
        ) from error
    return found_KD if found_KD.shape[1] == width else None


def _path(dataset: Dataset, version: RecordedVersion) -> str:
    return dataset.file(table_of(CLUSTERS, version.version), _CENTROIDS)


def _digest(centroids_KD: NDArray[np.float32]) -> str:
    return hashlib.sha256(centroids_KD.tobytes()).hexdigest()


def _write(
    dataset: Dataset,
    embeddings: ClipEmbeddings,
    clusters: Clusters,
    sizes_K: NDArray[np.int64],
    version: RecordedVersion,
    digest: str,
    fence: Fence,
    report: Reporter,
) -> int:
    """Write a part for each part of clips, unless it is there; returns the number of clips without an embedding."""
    part_N, row_N = embeddings.part_rows()
    order = np.argsort(part_N, kind="stable")
    starts = np.searchsorted(part_N[order], np.arange(len(embeddings.parts) + 1))
    table_name, without = table_of(CLUSTERS, version.version), 0
    written = set(dataset.parts(table_name))
    for number, part in enumerate(embeddings.parts):
        ours = order[starts[number] : starts[number + 1]]
        clips = dataset.read_part("clips", part, ["clip_id", "embedding_error"])
        without += clips.num_rows - len(ours)
        table = _rows(clips, row_N[ours], clusters.cluster_N[ours], sizes_K, clusters.distance_N[ours])
        table = stamped(table, version.version, digest)
        fence.check()
        if part not in written or not dataset.read_part(table_name, part).equals(table):
            dataset.write_part(table_name, part, table)
        report.advance(len(ours))
    return without


def _rows(
    clips: pa.Table,
    row_n: NDArray[np.int32],
    cluster_n: NDArray[np.int32],
    sizes_K: NDArray[np.int64],
    distance_n: NDArray[np.float32],
) -> pa.Table:
    """The rows of all clips of a part, of which those in `row_n` have a cluster."""
    missing = np.full(clips.num_rows, True)
    missing[row_n] = False
    values: dict[str, NDArray[Any]] = {
        "cluster": np.zeros(clips.num_rows, np.int32),
        "cluster_size": np.zeros(clips.num_rows, np.int32),
        "cluster_distance": np.zeros(clips.num_rows, np.float32),
    }
    for name, of_rows in zip(values, (cluster_n, sizes_K[cluster_n], distance_n), strict=True):
        values[name][row_n] = of_rows
    errors = [
        (error or "the clip has no usable embedding") if lacks else None
        for error, lacks in zip(clips["embedding_error"].to_pylist(), missing, strict=True)
    ]
    columns: dict[str, Any] = {"clip_id": clips["clip_id"]} | {
        name: pa.array(each, mask=missing) for name, each in values.items()
    }
    columns["cluster_error"] = pa.array(errors, pa.string())
    columns["cluster_error_kind"] = pa.array([FAILED if error else None for error in errors], pa.string())
    columns["version"] = pa.nulls(clips.num_rows, pa.int32())
    columns["weights_digest"] = pa.nulls(clips.num_rows, pa.string())
    return pa.table({name: columns[name] for name in _SCHEMA.names}).cast(_SCHEMA)


def _summaries(
    dataset: Dataset, embeddings: ClipEmbeddings, clusters: Clusters, sizes_K: NDArray[np.int64], most: int
) -> tuple[ClusterSummary, ...]:
    largest = [int(k) for k in np.lexsort((np.arange(len(sizes_K)), -sizes_K))[:most] if sizes_K[k]]
    central = []
    for k in largest:
        rows = np.flatnonzero(clusters.cluster_N == k)
        central.append(int(rows[np.argmin(clusters.distance_N[rows])]))
    clip_ids = embeddings.clip_ids.take(pa.array(central, pa.int64())).to_pylist()
    with dataset.connect() as connection:
        found = rows_of_clips(dataset, connection, clip_ids, ["clip_id", "caption"])
    return tuple(
        ClusterSummary(cluster=k, clips=int(sizes_K[k]), clip_id=clip_id, caption=found[clip_id]["caption"])
        for k, clip_id in zip(largest, clip_ids, strict=True)
    )
