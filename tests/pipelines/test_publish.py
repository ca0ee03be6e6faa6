"""Publications: read by the readers they are for, without a trace of this machine, and whole after any interruption."""

import csv
import getpass
import json
import os
import socket
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill import PublishConfig, curate, fetch, publish, select, shard
from clipmill.errors import UserError
from clipmill.shard_folder import published_folders
from curation.publish.layouts import Target
from curation.selection.rules import Rules
from pipelines.publish import PublishRun
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP
from tests.trainers import diffusion_pipe, finetrainers, musubi
from tests.trainers.clips import TrainedClip, fitted
from tests.trainers.clips import decoded as stored_frames
from tests.trainers.packages import installed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

BUCKET = ("width_px", "height_px", "frames")
SECRETS = ("SECRETTOKEN", "hf_" + "a" * 24)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    """Remuxed and transcoded clips of 24 and 30 frames/s, one of them with wide pixels, one in another codec; and one
    at little more than 16 frames/s, which fills a bucket of 33 frames, but not at 16 frames/s."""
    folder = tmp_path_factory.mktemp("home") / "alice" / "videos"
    folder.mkdir(parents=True)
    kinds: dict[str, dict[str, Any]] = {
        "a": {"fps": 24},
        "b": {"fps": 30},
        "wide": {"fps": 24, "sample_aspect_ratio": Fraction(4, 3)},
        "mpeg4": {"fps": 24, "codec": "mpeg4"},
        "faster": {"fps": Fraction(1602, 100)},
    }
    for i, (name, options) in enumerate(kinds.items()):
        frames = panning(height=90, pixels_per_frame=1 + i, frames=33 if name == "faster" else 66, seed=i)
        write_video(folder / f"{name}.mp4", frames, **options)
    license_of = {"a": "CC0", "b": "CC0", "wide": "CC-BY-4.0"}
    for name, license_name in license_of.items():
        sidecar = {
            "license": license_name,
            "author": "Zoë | <b>",
            "page": f"https://example.org/{name}?token={SECRETS[0]}",
            "saved_as": f"{folder}/{name}.mp4",
            "key": SECRETS[1],
            "captions": [{"text": f"a texture, {name}"}, {"source": "human", "text": f"moving, {name}"}],
        }
        (folder / f"{name}.json").write_text(json.dumps(sidecar))
    out = str(folder.parent / "dataset")
    curate([str(folder)], out, config=WITHOUT_CLIP, quiet=True)
    where = f"uri NOT LIKE '{folder}/none%' AND duration_s > 1"
    select(out, Rules(name="best", rules={"motion": {"min": 0.1}}, where=where))
    return out


_runs: dict[Target, tuple[Path, PublishRun]] = {}


