"""Clusters of clips by content: spherical k-means on the CLIP embeddings (Dhillon and Modha, 2001).

Centroids are trained on a sample and kept, so that a rerun after footage was added puts new clips into the same
clusters. Memory holds the sample and one block, whatever the number of clips. Sizes: N clips, D = width of an
embedding, K clusters.
"""

import hashlib
import math
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from clipmill.columns import column
from clipmill.config import Config
from curation.dataset.embeddings import ClipEmbeddings

METHOD = 1
"""Incremented when the same clips and settings would give other centroids."""
CLUSTER_COLUMNS = (
    column("cluster", pa.int32(), "number of its cluster; when it was trained, 0 was the largest"),
    column("cluster_size", pa.int32(), "clips in its cluster", unit="clips"),
    column(
        "cluster_distance",
        pa.float32(),
        "distance from the center of its cluster: 1 - cosine of the embeddings",
        unit="1 - cosine, 0 to 2",
    ),
)
_MOST_BY_DEFAULT = 4096


class ClusterConfig(Config):
    """Settings of the clusters."""

    clusters: int | None = Field(None, ge=1)
    """Number of clusters; null: the square root of the number of clips, at most 4096."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the sample and of the first centroids."""
    iterations: int = Field(20, ge=1)
    """Rounds of k-means."""
    sample_clips: int = Field(131_072, ge=1)
    """Clips to train on, chosen at random. More take more memory: 4 bytes times the width of an embedding each."""


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The cluster of each clip, in the order of the embeddings."""

    cluster_N: NDArray[np.int32]
    distance_N: NDArray[np.float32]

    def sizes(self, clusters: int) -> NDArray[np.int64]:
        """(K,)."""
        return np.bincount(self.cluster_N, minlength=clusters)


def train_centroids(embeddings: ClipEmbeddings, config: ClusterConfig) -> NDArray[np.float32]:
    """(K, D) centroids of length 1, largest cluster first; none is empty.

    The same for the same clips in any order. There are fewer than asked for if clips or distinct embeddings are.
    """
    rows = _sample(embeddings, config)
    wanted = config.clusters or min(_MOST_BY_DEFAULT, round(math.sqrt(len(embeddings))))
    sample_SD, copies = _distinct(embeddings.take(rows))
    clusters = max(1, min(wanted, len(sample_SD)))
    kmeans = faiss.Kmeans(
        embeddings.width,
        clusters,
        niter=config.iterations,
        seed=config.seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample_SD),
        init_method=faiss.ClusteringInitMethod_AFK_MC2,  # as good as k-means++, without a pass per cluster
    )
    kmeans.train(sample_SD, weights=copies)
    centroids_KD: NDArray[np.float32] = np.ascontiguousarray(kmeans.centroids, np.float32)
    centroids_KD /= np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    sizes_K = assign(embeddings, centroids_KD).sizes(clusters)
    order = np.lexsort((np.arange(clusters), -sizes_K))
    return centroids_KD[order[sizes_K[order] > 0]]


def assign(embeddings: ClipEmbeddings, centroids_KD: NDArray[np.float32]) -> Clusters:
    """The nearest centroid of each clip; of equally near ones, the first."""
    index = faiss.IndexFlatIP(centroids_KD.shape[1])
    index.add(centroids_KD)
    found = [index.search(block_BD.astype(np.float32), 1) for block_BD in embeddings.blocks_BD]
    cosine_N = np.concatenate([cosines[:, 0] for cosines, _ in found])
    return Clusters(
        cluster_N=np.concatenate([numbers[:, 0] for _, numbers in found]).astype(np.int32),
        distance_N=np.maximum(1 - cosine_N, 0).astype(np.float32),
    )


def _sample(embeddings: ClipEmbeddings, config: ClusterConfig) -> NDArray[np.int64]:
    """Rows to train on, in an order that depends on nothing but the seed and the ids of the clips."""
    keys = [
        hashlib.blake2b(clip_id.as_py().encode(), digest_size=8, salt=config.seed.to_bytes(8)).digest()
        for clip_id in embeddings.clip_ids
    ]
    key_N = np.frombuffer(b"".join(keys), ">u8")
    return np.argsort(key_N, kind="stable")[: config.sample_clips].astype(np.int64)


def _distinct(rows_SD: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The distinct rows in the order of their first, and how often each occurs: two equal first centroids would leave
    one cluster empty."""
    _, first, copies = np.unique(
        rows_SD.view(f"V{rows_SD.shape[1] * 4}").ravel(), return_index=True, return_counts=True
    )
    order = np.argsort(first)
    return np.ascontiguousarray(rows_SD[first[order]]), copies[order].astype(np.float32)
