"""Curate, select and shard through Ray, on disk and on an object store, with good and bad inputs."""

import errno
import importlib
import json
import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import ray
import webdataset

from clipmill import CurateConfig, curate, select, shard, status
from clipmill.errors import RunStopped, UserError
from clipmill.pipeline import loaded
from curation.captioners.endpoint import VideoConfig
from curation.dataset.tables import Dataset
from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.selection.rules import Rules
from curation.shots.spans import SpanConfig
from curation.video.decode import Limits
from pipelines.cluster import stopped_by_errors
from pipelines.config import CaptionersConfig
from pipelines.fence import Fence, owned
from pipelines.graph import _answer
from pipelines.parts import Part, scan_stage, write_part, write_stage
from pipelines.scoring import clip_stages
from tests.media import write_video
from tests.pipelines.corpora import WITHOUT_CLIP, content, good_and_bad, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

MOVING = Rules(name="moving", rules={"motion": {"min": 0.5}})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | None]]:
    folder = tmp_path_factory.mktemp("mixed")
    return folder, good_and_bad(folder)


@pytest.fixture(scope="module")
def dataset(mixed, tmp_path_factory: pytest.TempPathFactory, local_ray) -> str:
    out = str(tmp_path_factory.mktemp("out") / "dataset")
    listed = tmp_path_factory.mktemp("list") / "list.txt"
    listed.write_text(f"{mixed[0] / 'gone.mp4'}\n")
    curate([str(mixed[0]), str(listed)], out, config=WITHOUT_CLIP, quiet=True)
    return out


def test_every_input_is_one_row_with_its_reason(mixed, dataset: str):
    with Dataset(dataset).connect() as connection:
        rows = connection.execute("SELECT uri, status, error_kind, error, clips FROM sources").fetchall()
        clips = connection.execute("SELECT source_id, count(*) FROM clips GROUP BY 1").fetchall()
    kinds = {Path(uri).name: kind for uri, _, kind, _, _ in rows}
    assert kinds == mixed[1] | {"gone.mp4": "missing"}
    for _, state, kind, error, count in rows:
        assert (state, bool(error), count > 0) == (("ok", False, True) if kind is None else ("rejected", True, False))
    assert sum(count for _, count in clips) == sum(count for *_, count in rows)


def test_every_clip_has_every_score_or_a_reason(dataset: str):
    with Dataset(dataset).connect() as connection:
        for score in ("motion", "text_area"):
            query = f"SELECT count(*) FROM clips WHERE ({score} IS NULL) = ({score}_error IS NULL)"
            assert connection.execute(query).fetchone() == (0,)
        previews = Dataset(dataset).parts("previews")
        assert previews == Dataset(dataset).parts("sources")


def test_a_rerun_does_nothing_and_a_new_input_is_added(mixed, dataset: str):
    before = content(dataset)
    again = curate([str(mixed[0])], dataset, config=WITHOUT_CLIP, quiet=True)
    assert again.sources_done_now == 0
    assert content(dataset) == before


