"""Several pictures of each clip: which frames they are, and how shards hold them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds

from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.catalog import catalog
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shards.folder import index_of, start_shards
from curation.shards.places import CATALOG, write_catalog
from curation.shards.write import ShardConfig, plan_shards, write_shard
from curation.shots.spans import SpanConfig
from pipelines.fetch import fetch
from tests.media import panning, write_video
from tests.training.shards import number_of, numbered
from training.data_config import DataConfig
from training.samples import read_sample
from training.shard_index import index_shards

OPTIONS = {"preset": "veryfast", "crf": "12", "g": "24", "sc_threshold": "0", "bf": "2"}


def scanned(path: Path, frames: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
    write_video(path, frames, options=OPTIONS, **options)
    (source,) = list_sources([str(path)])
    return scan(source, ScanConfig(spans=SpanConfig(extraction="transcode", min_s=0.5, max_s=1.0))).clips


def pictures(clip: ExtractedClip) -> list[np.ndarray]:
    return [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) for content, _ in clip.files()]


def numbers(clip: ExtractedClip) -> list[int]:
    return [number_of(picture) for picture in pictures(clip)]


def extract(path: Path, clips: list[dict[str, Any]], **config: Any) -> list[ExtractedClip]:
    found = extract_clips(str(path), clips, "images", ExtractionConfig(**config))
    assert all(isinstance(clip, ExtractedClip) for clip in found), found
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Frames that tell their number, and the clips of a second of them."""
    path = tmp_path_factory.mktemp("footage") / "a.mp4"
    frames = [np.ascontiguousarray(numbered(i)[..., ::-1]) for i in range(72)]
    (source,) = list_sources([str(write_video(path, frames, options=OPTIONS))])
    whole = scan(source, ScanConfig(spans=SpanConfig(extraction="transcode", min_s=0.1, max_s=60.0))).clips[0]
    clips = []
    for start in (0, 24, 48):  # the bar codes are cuts to the scan
        base = whole["time_base_den"] // 24
        clips.append(
            whole
            | {"clip_id": f"s-{start}-{start + 24}", "start_pts": start * base, "end_pts": (start + 24) * base}
            | {"frames": 24, "thumbnail_pts": [(start + i) * base for i in (0, 12, 23)], "resume": None}
        )
    return path, clips


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [12]), (2, [6, 18]), (3, [4, 12, 20]), (5, [2, 7, 12, 16, 21]), (24, list(range(24))), (64, list(range(24)))],
)
def test_frames_are_evenly_spaced(footage: tuple[Path, list[dict[str, Any]]], count: int, expected: list[int]) -> None:
    path, clips = footage
    for clip, start in zip(extract(path, clips, frames_per_clip=count), (0, 24, 48), strict=True):
        assert numbers(clip) == [start + i for i in expected]
        assert [shape["picture"] for _, shape in clip.files()] == list(range(len(expected)))


def blurred(frame: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), 4)


def test_the_sharpest_frame_of_each_part_is_chosen(tmp_path: Path) -> None:
    frames = panning(height=96, pixels_per_frame=0.5, frames=24)
    sharp = (3, 14, 22)
    path = tmp_path / "a.mp4"
    shown = [frame if i in sharp else blurred(frame) for i, frame in enumerate(frames)]
    (clip, *_) = scanned(path, shown)
    assert clip["frames"] == 24
    (chosen,) = extract(path, [clip], frames_per_clip=3, frame_choice="sharpest")
    base = clip["time_base_den"] // clip["time_base_num"] // 24
    assert [shape["pts"] // base for _, shape in chosen.files()] == list(sharp)
    (one,) = extract(path, [clip], frame_choice="sharpest")
    assert one.shape["pts"] // base in sharp


def test_orientation_bars_and_size_are_those_of_the_middle_frame(tmp_path: Path) -> None:
    frames = panning(height=96, pixels_per_frame=0, frames=24)
    for frame in frames:
        frame[:16], frame[-16:] = 0, 0
    path = tmp_path / "a.mp4"
    clips = scanned(path, frames)
    assert clips[0]["crop_top"] >= 14
    (middle,) = extract(path, clips[:1])
    (several,) = extract(path, clips[:1], frames_per_clip=2)
    for picture in pictures(several):
        assert picture.shape == pictures(middle)[0].shape == (clips[0]["height"], clips[0]["width"], 3)
        assert np.abs(picture.astype(int) - pictures(middle)[0]).mean() < 3


def test_a_clip_that_differs_from_the_scan_fails_alone(footage: tuple[Path, list[dict[str, Any]]]) -> None:
    path, (good, other, last) = footage
    bad = other | {"frames": 23}
    results = extract_clips(str(path), [good, bad, last], "images", ExtractionConfig(frames_per_clip=3))
    assert [isinstance(result, ExtractedClip) for result in results] == [True, False, True]
    assert "24 frames decoded, expected 23" in str(results[1])


def write_all(folder: Path, clips: list[dict[str, Any]], config: ShardConfig, run: Callable[..., Any]) -> Any:
    plans = plan_shards(clips, kind="images", config=config)
    settings = config.model_dump(mode="json")
    start_shards(str(folder), plans, selection="s", settings=settings)
    records = {plan.name: write_shard(plan, str(folder), selection="s", config=config, run=run) for plan in plans}
    write_catalog(str(folder), catalog(plans, records))
    return plans, index_of(plans, records.values(), selection="s", settings=settings)


def test_shards_hold_each_picture_once_with_its_caption(
    tmp_path: Path, footage: tuple[Path, list[dict[str, Any]]]
) -> None:
    path, clips = footage
    text = {"source": "list", "text": "a bar code", "error_kind": None, "error": None}
    clips = [clip | {"captions": [text]} for clip in clips]
    bad = clips[0] | {"clip_id": "s-1-2", "frames": 23}
    config = ShardConfig(images_per_shard=6, extraction=ExtractionConfig(frames_per_clip=3))
    folder = tmp_path / "shards"
    plans, index = write_all(folder, [*clips, bad], config, lambda function, _, *args: function(str(path), *args))
    assert [plan.clips.num_rows for plan in plans] == [2, 2]
    totals = index["totals"]
    assert (totals["selected"], totals["clips"], totals["samples"], totals["failed"]) == (4, 3, 9, 1)
    samples = {s["__key__"]: s for s in wds.WebDataset([str(folder / p.name) for p in plans], shardshuffle=False)}
    assert set(samples) == {f"{clip['clip_id']}_{i}" for clip in clips for i in range(3)}
    for clip, start in zip(clips, (0, 24, 48), strict=True):
        for i, frame in enumerate((4, 12, 20)):
            sample = samples[f"{clip['clip_id']}_{i}"]
            metadata = json.loads(sample["json"])
            assert number_of(cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), 1)) == start + frame
            assert (metadata["clip_id"], metadata["shape"]["picture"], metadata["shape"]["pictures"]) == (
                clip["clip_id"], i, 3,
            )  # fmt: skip
            assert sample["txt"] == b"a bar code"
    trained = [shard.read(row) for shard in index_shards(folder).shards for row in range(len(shard))]
    images = DataConfig(frames=1, height_px=32, width_px=48)
    assert all(read_sample("a", members, images, seed=0).picture for members in trained)
    assert (folder / CATALOG).is_file()
    run = fetch(str(folder), str(tmp_path / "fetched"), clip_ids=[clips[1]["clip_id"]], quiet=True)
    assert (run.wanted, run.failed) == (3, {})
    names = {f"{clips[1]['clip_id']}_{i}.{suffix}" for i in range(3) for suffix in ("jpg", "txt", "json")}
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == names | {CATALOG}
