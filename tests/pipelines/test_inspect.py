"""Inspect, and what becomes of a source whose decoder hangs, crashes or eats all memory."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from clipmill import Inspection, inspect
from clipmill.errors import RunStopped, UserError
from curation.scan.one_pass import ScanConfig
from curation.video.decode import Limits
from demo.model import demo_config
from pipelines.inspect import signals_file
from tests import faults
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = panning(height=180, pixels_per_frame=2, frames=60) + panning(
        height=180, pixels_per_frame=1, frames=60, seed=9
    )
    return write_video(tmp_path_factory.mktemp("inspect") / "two.mp4", frames)


@pytest.mark.slow
def test_a_video_is_described_without_a_dataset(video: Path):
    (seen,) = inspect([str(video)], WITHOUT_CLIP)
    assert (seen.uri, seen.error_kind, seen.error) == (str(video), None, None)
    assert (seen.source["frames"], seen.source["width"]) == (120, 320)
    (cut,) = seen.transitions
    assert cut == {"kind": "hard", "start_frame": 60, "end_frame": 60, "start_s": 2.5, "end_s": 2.5}
    assert [(clip["start_frame"], clip["frames"]) for clip in seen.clips] == [(0, 60), (60, 60)]
    assert all(clip["text_area"] == 0 and clip["motion"] > 5 for clip in seen.clips)
    assert seen.source["frame_times_s"] == pytest.approx([frame / 24 for frame in range(120)])


@pytest.mark.parametrize(
    ("name", "sentence"), [("empty", "no videos found in .*empty"), ("nope.mp4", "nope.mp4 does not exist")]
)
def test_a_wrong_path_is_said_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
):
    def loading(*_: object) -> None:
        raise AssertionError("models are loaded")

    monkeypatch.setattr(importlib.import_module("pipelines.inspect"), "load_models", loading)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        list(inspect([str(tmp_path / name)]))


@pytest.mark.slow
def test_with_a_clip_model_it_is_json_with_every_score(video: Path):
    (seen,) = inspect([str(video)], demo_config())
    clips = json.loads(json.dumps(asdict(seen), allow_nan=False))["clips"]
    assert len(clips) == 2
    assert all("embedding" not in clip and clip["embedding_error"] is None for clip in clips)
    assert all(isinstance(clip[score], float) for clip in clips for score in ("aesthetic", "motion"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (faults.hang, "timeout", "1 s"),
        (faults.segfault, "crashed", "SIGSEGV"),
        (faults.leave, "crashed", "code 3"),
        (faults.fill_memory, "out_of_memory", "GiB"),
    ],
)
def test_native_code_that_misbehaves_costs_one_row(
    video: Path, monkeypatch: pytest.MonkeyPatch, fault, kind: str, sentence: str
):
    monkeypatch.setattr(importlib.import_module("pipelines.parts"), "scan", fault)
    limits = Limits(timeout_s=1 if fault is faults.hang else 60, memory_bytes=1 << 30)
    (seen,) = inspect([str(video)], WITHOUT_CLIP.model_copy(update={"scan": ScanConfig(limits=limits)}))
    assert seen.error_kind == kind
    assert sentence in (seen.error or "")
    assert (seen.source["status"], seen.clips) == ("rejected", [])


@pytest.mark.slow
def test_the_next_source_goes_on_after_a_bad_one(video: Path, tmp_path: Path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    kinds = [seen.error_kind for seen in inspect([str(tmp_path / "bad.mp4"), str(video)], WITHOUT_CLIP)]
    assert kinds == ["not_video", None]


@pytest.mark.slow
def test_a_machine_that_fails_stops_the_run_and_rejects_no_source(video: Path, monkeypatch: pytest.MonkeyPatch):
    too_little = Limits(memory_bytes=64 << 20)
    with pytest.raises(RunStopped, match=r"could not start: .*limits.memory_bytes"):
        list(inspect([str(video)], WITHOUT_CLIP.model_copy(update={"scan": ScanConfig(limits=too_little)})))
    monkeypatch.setattr(importlib.import_module("pipelines.parts"), "scan", faults.fill_disk)
    with pytest.raises(RunStopped, match="temporary folder"):
        list(inspect([str(video)], WITHOUT_CLIP))


def test_the_signals_behind_a_cut_are_written_per_frame(tmp_path: Path):
    source = {"frame_changes": [0, 2, 2, 40, 2, 2], "frame_brightness": [10, 10, 10, 90, 90, 90]}
    source |= {"frame_times_s": [0.0, 1 / 24, 1 / 12, 0.125, 1 / 6, 5 / 24]}
    cut = {"kind": "hard", "start_frame": 3, "end_frame": 3}
    refused = {"kind": "dissolve", "start_frame": 4, "end_frame": 6, "reason": "31% of the frame changed"}
    seen = Inspection(uri="v.mp4", source=source, transitions=[cut], refused_cuts=[refused])
    with signals_file(str(tmp_path / "stats.csv")) as write_signals:
        for _ in range(2):
            write_signals(seen)
    lines = (tmp_path / "stats.csv").read_text().splitlines()
    assert lines[0] == "uri,frame,time_s,change,change_ratio,brightness,transition,refused"
    assert lines[4] == "v.mp4,3,0.125,40,20.0,90,hard,"
    assert lines[3] == "v.mp4,2,0.083333,2,0.182,10,,"
    assert [line.endswith(",31% of the frame changed") for line in lines[1:7]] == [False] * 4 + [True] * 2
    assert len(lines) == 13
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"), signals_file("/nowhere/x.csv"):
        pass
