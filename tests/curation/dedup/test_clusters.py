"""k-means on embeddings: clusters that are there are found, whatever the order, sample and copies of the clips."""

from pathlib import Path

import numpy as np
import pytest

from curation.dataset.embeddings import ClipEmbeddings, open_embeddings
from curation.dedup.clusters import ClusterConfig, Clusters, assign, train_centroids
from tests.curation.selection.datasets import make

WIDTH = 24


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Rows around orthogonal directions, shuffled, and the direction of each."""
    rng = np.random.default_rng(seed)
    label_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers_KD = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][: len(sizes)]
    return centers_KD[label_N] + spread * rng.standard_normal((len(label_N), WIDTH)), label_N


def clustered(
    path: Path, rows_ND: np.ndarray, config: ClusterConfig, order: np.ndarray | None = None
) -> tuple[dict[str, int], Clusters, np.ndarray]:
    order = np.arange(len(rows_ND)) if order is None else order
    clips = [{"clip_id": f"s{i % 3}-{i:04d}-0", "embedding": rows_ND[i].tolist()} for i in order]
    with open_embeddings(make(str(path / "d"), clips)) as embeddings:
        centroids_KD = train_centroids(embeddings, config)
        clusters = assign(embeddings, centroids_KD)
        check(embeddings, centroids_KD, clusters)
        return (
            dict(zip(embeddings.clip_ids.to_pylist(), clusters.cluster_N.tolist(), strict=True)),
            clusters,
            centroids_KD,
        )


def check(embeddings: ClipEmbeddings, centroids_KD: np.ndarray, clusters: Clusters) -> None:
    """Every clip is in the cluster of the nearest centroid, at the distance stated; no cluster is empty."""
    rows_ND = embeddings.take(np.arange(len(embeddings))).astype(np.float64)
    distance_NK = 1 - rows_ND @ centroids_KD.astype(np.float64).T
    np.testing.assert_allclose(np.linalg.norm(centroids_KD, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(clusters.distance_N, distance_NK.min(1).clip(0), atol=2e-3)
    chosen_N = distance_NK[np.arange(len(rows_ND)), clusters.cluster_N]
    np.testing.assert_allclose(chosen_N, distance_NK.min(1), atol=1e-5)
    sizes_K = clusters.sizes(len(centroids_KD))
    assert sizes_K.sum() == len(embeddings)
    assert (sizes_K > 0).all()
    assert (np.diff(sizes_K) <= 0).all(), "0 is the largest"


@pytest.mark.parametrize("sample_clips", [131_072, 60])
def test_well_separated_clusters_are_found(tmp_path: Path, sample_clips: int):
    rows_ND, label_N = blobs([60, 40, 20, 10])
    config = ClusterConfig(clusters=12, sample_clips=sample_clips)
    found, _, _ = clustered(tmp_path, rows_ND, config)
    pairs = {(int(label_N[int(clip_id.split("-")[1])]), cluster) for clip_id, cluster in found.items()}
    assert len(pairs) == len(set(found.values())), "a cluster has clips of two directions"
    assert {label for label, _ in pairs} == {0, 1, 2, 3}


def test_the_order_of_the_clips_does_not_matter(tmp_path: Path):
    rows_ND, _ = blobs([50, 30, 20], spread=0.6)
    config = ClusterConfig(clusters=7, sample_clips=70)
    first, _, centroids_KD = clustered(tmp_path / "a", rows_ND, config)
    order = np.random.default_rng(1).permutation(len(rows_ND))
    second, _, again_KD = clustered(tmp_path / "b", rows_ND, config, order)
    assert first == second
    np.testing.assert_array_equal(centroids_KD, again_KD)
    other, _, _ = clustered(tmp_path / "c", rows_ND, config.replace(seed=1))
    assert other != first


def test_copies_make_no_empty_clusters(tmp_path: Path):
    rows_ND, _ = blobs([1, 1, 1])
    copies_ND = np.repeat(rows_ND, [50, 5, 1], axis=0)
    _, clusters, centroids_KD = clustered(tmp_path, copies_ND, ClusterConfig(clusters=20))
    assert clusters.sizes(len(centroids_KD)).tolist() == [50, 5, 1]


def test_fewer_clips_than_clusters(tmp_path: Path):
    rows_ND, _ = blobs([2, 1])
    _, clusters, centroids_KD = clustered(tmp_path, rows_ND, ClusterConfig(clusters=100))
    assert clusters.sizes(len(centroids_KD)).tolist() == [1, 1, 1]
    _, one, _ = clustered(tmp_path / "one", rows_ND[:1], ClusterConfig())
    assert one.cluster_N.tolist() == [0]


def test_by_default_there_are_as_many_clusters_as_the_square_root(tmp_path: Path):
    rows_ND, _ = blobs([100], spread=1.0)
    _, _, centroids_KD = clustered(tmp_path, rows_ND, ClusterConfig())
    assert len(centroids_KD) == 10
