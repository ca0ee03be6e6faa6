"""Copies of rendered footage, as re-uploads make them, are found by their embeddings; different scenes stay apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.schemas import CLIPS
from curation.dedup.duplicates import rank_duplicates
from curation.inputs.sources import list_sources
from curation.scan.one_pass import scan
from curation.scores.clip_embedder import ClipEmbedder
from demo.clip_check import COPIES, HELD_BACK_SEED
from demo.model import demo_config
from footage.altered import transcoded
from footage.corpus import corpus_specs
from footage.render import render

pytestmark = pytest.mark.slow

SEED, VIDEOS = HELD_BACK_SEED + 600_000, 6
"""Of another corpus than those from which the demo's threshold was chosen, and of none that its model has seen."""

Scene = tuple[int, int]
"""(video, shot)."""


@dataclass(frozen=True)
class Seen:
    """One clip: where it is from, and its row in the clips table."""

    scene: Scene
    copy: str
    """The kind of copy; "" for the original."""
    row: dict[str, Any]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """Every clip of a corpus and of five copies of each of its videos, scanned and embedded as in a real run."""
    folder, model = tmp_path_factory.mktemp("footage"), ClipEmbedder(demo_config().clip_embedder)
    model.load()
    clips_found = []
    for video, spec in enumerate(corpus_specs(seed=SEED, videos=VIDEOS)):
        truth = render(spec, folder)
        paths = {"": folder / truth.file}
        for name, (change, encoding) in COPIES.items():
            paths[name] = transcoded(paths[""], folder / name, spec.name, change, encoding)
        for copy, path in paths.items():
            for row, middle_s in embedded(path, model):
                shots = [i for i, s in enumerate(truth.shots) if s.start_s <= middle_s + truth.start_s < s.end_s]
                assert shots, (path, middle_s)
                clips_found.append(Seen((video, shots[0]), copy, row))
    return clips_found


def embedded(path: Path, model: ClipEmbedder) -> Iterator[tuple[dict[str, Any], float]]:
    """Rows of the clips in a file, with their embeddings; and the middle of each, from the first frame of the file."""
    (source,) = list_sources([str(path)])
    scanned = scan(source)
    for row, jpegs in zip(scanned.clips, scanned.thumbnails, strict=True):
        pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in jpegs]
        mean_D = model.embed_images(pictures).mean(axis=0)
        row["embedding"] = np.float16(mean_D / np.linalg.norm(mean_D))
        yield row, (row["start_s"] + row["end_s"]) / 2 - scanned.source["start_s"]


@pytest.fixture(scope="module")
def keeper_of(clips: list[Seen]) -> dict[str, str]:
    """clip_id -> the clip that is kept in its place; itself if it is kept."""
    config = demo_config().duplicates
    assert config is not None
    table = pa.Table.from_pylist([clip.row for clip in clips], CLIPS)
    ranks, _ = rank_duplicates(table.to_batches(), config)
    rows = ranks.select(["clip_id", "duplicate_of"]).to_pylist()
    return {row["clip_id"]: row["duplicate_of"] or row["clip_id"] for row in rows}


def test_copies_are_found(clips: list[Seen], keeper_of: dict[str, str]) -> None:
    """A copy is found if it is in the group of an original clip of its own scene."""
    groups = {(clip.scene, keeper_of[clip.row["clip_id"]]) for clip in clips if not clip.copy}
    copies = [clip for clip in clips if clip.copy]
    copies_found = sum((clip.scene, keeper_of[clip.row["clip_id"]]) in groups for clip in copies)
    assert len(copies) >= 80
    assert copies_found >= 0.95 * len(copies)


def test_different_scenes_stay_apart(clips: list[Seen], keeper_of: dict[str, str]) -> None:
    scene_of = {clip.row["clip_id"]: clip.scene for clip in clips}
    astray = [clip for clip in clips if scene_of[keeper_of[clip.row["clip_id"]]] != clip.scene]
    assert len(astray) <= 0.01 * len(clips)


def test_a_smaller_copy_is_never_kept_instead_of_its_original(clips: list[Seen], keeper_of: dict[str, str]) -> None:
    small = {clip.row["clip_id"]: clip.scene for clip in clips if clip.copy == "half the size"}
    assert len(small) >= 12
    for clip in clips:
        if clip.copy == "":
            assert small.get(keeper_of[clip.row["clip_id"]]) != clip.scene