def test_another_configuration_is_refused_with_the_difference(mixed, dataset: str):
    config = WITHOUT_CLIP.model_copy(update={"scan": ScanConfig(spans=SpanConfig(min_s=3.0))})
    with pytest.raises(UserError, match=r"spans\.min_s: was 2\.0, now 3\.0"):
        curate([str(mixed[0])], dataset, config=config, quiet=True)


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable input.*1 empty"):
        curate([str(tmp_path / "a.mp4")], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable input.*skipped: 1 \.txt"):
        curate([str(tmp_path / "nothing")], str(tmp_path / "out2"), config=WITHOUT_CLIP, quiet=True)


def test_an_input_that_does_not_exist_is_an_error_before_anything_is_written(mixed, tmp_path: Path):
    with pytest.raises(UserError, match=r"vidoes does not exist"):
        curate([str(mixed[0]), str(tmp_path / "vidoes")], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    assert not (tmp_path / "out").exists()


def test_limit_takes_the_first_inputs(tmp_path: Path):
    folder = many_small(tmp_path / "in", 3)
    result = curate([str(folder)], str(tmp_path / "out"), limit=2, config=WITHOUT_CLIP, quiet=True)
    assert result.status.sources == 2
    result = curate([str(folder)], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    assert (result.sources_done_before, result.sources_done_now) == (2, 1)


def limited(**limits: float) -> CurateConfig:
    return WITHOUT_CLIP.model_copy(update={"scan": ScanConfig(limits=Limits(**limits))})


def test_a_source_that_takes_too_long_or_too_much_memory_costs_one_row(tmp_path: Path):
    folder = many_small(tmp_path / "in", 2)
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="2 timeout"):
        curate([str(folder)], out, config=limited(timeout_s=0.01), quiet=True)
    giant = np.zeros((4096, 8192, 3), np.uint8)
    path = write_video(tmp_path / "giant.mp4", [giant] * 3, options={"preset": "ultrafast"})
    with pytest.raises(UserError, match="1 out_of_memory"):
        curate(
            [str(path)],
            str(tmp_path / "out2"),
            config=limited(memory_bytes=300 << 20),
            quiet=True,
        )


def test_shards_hold_the_selected_clips_and_read_with_plain_webdataset(dataset: str):
    selection = select(dataset, MOVING)
    assert 0 < selection.clips <= selection.total_clips
    run = shard(dataset, "moving", quiet=True)
    assert run.index["failed"] == []
    assert run.index["totals"]["samples"] == selection.clips
    tars = sorted(str(path) for path in Path(run.folder).glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == selection.clips
    assert all({"mp4", "txt", "json"} <= sample.keys() for sample in samples)
    assert shard(dataset, "moving", quiet=True).written == 0
    images = shard(dataset, "moving", images=True, quiet=True)
    assert images.index["totals"]["samples"] == selection.clips
    assert {name: index["kind"] for name, index in status(Dataset(dataset)).shards.items()} == {
        "moving": "clips",
        "moving-images": "images",
    }


def test_shards_in_the_hands_of_another_run_are_left_alone(dataset: str):
    select(dataset, MOVING, name="fenced")
    run = shard(dataset, "fenced", quiet=True)
    stage = importlib.import_module("pipelines.shard")
    with owned(run.folder) as fence:
        assert shard(dataset, "fenced", quiet=True).written == 0
        fence.check()
        next(Path(run.folder).glob("*.tar")).unlink()
        half = Path(run.folder) / ".clips-000000.tar.0123456789ab.tmp"
        half.write_bytes(b"half")
        with pytest.raises(UserError, match=r"shards/fenced is in use by another run"):
            shard(dataset, "fenced", quiet=True)
        assert half.exists()
        assert (Path(run.folder) / "index.json").exists()
        assert shard(dataset, "fenced", take_over=True, quiet=True).index == run.index
        plan = stage.plan_shards(stage.selected_rows(Dataset(dataset), "fenced")[0], kind="clips")[0]
        with pytest.raises(RunStopped, match="another run now owns"):
            stage.write_planned(plan, 0, fence, stage.write_shard, stage.ExtractionConfig())
    (Path(run.folder) / "index.json").unlink()  # killed before the last write
    assert (
        shard(dataset, "fenced", quiet=True).index
        == run.index
        == json.loads((Path(run.folder) / "index.json").read_text())
    )


def test_a_broken_shard_is_written_again(dataset: str):
    select(dataset, MOVING, name="mended")
    run = shard(dataset, "mended", quiet=True)
    tar = next(Path(run.folder).glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert shard(dataset, "mended", quiet=True).written == 1
    assert tar.read_bytes() == whole


def test_captions_and_metadata_from_a_list_reach_the_shards(tmp_path: Path):
    many_small(tmp_path / "in", 3)
    rows = ("path,caption,license", "in/0000.mp4,a grey texture drifts,CC0", "in/0001.mp4,,", "in/0002.mp4,,CC-BY")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    (tmp_path / "in" / "0001.json").write_text('{"license": "CC0", "author": "Zoë"}')
    out = str(tmp_path / "out")
    curate([str(tmp_path / "list.csv")], out, config=WITHOUT_CLIP, quiet=True)
    assert select(out, Rules(name="free", where="license = 'CC0'")).clips == 2
    run = shard(out, "free", quiet=True)
    samples = list(webdataset.WebDataset(f"{run.folder}/clips-000000.tar", shardshuffle=False))
    assert sorted(sample["txt"].decode() for sample in samples) == ["", "a grey texture drifts"]
    metadata = [json.loads(sample["json"])["metadata"] for sample in samples]
    by_name = [{entry["name"]: entry["value"] for entry in entries} for entries in metadata]
    assert sorted(by_name, key=len) == [{"license": "CC0"}, {"author": "Zoë", "license": "CC0"}]


def test_everything_on_an_object_store(tmp_path: Path, s3_url: str):
    folder = many_small(tmp_path / "in", 4)
    store = fsspec.filesystem("s3")
    store.put(str(folder), f"{s3_url}/videos", recursive=True)
    out = f"{s3_url}/dataset"
    result = curate([f"{s3_url}/videos"], out, config=WITHOUT_CLIP, quiet=True)
    assert (result.status.sources_ok, result.status.clips) == (4, 4)
    assert curate([f"{s3_url}/videos/*.mp4"], out, config=WITHOUT_CLIP, quiet=True).sources_done_now == 0
    selection = select(out, MOVING)
    assert selection.clips == 4
    run = shard(out, "moving", quiet=True)
    assert run.index["totals"]["samples"] == 4
    index = json.loads(store.cat(f"{out}/shards/moving/index.json"))
    assert index["totals"] == run.index["totals"]
    assert not [path for path in store.find(out) if ".tmp" in path]


def test_a_configuration_file_with_an_unknown_key_names_the_nearest(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("scan: {spans: {min_sec: 3}}\n")
    with pytest.raises(UserError, match=r"min_sec.*Did you mean 'min_s'"):
        CurateConfig.from_file(str(file))
    file.write_text("scan: {spans: {min_s: -1}}\n")
    with pytest.raises(UserError, match=r"spans\.min_s: .*greater than 0"):
        CurateConfig.from_file(str(file))


def scanned(folder: Path) -> list[Scan]:
    """What the last stage gets."""
    return [scan(source) for source in list_sources([str(folder)])]


def test_a_run_that_was_overtaken_commits_nothing(tmp_path: Path):
    scans = scanned(many_small(tmp_path / "in", 1))
    dataset = Dataset(str(tmp_path / "out")).create_or_open({})
    with owned(dataset.url) as old, owned(dataset.url, take_over=True) as new:
        with pytest.raises(RunStopped, match=re.escape(f"another run now owns {dataset.url} (on ")):
            write_part(scans, dataset, old)
        assert dataset.statuses() == {}
        assert write_part(scans, dataset, new) == Part(sources=1, clips=1)
    assert len(dataset.statuses()) == 1


def test_a_full_disk_stops_the_run_with_a_sentence_and_leaves_no_half_file(tmp_path: Path, monkeypatch):
    scans = scanned(many_small(tmp_path / "in", 1))
    dataset = Dataset(str(tmp_path / "out")).create_or_open({})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with owned(dataset.url) as fence, pytest.raises(UserError, match="No space left"):
        write_part(scans, dataset, fence)
    assert not list((tmp_path / "out").rglob("*.parquet")) + list((tmp_path / "out").rglob("*.tmp"))


def test_a_source_whose_rows_no_table_can_hold_is_rejected_and_the_others_are_kept(tmp_path: Path):
    scans = [scan(source) for source in list_sources([str(many_small(tmp_path / "in", 2))])]
    scans[0].clips[0]["frames"] = 2**70
    dataset = Dataset(str(tmp_path / "out")).create_or_open({})
    with owned(dataset.url) as fence:
        assert write_part(scans, dataset, fence) == Part(sources=2, clips=1)
    with dataset.connect() as connection:
        rows = connection.execute("SELECT source_id, status, error_kind, error FROM sources ORDER BY status").fetchall()
    assert [row[:3] for row in rows] == [
        (scans[1].source["source_id"], "ok", None),
        (scans[0].source["source_id"], "rejected", "too_large"),
    ]
    assert "rows cannot be written" in rows[1][3]


def test_a_disk_that_is_full_in_a_child_stops_the_run_with_its_sentence(tmp_path: Path, monkeypatch):
    (source, *_) = list_sources([str(many_small(tmp_path / "in", 1))])

    def full(*_: object) -> None:
        raise RunStopped("cannot write /tmp: the disk is full")

    monkeypatch.setattr("pipelines.parts.scan_safely", full)
    dataset = Dataset(str(tmp_path / "out")).create_or_open({})
    with owned(dataset.url) as fence:
        answer = through(WITHOUT_CLIP, dataset, fence, [pickle.dumps((0, source))], [""])
    assert answer["error"] == ["cannot write /tmp: the disk is full"]


def through(config: CurateConfig, dataset: Dataset, fence: Fence, items: list[bytes], errors: list[str]) -> dict:
    """The answer of the last stage to a batch of sources."""
    answer = {"item": items, "error": errors, "costs": [b""] * len(items)}
    for stages in ([scan_stage(config)], clip_stages(config), [write_stage(dataset, fence, sources=1)]):
        answer = _answer(loaded(stages, "cpu"), answer)
    return answer


def test_of_a_batch_with_one_error_nothing_is_committed_unscored(tmp_path: Path):
    (source, *_) = list_sources([str(many_small(tmp_path / "in", 1))])
    dataset = Dataset(str(tmp_path / "out")).create_or_open({})
    with owned(dataset.url) as fence:
        both = [pickle.dumps((0, source)), b""]
        answer = through(WITHOUT_CLIP, dataset, fence, both, ["", "cannot write /tmp: the disk is full"])
        assert answer["error"] == ["cannot write /tmp: the disk is full"]
        assert not dataset.statuses()
        answer = through(WITHOUT_CLIP, dataset, fence, both[:1], [""])
        assert pickle.loads(*answer["item"]) == Part(sources=1, clips=1)


def test_an_unexpected_error_of_a_task_is_one_line():
    def unexpected(row: dict) -> dict:
        raise ZeroDivisionError("division by zero")

    sentence = re.escape("a task on Ray failed: ZeroDivisionError: division by zero")
    with pytest.raises(RunStopped, match=f"^{sentence}$"), stopped_by_errors():
        ray.data.range(2).map(unexpected).materialize()


def test_a_command_with_nothing_to_do_or_that_cannot_work_leaves_a_run_alone(tmp_path: Path):
    videos, out = many_small(tmp_path / "in", 2), str(tmp_path / "out")
    scans = scanned(videos)
    curate([str(videos)], out, limit=1, config=WITHOUT_CLIP, quiet=True)
    dataset = Dataset(out)
    broken = WITHOUT_CLIP.model_copy(update={"captioners": CaptionersConfig(video=VideoConfig())})
    with owned(out) as fence:
        unfinished = tmp_path / "out" / "clips" / ".a.parquet.123.tmp"
        unfinished.write_bytes(b"half")
        assert curate([str(videos)], out, limit=1, config=WITHOUT_CLIP, quiet=True).sources_done_now == 0
        for config in (WITHOUT_CLIP, broken):
            with pytest.raises(UserError):
                curate([str(videos)], out, config=config, quiet=True)
        with pytest.raises(UserError, match=r"in use by another run .*--take-over"):
            curate([str(videos)], out, config=WITHOUT_CLIP, quiet=True)
        with pytest.raises(UserError):
            curate([str(videos)], out, config=broken, take_over=True, quiet=True)
        assert unfinished.exists()
        fence.check()
        result = curate([str(videos)], out, config=WITHOUT_CLIP, take_over=True, quiet=True)
        assert (result.sources_done_before, result.sources_done_now) == (1, 1)
        assert not unfinished.exists()
        with pytest.raises(RunStopped, match="another run now owns"):
            write_part(scans, dataset, fence)


def test_a_part_whose_clips_are_gone_is_done_again(tmp_path: Path):
    folder, out = many_small(tmp_path / "in", 2), tmp_path / "out"
    curate([str(folder)], str(out), config=WITHOUT_CLIP, quiet=True)
    before = content(str(out))
    next((out / "clips").glob("*.parquet")).unlink()
    assert curate([str(folder)], str(out), config=WITHOUT_CLIP, quiet=True).sources_done_now == 1
    assert content(str(out)) == before


def test_only_rejected_sources_that_are_given_are_tried_again(tmp_path: Path):
    for name in ("first", "second"):
        many_small(tmp_path / name, 1)
        (tmp_path / name / "bad.mp4").write_bytes(b"")
        curate([str(tmp_path / name)], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    result = curate(
        [str(tmp_path / "second")], str(tmp_path / "out"), retry_rejected=True, config=WITHOUT_CLIP, quiet=True
    )
    assert (result.sources_done_now, result.status.sources, result.status.rejected) == (1, 4, {"empty": 2})


def test_a_source_that_could_not_be_read_is_tried_again(tmp_path: Path):
    folder, out = many_small(tmp_path / "in", 1), str(tmp_path / "out")
    (folder / "later.mp4").symlink_to("/proc/self/environ")
    (folder / "not_there.mp4").symlink_to("nowhere")
    for run in range(2):
        result = curate([str(folder)], out, config=WITHOUT_CLIP, quiet=True)
        assert result.sources_done_now == (1 if run else 3)
        assert result.status.rejected == {"unreadable": 1, "missing": 1}


def test_nothing_usable_among_these_inputs_is_an_error_in_an_old_dataset_too(tmp_path: Path):
    curate([str(many_small(tmp_path / "in", 1))], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="no usable input"):
        curate([str(tmp_path / "bad.mp4")], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
