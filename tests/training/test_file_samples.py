"""Samples that lie as files: folders of videos and captions, lists of paths and captions, the Hub's layouts."""

import json
import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from tests.training.shards import numbered, video
from tests.training.test_foreign_shards import CONFIG, batches, captions_of, write_tar
from training.data import loader
from training.shard_index import find_shards, index_shards


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video(24)


def write(path: Path, content: bytes | str | list[Any]) -> Path:
    """A file; of a list, JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def broken_of(data: Path) -> dict[str, str]:
    return {name.partition("/")[2]: reason for name, reason in index_shards(data).broken}


def test_a_folder_of_videos_and_texts_trains(tmp_path: Path, clip: bytes) -> None:
    names = ["plain", "with space", "ünïcode 雪", "two.dots", "sub/deeper/x", "100%"]
    for name in names:
        write(tmp_path / f"{name}.mp4", clip)
        write(tmp_path / f"{name}.txt", f"caption of {name}")
    write(tmp_path / "b.webm", clip)
    write(tmp_path / "b.json", '{"caption": "of json", "motion_bucket": 9}')
    for ignored in (".hidden.mp4", ".hidden/a.mp4", "notes.pdf", "alone.txt"):
        write(tmp_path / ignored, clip)
    name = tmp_path.name
    expected = {f"{name}-000000/{key}": f"caption of {key}" for key in names}
    expected[f"{name}-000000/two%2Edots"] = expected.pop(f"{name}-000000/two.dots")
    expected[f"{name}-000000/100%25"] = expected.pop(f"{name}-000000/100%")
    assert captions_of(tmp_path) == expected | {f"{name}-000000/b": "of json"}
    (shard,) = index_shards(tmp_path).shards
    assert json.loads(shard.read([shard.keys[i] for i in range(7)].index("b"))["json"])["conditioning"] == {
        "motion_bucket": 9
    }


def test_of_a_json_only_what_training_reads_is_indexed(tmp_path: Path, clip: bytes) -> None:
    write(tmp_path / "a.mp4", clip)
    metadata = {"title": "A", "subtitles": "x" * 100_000, "shape": {"crop": [0, 0, 0, 0]}, "elevation": 5}
    write(tmp_path / "a.json", json.dumps(metadata))
    (shard,) = index_shards(tmp_path).shards
    assert json.loads(shard.read(0)["json"]) == {
        "captions": [{"source": "title", "text": "A"}],
        "conditioning": {"elevation": 5},
        "shape": {"crop": [0, 0, 0, 0]},
    }


def test_what_is_odd_in_a_folder_breaks_its_sample_alone(
    tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder, secret = tmp_path / "videos", write(tmp_path / "secret.txt", "secret")
    for name in ("good", "a", "b", "c", "d"):
        write(folder / f"{name}.mp4", clip)
    write(folder / "good.mkv", clip)
    (folder / "link.mp4").symlink_to(folder / "good.mp4")
    (folder / "a.txt").symlink_to(secret)
    write(folder / "b.json", "{")
    write(folder / "c.txt", b"\xff\xfe\x00")
    (folder / "d.txt").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(clip)
    reasons = broken_of(folder)
    assert set(reasons) == {"a", "b", "c", "d", "pipe", "dangling", "device", r"\xff"}
    for key, reason in (
        ("a", "its txt is a link to a file outside"),
        ("pipe", "device or a pipe"),
        ("dangling", "No such file"),
        ("device", "device"),
        (r"\xff", "name is not UTF-8"),
    ):
        assert reason in reasons[key]
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        taken = captions_of(folder, CONFIG.replace(max_broken_share=1.0))
    assert taken == {"videos-000000/good": "", "videos-000000/link": ""}
    assert "1 of 2 samples have several videos or pictures: the first one is used" in caplog.messages


@pytest.mark.parametrize(
    "name", ["list.jsonl", "list.csv", "list.tsv", "videos/metadata.jsonl", "videos/metadata.csv", "train/metadata.csv"]
)
def test_a_list_of_paths_and_captions_trains(tmp_path: Path, clip: bytes, name: str) -> None:
    folder = "train" if name.startswith("train/") else "videos"
    prefix = "" if name.endswith(("metadata.jsonl", "metadata.csv")) else "videos/"
    rows = [(f"{prefix}{stem}.mp4", f"caption, of {stem}") for stem in ("a", "b c", "ü", "d.e")]
    for stem in ("a", "b c", "ü", "d.e"):
        write(tmp_path / folder / f"{stem}.mp4", clip)
    if name.endswith(".jsonl"):
        content = "".join(
            json.dumps({"file_name": path, "text": text}, ensure_ascii=False) + "\n" for path, text in rows
        )
    else:
        separator = "\t" if name.endswith(".tsv") else ","
        content = f"\ufeffFile Name{separator}text\n" + "".join(f'"{path}"{separator}"{text}"\n' for path, text in rows)
    file = write(tmp_path / name, content)
    data = {"videos": file.parent, "train": tmp_path}[folder] if prefix == "" else file
    captions = captions_of(data)
    assert sorted(captions.values()) == sorted(text for _, text in rows)
    assert f"{file.stem}-000000/{prefix}d%2Ee" in captions


def test_what_is_odd_in_a_list_is_counted_and_said(
    tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    outside = write(tmp_path / "elsewhere" / "x.mp4", clip)
    folder = tmp_path / "list"
    write(folder / "a.mp4", clip)
    (folder / "linked.mp4").symlink_to(outside)
    rows: list[Any] = [
        {"path": "a.mp4", "caption": "one", "motion_bucket": 3},
        {"path": "./a.mp4", "caption": "two"},
        {"path": str(outside), "caption": "absolute"},
        {"path": "linked.mp4", "caption": "linked"},
        {"path": "../elsewhere/x.mp4", "caption": "above"},
        {"path": "gone.mp4"},
        {"path": "/etc/passwd"},
        {"path": "/dev/zero.mp4"},
        {"path": "https://example.com/x.mp4"},
        {"path": "a\0.mp4"},
        {"path": "\udcff.mp4"},
        {"path": 5},
        {"caption": "no path"},
        "{",
        "[1]",
    ]
    file = write(folder / "list.jsonl", rows)
    index = index_shards(file)
    assert len(index.broken) == 10
    reasons = dict(index.broken)
    for key, reason in (("gone", "No such file"), ("etc/passwd", "has no video or image extension"),
                        ("line 9", "address https:"), ("line 14", "invalid JSON"), ("line 15", "expected an object"),
                        ("line 12", "no path"), ("line 11", "not UTF-8")):  # fmt: skip
        assert reason in reasons[f"list-000000/{key}"]
    config = CONFIG.replace(max_broken_share=1.0, captions={"caption": 1.0}, batch_size=1)
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        taken = batches(file, 24, config)
    by_key: dict[str, set[str]] = {}
    for batch in taken:
        by_key.setdefault(batch.keys[0].partition("/")[2], set()).update(batch.captions)
    assert by_key.pop("a") == {"one", "two"}
    assert sorted(min(captions) for captions in by_key.values()) == ["above", "absolute", "linked"]
    assert {batch.motion_bucket.item() for batch in taken if batch.keys == ["list-000000/a"]} == {3}
    assert "1 of 4 samples are listed more than once: their captions are combined" in caplog.messages
    assert "3 of 4 samples are files outside the folder of their list" in caplog.messages


def test_a_list_without_paths_names_its_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "list.csv", "clip,caption\n1,one\n")
    with pytest.raises(ValueError, match=r"no usable row: expected a path .*got the columns 'clip', 'caption'"):
        index_shards(file)


def test_a_broken_video_is_skipped_within_the_limit(tmp_path: Path, clip: bytes) -> None:
    for i in range(30):
        write(tmp_path / f"{i}.mp4", clip if i else b"no video")
    keys = {key for batch in batches(tmp_path, 29) for key in batch.keys}
    assert len(keys) == 29
    for i in range(10):
        write(tmp_path / f"{i}.mp4", b"no video")
    with pytest.raises(ValueError, match=r"samples are unreadable .*max_broken_share"):
        batches(tmp_path, 29)


def test_a_file_that_changes_or_goes_breaks_its_sample(tmp_path: Path, clip: bytes) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.mp4", clip)
    data = loader(tmp_path, CONFIG.replace(max_broken_share=1.0))
    (tmp_path / "a.mp4").unlink()
    write(tmp_path / "b.mp4", clip + b"x")
    assert {key[-1] for batch in islice(iter(data), 3) for key in batch.keys} == {"c"}


def test_training_on_files_resumes_with_the_same_batches(tmp_path: Path, clip: bytes) -> None:
    rows = [{"path": f"{i}.mp4", "caption": f"caption {i}"} for i in range(7)]
    for row in rows:
        write(tmp_path / row["path"], clip)
    file = write(tmp_path / "list.jsonl", rows)
    config = CONFIG.replace(fps=(6.0, 12.0), crop="random")
    whole = batches(file, 9, config)
    interrupted = loader(file, config)
    list(islice(iter(interrupted), 4))
    write(file, rows[::-1])  # the order of rows does not matter
    again = loader(file, config)
    assert again.contents() == interrupted.contents()
    again.load_state_dict(interrupted.state_dict())
    for got, expected in zip(islice(iter(again), 5), whole[4:], strict=True):
        assert (got.keys, got.captions) == (expected.keys, expected.captions)
        assert torch.equal(got.frames_BTCHW, expected.frames_BTCHW)  # type: ignore[arg-type]


def test_pictures_with_texts_train(tmp_path: Path) -> None:
    for i, suffix in enumerate(("jpg", "png", "webp")):
        write(tmp_path / f"{i}.{suffix}", cv2.imencode(f".{suffix}", numbered(3))[1].tobytes())
        write(tmp_path / f"{i}.txt", f"picture {i}")
    (batch,) = batches(tmp_path, 1, CONFIG.replace(frames=1, batch_size=3))
    assert batch.image_only
    assert sorted(batch.captions) == ["picture 0", "picture 1", "picture 2"]
    assert batch.motion_bucket.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("tars", "taken"),
    [
        (["data/train-00000-of-00002.tar", "data/train-00001-of-00002.tar", "data/test-00000-of-00001.tar"], 2),
        (["train/0.tar", "train/1.tar", "test/0.tar"], 2),
        (["data/train/0.tar", "data/validation/0.tar"], 1),
        (["clips-000.tar", "clips-001.tar"], 2),
        (["train-0.tar", "val-0.tar", "extra-0.tar"], 2),
        (["test-0.tar"], 1),
    ],
)
def test_the_training_split_of_the_hubs_layouts_is_read(
    tmp_path: Path, clip: bytes, tars: list[str], taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    for tar in tars:
        write_tar(tmp_path / tar, [("a.mp4", clip)])
    with caplog.at_level(logging.WARNING, "clipmill.data"):
        found = find_shards(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found] == [
        tar for tar in sorted(tars) if "train" in tar or taken == len(tars) or "extra" in tar
    ]
    others = any(word in path for word in ("test-00000", "val-") for path in tars)
    assert any("split" in message for message in caplog.messages) == others
