"""Shards: the plan's order, one tar's bytes, what a rerun finds, what the index says."""

import io
import json
import os
import re
import subprocess
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import SourceError, UserError
from clipmill.shard_folder import FailedClip, write_index
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.extract import ExtractionConfig
from curation.shards.folder import index_of, start_shards
from curation.shards.write import ShardConfig, ShardPlan, check_shard, plan_shards, write_shard
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.media import panning, write_video

OPTIONS = {"preset": "veryfast", "crf": "20", "g": "12", "sc_threshold": "0"}
CONFIG = ShardConfig(clips_per_shard=4)


def row(source: str, clip: int) -> dict[str, Any]:
    return {"clip_id": f"{source}-{clip}-{clip + 1}", "source_id": source, "uri": f"/{source}.mp4"}


def rows_of(clips_per_source: dict[str, int]) -> list[dict[str, Any]]:
    return [row(source, clip) for source, clips in clips_per_source.items() for clip in range(clips)]


def by_name(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry["name"]: entry["value"] for entry in entries}


def ids(plans: list[ShardPlan]) -> list[list[str]]:
    return [plan.clips["clip_id"].to_pylist() for plan in plans]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Six clips of two sources, remuxed and transcoded ones, one of them with captions."""
    folder = tmp_path_factory.mktemp("sources")
    rows = []
    for seed, extraction in ((1, "remux"), (2, "transcode")):
        path = folder / f"{extraction}.mp4"
        write_video(path, panning(height=64, pixels_per_frame=2, frames=72, seed=seed), options=OPTIONS)
        (source,) = list_sources([str(path)])
        captions = ("a grey texture", "etwas Graues") if extraction == "remux" else ()
        source = replace(source, captions=captions)
        rows += scan(source, ScanConfig(spans=SpanConfig(extraction=extraction, min_s=0.5, max_s=1.0))).clips
    assert Counter(clip["extraction"] for clip in rows) == {"remux": 3, "transcode": 3}
    return [clip | {"text_area": 0.25, "text_area_error": None, "aesthetic": 5.5, "missing": None} for clip in rows]


def write_all(folder: Path, clips: list[dict[str, Any]], kind: Any = "clips", config: ShardConfig = CONFIG) -> Any:
    plans = plan_shards(clips, kind=kind, config=config)
    start_shards(str(folder), plans, selection="s", settings=config.model_dump(mode="json"))
    results = [write_shard(plan, str(folder), selection="s", config=config) for plan in plans]
    index = index_of(plans, results, selection="s", settings=config.model_dump(mode="json"))
    write_index(str(folder), index)
    return plans, results, index


def test_the_plan_depends_on_ids_and_seed_only() -> None:
    rows = rows_of({"a": 20, "b": 7, "c": 1})
    plans = plan_shards(rows, kind="clips", config=CONFIG)
    assert ids(plans) == ids(plan_shards(rows[::-1], kind="clips", config=CONFIG))
    assert ids(plans) == ids(plan_shards(pa.Table.from_pylist(rows), kind="clips", config=CONFIG))
    assert ids(plans) != ids(plan_shards(rows, kind="clips", config=ShardConfig(clips_per_shard=4, seed=1)))
    assert [plan.name for plan in plans] == [f"clips-{i:06d}.tar" for i in range(7)]


def test_the_order_is_the_same_on_every_machine() -> None:
    plans = plan_shards(rows_of({"a": 3, "b": 2}), kind="images", config=ShardConfig(images_per_shard=3))
    assert ids(plans) == [["b-1-2", "a-2-3"], ["a-1-2", "a-0-1", "b-0-1"]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 3))
def test_every_clip_is_in_one_shard_and_sources_are_spread_evenly(sizes: list[int], per_shard: int, seed: int) -> None:
    rows = rows_of({f"s{i}": size for i, size in enumerate(sizes)})
    plans = plan_shards(rows, kind="clips", config=ShardConfig(clips_per_shard=per_shard, seed=seed))
    lengths = [plan.clips.num_rows for plan in plans]
    assert sorted(chain.from_iterable(ids(plans))) == sorted(r["clip_id"] for r in rows)
    assert max(lengths) <= per_shard
    assert max(lengths) - min(lengths) <= 1
    for plan in plans:
        for source, count in Counter(plan.clips["source_id"].to_pylist()).items():
            share = sizes[int(source[1:])] / len(rows)
            assert count <= share * (plan.clips.num_rows + len(sizes)) + 1


def test_no_shard_holds_one_source_only_where_there_are_many() -> None:
    plans = plan_shards(rows_of({f"s{i}": 50 for i in range(6)}), kind="clips", config=CONFIG)
    assert all(len(set(plan.clips["source_id"].to_pylist())) > 1 for plan in plans)


def test_a_clip_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="duplicate clip_id"):
        plan_shards([row("a", 1), row("a", 1)], kind="clips")


def test_samples_are_read_by_webdataset_and_by_tar(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, results, _ = write_all(tmp_path, clips)
    urls = [str(tmp_path / plan.name) for plan in plans]
    samples = {s["__key__"]: s for s in wds.WebDataset(urls, shardshuffle=False)}
    assert set(samples) == {clip["clip_id"] for clip in clips}
    for clip in clips:
        sample = samples[clip["clip_id"]]
        with Video(io.BytesIO(sample["mp4"])) as video:
            assert sum(1 for _ in video.frames()) == clip["frames"]
        assert sample["txt"].decode() == ("a grey texture" if clip["extraction"] == "remux" else "")
    listed = subprocess.run(["tar", "tf", urls[0]], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [f"{clip_id}.{suffix}" for clip_id in ids(plans)[0] for suffix in ("json", "mp4", "txt")]
    assert sum(result.samples for result in results) == len(clips)


def test_the_json_says_where_a_sample_comes_from(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, *_ = write_all(tmp_path, clips)
    metadata_of = {}
    for plan in plans:
        with tarfile.open(tmp_path / plan.name) as tar:
            names = [name for name in tar.getnames() if name.endswith(".json")]
            metadata_of |= {name.removesuffix(".json"): json.loads(tar.extractfile(name).read()) for name in names}
    clip = next(c for c in clips if c["extraction"] == "remux")
    metadata = metadata_of[clip["clip_id"]]
    assert metadata["span"]["time_base"] == [clip["time_base_num"], clip["time_base_den"]]
    assert metadata["span"]["start_pts"] == clip["start_pts"]
    assert metadata["cuts"]["cut_end_s"] == clip["cut_end_s"]
    assert metadata["shape"]["codec"] == "h264"
    assert (metadata["shape"]["width"], metadata["shape"]["height"], metadata["shape"]["frames"]) == (
        114,
        64,
        clip["frames"],
    )
    assert metadata["captions"] == [
        {"source": "list", "text": "a grey texture", "error_kind": ""},
        {"source": "list", "text": "etwas Graues", "error_kind": ""},
    ]
    assert by_name(metadata["conditioning"]) == {"fps_id": 23, "motion_bucket": clip["motion_bucket"]}
    assert by_name(metadata["scores"]) == {"motion": clip["motion"], "text_area": 0.25, "aesthetic": 5.5}
    provenance = metadata["provenance"]
    assert (provenance["root"], provenance["path"]) == ("local", Path(clip["uri"]).name)
    assert (provenance["source_id"], provenance["selection"], provenance["codec"]) == (clip["source_id"], "s", "h264")


def test_image_shards_hold_one_picture_per_clip(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, _, index = write_all(tmp_path, clips, kind="images")
    samples = list(wds.WebDataset(str(tmp_path / plans[0].name), shardshuffle=False).decode("rgb8"))
    assert {s["__key__"] for s in samples} == {clip["clip_id"] for clip in clips}
    assert all(s["jpg"].shape == (64, 114, 3) for s in samples)
    assert index["kind"] == "images"


@pytest.mark.parametrize("kind", ["clips", "images"])
def test_writing_again_gives_the_same_bytes(tmp_path: Path, clips: list[dict[str, Any]], kind: str) -> None:
    write_all(tmp_path / "one", clips, kind)
    write_all(tmp_path / "two", clips[::-1], kind)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_the_index_adds_up(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, results, index = write_all(tmp_path, clips)
    assert index == json.loads((tmp_path / "index.json").read_text())
    assert [shard["name"] for shard in index["shards"]] == [plan.name for plan in plans]
    assert index["totals"]["samples"] == len(clips)
    assert index["totals"]["bytes"] == sum((tmp_path / plan.name).stat().st_size for plan in plans)
    assert index["totals"]["duration_s"] == pytest.approx(sum(clip["duration_s"] for clip in clips))
    with pytest.raises(ValueError, match=plans[1].name):
        index_of(plans, results[:1], selection="s", settings=CONFIG.model_dump(mode="json"))


@pytest.mark.parametrize("kind", ["clips", "images"])
def test_files_are_read_by_the_ranges_in_the_record(tmp_path: Path, clips: list[dict[str, Any]], kind: Any) -> None:
    plans, records, _ = write_all(tmp_path, clips, kind)
    samples = {s["__key__"]: s for s in wds.WebDataset([str(tmp_path / p.name) for p in plans], shardshuffle=False)}
    assert len(samples) == len(clips)
    for record in records:
        assert record.members is not None
        content = (tmp_path / record.name).read_bytes()
        assert set(record.members.ranges) == {"json", "txt", "mp4" if kind == "clips" else "jpg"}
        for i, key in enumerate(record.members.keys):
            for extension, ranges in record.members.ranges.items():
                byte_range = ranges[i]
                assert byte_range is not None
                assert content[byte_range[0] : sum(byte_range)] == samples[key][extension]


def test_every_selected_clip_is_written_or_has_a_reason(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    lost = [clip | {"uri": str(tmp_path / "gone.mp4")} if clip["extraction"] == "remux" else clip for clip in clips]
    plans, results, _ = write_all(tmp_path, lost)
    gone = [FailedClip(clip_id="x", error_kind="gone", error="select again")]
    index = index_of(plans, results, selection="s", settings=CONFIG.model_dump(mode="json"), gone=gone)
    assert {key: index["totals"][key] for key in ("selected", "samples", "failed", "gone")} == {
        "selected": 7, "samples": 3, "failed": 3, "gone": 1
    }  # fmt: skip
    assert [clip["error"] for clip in index["gone"]] == ["select again"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r'"duration_s": [0-9.]+', '"duration_s": Infinity'),
        (r'"duration_s": [0-9.]+', '"duration_s": NaN'),
        (r'"duration_s": [0-9.]+', '"duration_s": 1e999'),
        (r'"samples": [0-9]+', '"samples": "many"'),
        (r'"samples": [0-9]+', '"samples": -1'),
        (r'"samples": [0-9]+', '"samples": null'),
        (r'"failed": \[\]', '"failed": [1]'),
        (r"(?s).*", "[" * 100_000),
        (r"(?s).*", '"x"'),
    ],
)
def test_a_record_with_other_values_is_damaged(tmp_path: Path, clips: list[dict[str, Any]], old: str, new: str) -> None:
    plans, _, _ = write_all(tmp_path, clips[:1])
    record = (tmp_path / plans[0].name).with_suffix(".json")
    record.write_text(re.sub(old, new, record.read_text(), count=1))
    assert check_shard(plans[0], str(tmp_path)).problem == "its record is damaged"


def test_a_rerun_finds_what_is_missing_or_broken(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, results, _ = write_all(tmp_path, clips, config=ShardConfig(clips_per_shard=1))
    assert [check_shard(plan, str(tmp_path)).record for plan in plans] == results
    path = [tmp_path / plan.name for plan in plans]
    content = path[0].read_bytes()
    path[0].write_bytes(content[:-1])
    path[1].write_bytes(path[1].read_bytes()[:-1] + b"\1")
    path[2].unlink()
    path[3].with_suffix(".json").unlink()
    path[4].with_suffix(".json").write_text("{")
    problems = [check_shard(plan, str(tmp_path)).problem for plan in plans]
    expected = ["bytes", "checksum", "missing", "not written", "damaged", None]
    assert all((e is None and p is None) or e in (p or "") for p, e in zip(problems, expected, strict=True))
    assert check_shard(plans[1], str(tmp_path), read=False).problem is None
    write_shard(plans[0], str(tmp_path), selection="s", config=ShardConfig(clips_per_shard=1))
    assert path[0].read_bytes() == content


def test_a_shard_of_other_rows_is_written_again(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    write_all(tmp_path, clips)
    rescored = plan_shards([clip | {"aesthetic": 6.0} for clip in clips], kind="clips", config=CONFIG)
    assert "different rows" in (check_shard(rescored[0], str(tmp_path)).problem or "")


def test_a_folder_of_something_else_is_refused_with_the_difference(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, *_ = write_all(tmp_path, clips)
    folder = str(tmp_path)
    start_shards(folder, plans, selection="s", settings=CONFIG.model_dump(mode="json"))
    fewer = plan_shards(clips[1:], kind="clips", config=CONFIG)
    sharper = ShardConfig(clips_per_shard=4, extraction=ExtractionConfig(crf=12))
    images = plan_shards(clips, kind="images", config=CONFIG)
    wider = plan_shards([clip | {"similarity": 0.3} for clip in clips], kind="clips", config=CONFIG)
    for other, config, difference in (
        (fewer, CONFIG, "clips: was 6, now 5"),
        (plans, sharper, "config.extraction.crf: was 18, now 12"),
        (images, CONFIG, 'kind: was "clips", now "images"'),
        (wider, CONFIG, "similarity"),
    ):
        with pytest.raises(UserError, match=difference.replace(".", r"\.")):
            start_shards(folder, other, selection="s", settings=config.model_dump(mode="json"))


def test_a_folder_of_an_older_format_is_refused_with_what_to_do(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, *_ = write_all(tmp_path, clips)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"format_version": 1}))
    with pytest.raises(UserError, match="has shards format 1, this clipmill reads format 2: remove the"):
        start_shards(str(tmp_path), plans, selection="s", settings=CONFIG.model_dump(mode="json"))


def test_a_vanished_source_costs_its_clips_only(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    gone = [clip | {"uri": str(tmp_path / "gone.mp4")} if clip["extraction"] == "remux" else clip for clip in clips]
    plans, results, index = write_all(tmp_path / "out", gone, config=ShardConfig())
    assert results[0].samples == 3
    assert {clip.clip_id for clip in results[0].failed} == {c["clip_id"] for c in clips if c["extraction"] == "remux"}
    assert {clip["error_kind"] for clip in index["failed"]} == {"missing"}
    assert index["totals"]["failed"] == 3
    assert check_shard(plans[0], str(tmp_path / "out")).record == results[0]


def test_a_child_that_dies_costs_its_clips_only(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    def dies_on_encodes(function: Any, uri: str, *args: Any) -> Any:
        if uri.endswith("transcode.mp4"):
            raise SourceError("crashed", "killed in native code by SIGSEGV")
        return function(uri, *args)

    plan = plan_shards(clips, kind="clips")[0]
    result = write_shard(plan, str(tmp_path), selection="s", run=dies_on_encodes)
    assert result.samples == 3
    assert [clip.error_kind for clip in result.failed] == ["crashed"] * 3


def test_a_full_disk_leaves_no_shard(
    tmp_path: Path, clips: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_shard(plan_shards(clips[:1], kind="clips")[0], str(tmp_path), selection="s")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    plans, *_ = write_all(tmp_path, clips)
    leftover = tmp_path / ".clips-000000.tar.0123456789ab.tmp"
    leftover.write_bytes(b"half")
    start_shards(str(tmp_path), plans, selection="s", settings=CONFIG.model_dump(mode="json"))
    assert not leftover.exists()