@pytest.fixture(params=["hf", "files", "finetrainers", "diffusion-pipe", "musubi"])
def published(request: pytest.FixtureRequest, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _published(request.param, dataset, tmp_path_factory)


def _published(to: Target, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Path, PublishRun]:
    if to not in _runs:
        out = tmp_path_factory.mktemp(to) / "best"
        config = PublishConfig(lengths=(9, 17, 33), resolution_px=128, captions=("human", "sidecar"))
        _runs[to] = out, publish(dataset, "best", str(out), to=to, config=config, quiet=True)
    return to, *_runs[to]


def videos(out: Path) -> dict[str, bytes]:
    """Clip id -> its MP4, wherever it lies."""
    found = {path.stem: path.read_bytes() for path in out.glob("data/**/*.mp4")}
    for path in out.glob("data/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name.removesuffix(".mp4")] = file.read()
    return found


def decoded(path: Path) -> tuple[int, int, int, float]:
    """Frames, width, height, rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.average_rate is not None
        return len(frames), frames[0].width, frames[0].height, float(stream.average_rate)


def test_every_selected_clip_is_there_with_its_description(published: Any) -> None:
    to, out, run = published
    found = videos(out)
    assert len(found) == run.clips == run.written == 5
    assert run.left_out == {}
    assert run.without_caption == 2
    table = pq.read_table(out / ("data/clips.parquet" if to == "hf" else "clips.parquet")).to_pylist()
    assert {row["clip_id"] for row in table} == found.keys()
    assert sorted(row["caption"] for row in table) == ["", "", "moving, a", "moving, b", "moving, wide"]
    if to != "hf":
        assert all((out / row["file"]).is_file() for row in table)
        texts = {path.stem: path.read_text() for path in out.glob("data/**/*.txt")}
        assert texts == {row["clip_id"]: row["caption"] for row in table}
    with (out / "sources.csv").open(newline="") as file:
        sources = list(csv.DictReader(file))
    assert {(row["path"], row["license"]) for row in sources} == {
        ("a.mp4", "CC0"),
        ("b.mp4", "CC0"),
        ("wide.mp4", "CC-BY-4.0"),
        ("mpeg4.mp4", ""),
        ("faster.mp4", ""),
    }


def test_the_dataset_knows_the_folder(published: Any, dataset: str) -> None:
    _, out, _ = published
    assert str(out) in published_folders(dataset)


def test_the_card_says_what_it_is(published: Any) -> None:
    to, out, _ = published
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["license"] == "other"
    assert values["size_categories"] == ["n<1K"]
    for part in ("5 clips", "from 5 sources", "| CC0 | 2 |", "| not stated | 2 |", "motion", "min: 0.1", "hf upload"):
        assert part in body, part
    assert "![Frames of the clips](contact-sheet.jpg)" in body
    assert (out / "contact-sheet.jpg").read_bytes().startswith(b"\xff\xd8")
    if to == "musubi":
        assert "16 frames/s" in body


def test_nothing_tells_of_the_machine(published: Any, dataset: str) -> None:
    _, out, _ = published
    home = os.path.expanduser("~") + "/"
    names = [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]  # shorter ones are syllables
    secrets = [*SECRETS, "alice", str(Path(dataset).parent), "/tmp/", home, *names]
    texts: dict[str, str] = {}
    for path in out.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts[path.name] = f"{table.to_pylist()} {table.schema.metadata} {pq.read_metadata(path).metadata}"
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    if not member.name.endswith(".mp4"):
                        file = tar.extractfile(member)
                        assert file is not None
                        texts[f"{path.name}/{member.name}"] = f"{member.get_info()} {file.read().decode()}"
        elif path.is_file() and path.suffix not in (".mp4", ".jpg"):
            texts[str(path.relative_to(out))] = path.read_text()
    assert len(texts) > 5
    found = [(name, secret) for name, text in texts.items() for secret in secrets if secret in text]
    assert not found


def test_a_rerun_writes_what_is_missing_and_nothing_else(
    dataset: str, published: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    to, out, _ = published
    config = PublishConfig(lengths=(9, 17, 33), resolution_px=128, captions=("human", "sidecar"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = publish(dataset, "best", str(out), to=to, config=config, quiet=True)
    assert again.written == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    lost = sorted(out.glob("data/**/*.tar" if to == "hf" else "data/**/*.mp4"))[0]
    lost.write_bytes(b"half")
    (lost.parent / ".half.mp4.tmp").write_bytes(b"")
    (out / "README.md").unlink()
    assert publish(dataset, "best", str(out), to=to, config=config, quiet=True).written > 0
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.endswith(".tmp")}
    assert after == before
    with pytest.raises(UserError, match="captions"):
        publish(dataset, "best", str(out), to=to, config=config.replace(captions=()), quiet=True)
    _runs.pop(to, None)


def test_clips_in_shards_are_copied_without_their_sources(dataset: str, tmp_path: Path) -> None:
    shards, videos_folder = Path(shard(dataset, "best", quiet=True).folder), Path(dataset).parent / "videos"
    aside = videos_folder.rename(tmp_path / "aside")
    try:
        run = publish(dataset, "best", str(tmp_path / "out"), quiet=True)
        other = publish(dataset, "best", str(tmp_path / "files"), to="files", quiet=True)
    finally:
        aside.rename(videos_folder)
    assert (run.written, run.left_out) == (5, {})
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "data").glob("*.tar")}
    assert written == {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    assert sum(other.left_out.values()) == 2, "clips with wide pixels and in another codec are transcoded"
    of_shards = videos(tmp_path / "out")
    assert all(of_shards[name] == content for name, content in videos(tmp_path / "files").items())


@pytest.mark.parametrize("to", ["hf", "musubi"])
def test_a_publication_in_a_bucket_is_that_of_the_disk(
    dataset: str, to: Target, s3_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, here, _ = _published(to, dataset, tmp_path_factory)
    config = PublishConfig(lengths=(9, 17, 33), resolution_px=128, captions=("human", "sidecar"))
    for written in (5, 0):
        assert publish(dataset, "best", f"{s3_url}/out", to=to, config=config, quiet=True).written == written
    fs, folder = fsspec.url_to_fs(f"{s3_url}/out")
    fs.invalidate_cache()
    there = {path.removeprefix(f"{folder}/"): fs.cat_file(path) for path in fs.find(folder)}
    assert there == {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()}


def test_a_foreign_folder_is_left_alone(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains other files \('thesis.txt'\)"):
        publish(dataset, "best", str(tmp_path), to="files", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match=r"source of captions 'coca'.*sidecar"):
        publish(dataset, "best", str(tmp_path / "new"), config=PublishConfig(captions=("coca",)), quiet=True)
    with pytest.raises(UserError, match="every clip is too short"):
        publish(dataset, "best", str(tmp_path / "new"), to="musubi", config=PublishConfig(lengths=(999,)), quiet=True)
    assert not (tmp_path / "new").exists()


def test_the_hub_layout_is_read_by_datasets_and_by_fetch(
    dataset: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    datasets = pytest.importorskip("datasets")
    _, out, _ = _published("hf", dataset, tmp_path_factory)
    for streaming in (False, True):
        loaded = datasets.load_dataset(str(out), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
        assert set(loaded.features) == {"json", "mp4", "txt", "__key__", "__url__"}
        rows = list(loaded.cast_column("mp4", datasets.Video(decode=False)))
        assert {row["__key__"]: row["mp4"]["bytes"] for row in rows} == videos(out)
    card = datasets.load_dataset_builder(str(out), cache_dir=str(tmp_path / "cache2")).info.features
    bare = datasets.load_dataset(
        "webdataset", data_files=str(out / "data/*.tar"), split="train", cache_dir=str(tmp_path / "cache3")
    )
    assert card == bare.features
    run = fetch(str(out / "data"), str(tmp_path / "some"), where="license = 'CC0'", quiet=True)
    assert run.fetched == 2


def test_the_croissant_is_valid_and_reads_the_clips(published: Any) -> None:
    mlc = pytest.importorskip("mlcroissant")
    _, out, run = published
    loaded = mlc.Dataset(jsonld=str(out / "croissant.json"))
    assert not loaded.metadata.ctx.issues.errors
    rows = list(loaded.records("clips"))
    assert len(rows) == run.clips
    assert {row["clips/clip_id"].decode() for row in rows} == videos(out).keys()


def test_files_are_a_video_folder(dataset: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets = pytest.importorskip("datasets")
    _, out, _ = _published("files", dataset, tmp_path_factory)
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    rows = list(loaded.cast_column("video", datasets.Video(decode=False)))
    texts = {Path(row["video"]["path"]).stem: row["text"] for row in rows}
    assert texts == {path.stem: path.read_text() for path in out.glob("data/*.txt")}


def test_files_need_no_metadata_to_be_read(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wide pixels became square, MPEG-4 became H.264; a clip that is plain already keeps its packets."""
    _, out, _ = _published("files", dataset, tmp_path_factory)
    rows = {Path(row["path"]).stem: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
    for name, row in rows.items():
        with av.open(str(out / row["file"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p"), name
            assert stream.sample_aspect_ratio in (None, 0, 1), name
            assert (stream.width, stream.height) == (row["width"] // 2 * 2, row["height"] // 2 * 2), name
    assert rows["wide"]["width"] > 200


def test_finetrainers_own_code_reads_every_clip(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    packages = installed(*finetrainers.REQUIREMENTS)
    _, out, _ = _published("finetrainers", dataset, tmp_path_factory)
    read = finetrainers.samples(packages, "../training.json", working_directory=out / "data")
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    assert sorted(each["caption"] for each in read) == sorted(row["caption"] for row in rows)
    assert sorted(each["frames"] for each in read) == sorted(decoded(out / row["file"])[0] for row in rows)
    (config,) = json.loads((out / "training.json").read_text())["datasets"]
    buckets = {(frames, 3, height, width) for frames, height, width in config["video_resolution_buckets"]}
    assert {tuple(each["shape"]) for each in read} == buckets


def test_finetrainers_own_code_reads_the_hub_layout(
    dataset: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packages = installed(*finetrainers.REQUIREMENTS)
    _, out, _ = _published("hf", dataset, tmp_path_factory)
    settings = {"data_root": str(out), "dataset_type": "video", "video_resolution_buckets": [[9, 64, 96]]}
    (tmp_path / "training.json").write_text(json.dumps({"datasets": [settings]}))
    read = finetrainers.samples(packages, "training.json", working_directory=tmp_path)
    rows = pq.read_table(out / "data" / "clips.parquet").to_pylist()
    assert sorted(each["caption"] for each in read) == sorted(row["caption"] for row in rows)
    assert sorted(each["frames"] for each in read) == sorted(row["frames"] for row in rows)


def trained_paths(clips: Sequence[TrainedClip], out: Path) -> list[str]:
    """The captions and frames are those of the files, in time; returns the paths of the clips below `out`."""
    for clip in clips:
        assert clip.caption == clip.path.with_suffix(".txt").read_text()
        frames, _ = stored_frames(clip.path)
        shown = fitted(frames[: len(clip.frames_THWC)], clip.frames_THWC.shape[2:0:-1])
        assert np.array_equal(clip.frames_THWC, shown), f"{clip.path} is trained at another speed"
    return sorted(str(clip.path.relative_to(out)) for clip in clips)


def test_diffusion_pipe_trains_every_clip_at_its_speed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, out, _ = _published("diffusion-pipe", dataset, tmp_path_factory)
    clips = diffusion_pipe.clips(out / "dataset.toml", framerate=16, working_directory=out)
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    assert trained_paths(clips, out) == sorted(row["file"] for row in rows)
    sizes = {clip.path.stem: (*clip.frames_THWC.shape[2:0:-1], len(clip.frames_THWC)) for clip in clips}
    assert sizes == {row["clip_id"]: tuple(row["bucket"][key] for key in BUCKET) for row in rows}


def test_musubi_trains_every_clip(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, out, _ = _published("musubi", dataset, tmp_path_factory)
    clips = musubi.clips(out / "dataset.toml", working_directory=out)
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    assert trained_paths(clips, out) == sorted(row["file"] for row in rows)
    lengths = {clip.path.stem: len(clip.frames_THWC) for clip in clips}
    assert lengths == {row["clip_id"]: row["bucket"]["frames"] for row in rows}


def test_a_clip_lasts_as_long_at_another_rate(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, out, _ = _published("musubi", dataset, tmp_path_factory)
    for row in pq.read_table(out / "clips.parquet").to_pylist():
        frames, *_ = decoded(out / row["file"])
        assert frames == row["file_frames"] == pytest.approx(row["duration_s"] * 16, abs=1)
