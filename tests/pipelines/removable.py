"""Small datasets with everything that a removal must reach, made without a scan."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill import storage
from clipmill.columns import column
from clipmill.shard_folder import write_index
from curation.dataset.commits import Change, current_version, recorded
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, score_schema, stamped
from curation.dataset.tables import Dataset
from curation.dedup.clusters import CLUSTER_COLUMNS
from curation.dedup.duplicates import find_duplicates
from curation.selection.marks import Mark, Marks, keep_marks
from curation.selection.rules import Rules
from curation.selection.select import Selection, select_clips
from curation.shards.catalog import catalog
from curation.shards.clip_row import ExtractedClip
from curation.shards.folder import index_of, start_shards
from curation.shards.places import write_catalog
from curation.shards.write import ShardConfig, plan_shards, write_shard
from pipelines.selected import selected_rows

LICENSES = ("CC0", "CC-BY-NC")
CONFIG = ShardConfig(clips_per_shard=4)


def source_id(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=8).hexdigest()


def clip_rows(number: int) -> list[dict[str, Any]]:
    """Two to four clips, whose values depend on the source alone; every third source is a copy of the one before."""
    chance, alike = random.Random(number), np.random.default_rng(number - (number % 3 == 2))
    rows = []
    for i in range(2 + number % 3):
        embedding = alike.normal(size=16)
        rows.append(
            {
                "clip_id": f"{source_id(number)}-{i * 100}-{i * 100 + 90}",
                "source_id": source_id(number),
                "uri": f"/videos/{number}.mp4",
                "extraction": "remux",
                "start_pts": i * 100,
                "end_pts": i * 100 + 90,
                "cut_start_pts": i * 100,
                "cut_end_pts": i * 100 + 90,
                "start_s": float(i),
                "end_s": i + 0.9,
                "cut_start_s": float(i),
                "cut_end_s": i + 0.9,
                "start_frame": i * 100,
                "frames": 90,
                "fps": 25.0,
                "variable_fps": False,
                "codec": "h264",
                "duration_s": chance.uniform(1, 5),
                "width": 64,
                "height": 48,
                "motion": chance.uniform(0, 20),
                "aesthetic": chance.uniform(1, 10),
                "embedding": (embedding / np.linalg.norm(embedding)).astype(np.float16).tolist(),
                "captions": [
                    {"source": "video", "text": f"film {number}, clip {i}", "error_kind": None, "error": None}
                ],
                "time_base_num": 1,
                "time_base_den": 100,
            }
        )
    return rows


def source_row(number: int, clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    metadata = [("license", LICENSES[number % 2])]
    uri = f"/videos/{number}.mp4"
    return {"source_id": source_id(number), "uri": uri, "status": "ok", "clips": len(clips), "metadata": metadata}


def dataset_of(url: str, parts: Iterable[Sequence[int]]) -> Dataset:
    """A dataset with a part per sequence of source numbers: versions of a score, a table of another program, and
    near-duplicates."""
    dataset = Dataset(url).create_or_open({})
    parts_of: dict[str, list[str]] = {}
    with recorded(dataset, Change(command="curate", what="videos")):
        for n, numbers in enumerate(parts):
            clips = {number: clip_rows(number) for number in numbers}
            parts_of[f"p{n}"] = [row["clip_id"] for number in numbers for row in clips[number]]
            rows = [row for of_source in clips.values() for row in of_source]
            ids = [row["clip_id"] for row in rows]
            dataset.write_part(
                "previews", f"p{n}", pa.Table.from_pylist([{"clip_id": i, "middle": i.encode()} for i in ids], PREVIEWS)
            )
            for version in (1, 2):
                luma = [version * row["motion"] for row in rows]
                dataset.write_part(f"scores/luma/v{version}", f"p{n}", _luma(ids, luma, version))
            dataset.write_part("clips", f"p{n}", pa.Table.from_pylist(rows, CLIPS))
            sources = [source_row(number, of_source) for number, of_source in clips.items()]
            dataset.write_part("sources", f"p{n}", pa.Table.from_pylist(sources, SOURCES))
        _write_clusters(dataset, parts_of)
        all_ids = _column(dataset, "SELECT clip_id FROM clips ORDER BY hash(clip_id)")
        dataset.write_part("scores/theirs", "everything", pa.table({"clip_id": all_ids, "likes": range(len(all_ids))}))
        made_with = ScoreVersion(scorer_version=1, columns={"luma": "double"})
        dataset.record_versions(
            "scores/luma", [RecordedVersion(version=v, made_with=made_with, target="", finished=True) for v in (1, 2)]
        )
        find_duplicates(dataset)
    return dataset


def with_outputs(dataset: Dataset) -> Dataset:
    """Two selections, a shard folder of each, marks, and a page."""
    select(dataset, "all", {"duration_s": {"min": 0}})
    select(dataset, "moving", {"motion": {"drop_lowest": "30%"}, "duplicate_rank": {"max": 0}})
    for name in ("all", "moving"):
        shard(dataset, name)
    ids = _column(dataset, "SELECT clip_id FROM clips ORDER BY clip_id")
    keep_marks(dataset, Marks(marks=tuple(Mark(clip_id=clip_id, verdict="keep") for clip_id in ids)))
    for page in ("all.html", "search-dogs.png"):
        storage.write_bytes(dataset.fs, dataset.file("report", page), b"pictures")
    return dataset


def select(dataset: Dataset, name: str, rules: dict[str, Any], **more: Any) -> Selection:
    values = {"name": name, "rules": rules, **more}
    return select_clips(dataset, Rules.from_values(values, origin="test"), replace=True)


def shard(dataset: Dataset, selection: str) -> Path:
    """Write a selection's shards as `clipmill shard` does, with made-up videos."""
    folder = f"{dataset.url}/shards/{selection}"
    rows, gone = selected_rows(dataset, selection)
    plans = plan_shards(rows, kind="clips", config=CONFIG)
    settings = CONFIG.model_dump(mode="json")
    start_shards(folder, plans, selection=selection, settings=settings)
    records = {p.name: write_shard(p, folder, selection=selection, config=CONFIG, run=_videos) for p in plans}
    write_catalog(folder, catalog(plans, records))
    version = current_version(dataset).version
    write_index(
        folder,
        index_of(plans, records.values(), selection=selection, settings=settings, gone=gone, dataset_version=version),
    )
    return Path(folder)


_SHAPE = {
    "codec": "h264",
    "width": 64,
    "height": 48,
    "pixel_format": "yuv420p",
    "rotation": 0,
    "mirrored": False,
    "sample_aspect_ratio": "1:1",
    "crop": [0, 0, 0, 0],
}


def _videos(function: Any, uri: str, clips: Sequence[dict[str, Any]], *arguments: Any) -> list[ExtractedClip]:
    return [
        ExtractedClip(content=clip["clip_id"].encode() * (1 + clip["start_pts"]), suffix="mp4", shape=_SHAPE)
        for clip in clips
    ]


def _luma(ids: list[str], values: list[float], version: int) -> pa.Table:
    schema = score_schema("luma", [column("luma", pa.float64(), "mean luma")])
    rows = [{"clip_id": i, "luma": value} for i, value in zip(ids, values, strict=True)]
    return stamped(pa.Table.from_pylist(rows, schema), version, None)


def _write_clusters(dataset: Dataset, parts: dict[str, list[str]]) -> None:
    """Two versions of clusters, which depend on the source alone, with their sizes; every third source has none."""
    for version, clusters in ((1, 2), (2, 3)):
        cluster_of = {
            clip_id: None if int(clip_id[:4], 16) % 3 == 0 else int(clip_id[:4], 16) % clusters
            for ids in parts.values()
            for clip_id in ids
        }
        sizes = Counter(cluster_of.values())
        for part, ids in parts.items():
            rows = [
                {"clip_id": i, "cluster": (k := cluster_of[i]), "cluster_size": None if k is None else sizes[k]}
                for i in ids
            ]
            table = pa.Table.from_pylist(rows, score_schema("cluster", CLUSTER_COLUMNS))
            dataset.write_part(f"scores/cluster/v{version}", part, stamped(table, version, None))
    made_with = ScoreVersion(scorer_version=1, columns={"cluster": "int32"})
    recorded = [RecordedVersion(version=v, made_with=made_with, target="", finished=True) for v in (1, 2)]
    dataset.record_versions("scores/cluster", recorded)


def _column(dataset: Dataset, query: str) -> list[str]:
    with dataset.connect() as connection:
        return [row[0] for row in connection.execute(query).fetchall()]
