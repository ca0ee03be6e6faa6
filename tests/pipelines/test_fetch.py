"""Samples out of shards by byte range: what is chosen, what is written, what is read."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from fsspec.implementations.memory import MemoryFileSystem

from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, SOURCES
from curation.shards.catalog import catalog
from curation.shards.clip_row import ExtractedClip
from curation.shards.places import CATALOG, write_catalog
from curation.shards.write import ShardConfig, plan_shards, write_shard
from pipelines.cli import main
from pipelines.cli_shared import NOTHING_CAME_OUT, PARTIAL
from pipelines.fetch import fetch
from tests.curation.shards.rows import SHAPE, clip_row

CLIPS_THERE = 20


def rows() -> list[dict[str, Any]]:
    """Clips of two sources, with captions, scores and licences."""
    return [
        dict.fromkeys(CLIPS.names)
        | clip_row(f"s{i % 2}", i, motion=float(i))
        | {"clip_id": f"s{i % 2}-{i}-{i + 1}", "duration_s": 2.0}
        | {"captions": [{"source": "list", "text": f"clip {i}", "error_kind": None, "error": None}] if i % 3 else []}
        | {"metadata": [("license", "CC0" if i % 2 else "CC-BY")]}
        for i in range(CLIPS_THERE)
    ]


def content_of(clip_id: str) -> bytes:
    return clip_id.encode() * (100 + len(clip_id) * int(clip_id.split("-")[1]))


def extracted(function: Any, uri: str, clips: Any, kind: str, config: Any) -> list[ExtractedClip]:
    return [ExtractedClip(content=content_of(clip["clip_id"]), suffix="mp4", shape=SHAPE) for clip in clips]


def write_shards(folder: str) -> pa.Table:
    fields = [*CLIPS, SOURCES.field("metadata"), SOURCES.field("captions")]
    clips = pa.Table.from_pylist(rows(), pa.schema(fields)).drop_columns(["embedding"])
    plans = plan_shards(clips, kind="clips", config=ShardConfig(clips_per_shard=6))
    records = {plan.name: write_shard(plan, folder, selection="s", run=extracted) for plan in plans}
    assert len(records) == 4
    table = catalog(plans, records)
    write_catalog(folder, table)
    return table


@pytest.fixture
def shards(tmp_path: Path) -> str:
    write_shards(str(tmp_path / "shards"))
    return str(tmp_path / "shards")


def test_the_catalog_says_where_each_file_of_each_sample_lies(shards: str):
    table = pq.read_table(Path(shards) / CATALOG).to_pylist()
    assert {row["clip_id"] for row in table} == {row["clip_id"] for row in rows()}
    samples = wds.WebDataset([str(path) for path in sorted(Path(shards).glob("*.tar"))], shardshuffle=False)
    for row, sample in zip(table, samples, strict=True):
        assert row["clip_id"] == sample["__key__"]
        tar = (Path(shards) / row["shard"]).read_bytes()
        assert len(tar) == row["shard_bytes"]
        assert tar[row["offset"] : row["offset"] + row["size"]] == sample["mp4"] == content_of(row["clip_id"])
        for file in row["files"]:
            assert tar[file["offset"] : file["offset"] + file["size"]] == sample[file["extension"]]
        assert row["caption"] == sample["txt"].decode()
        assert {"name": "motion", "value": row["motion"]} in json.loads(sample["json"])["scores"]


def test_what_matches_is_written_as_it_is_in_the_shards(shards: str, tmp_path: Path):
    out = tmp_path / "out"
    run = fetch(shards, str(out), where="motion >= 10 AND license = 'CC0'", quiet=True)
    chosen = {row["clip_id"] for row in rows() if row["motion"] >= 10 and dict(row["metadata"])["license"] == "CC0"}
    assert (run.wanted, run.fetched, run.there_before, run.failed) == (len(chosen), len(chosen), 0, {})
    assert {path.stem for path in out.glob("*.mp4")} == chosen
    assert all((out / f"{clip_id}.mp4").read_bytes() == content_of(clip_id) for clip_id in chosen)
    assert all(json.loads((out / f"{clip_id}.json").read_text())["clip_id"] == clip_id for clip_id in chosen)
    assert set(pq.read_table(out / CATALOG)["clip_id"].to_pylist()) == chosen
    again = fetch(shards, str(out), where="motion >= 10 AND license = 'CC0'", quiet=True)
    assert (again.fetched, again.there_before, again.bytes) == (0, len(chosen), 0)


def test_ids_and_a_limit(shards: str, tmp_path: Path):
    assert fetch(shards, str(tmp_path / "a"), clip_ids=["s1-3-4", "unknown"], quiet=True).wanted == 1
    assert (tmp_path / "a" / "s1-3-4.txt").read_text() == ""
    few = [fetch(shards, str(tmp_path / name), limit=5, quiet=True).wanted for name in "bc"]
    assert few == [5, 5]
    assert set(os.listdir(tmp_path / "b")) == set(os.listdir(tmp_path / "c"))


@pytest.mark.parametrize("where", ["caption = ''", "caption != '' AND motion < 3"])
def test_a_caption_is_a_column(shards: str, tmp_path: Path, where: str):
    run = fetch(shards, str(tmp_path / "out"), where=where, quiet=True)
    expected = [i for i in range(CLIPS_THERE) if (i % 3 == 0) == (where == "caption = ''") and (i < 3 or i % 3 == 0)]
    assert run.wanted == len(expected)


def test_only_the_wanted_bytes_are_read_from_a_store(monkeypatch, tmp_path: Path):
    folder = "memory://fetch-test/shards"
    table = write_shards(folder).to_pylist()
    asked: list[tuple[str, int, int]] = []

    cat_file = MemoryFileSystem.cat_file

    def counting(self: Any, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if path.endswith(".tar"):
            asked.append((path, start, end))
        return cat_file(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    run = fetch(folder, str(tmp_path / "out"), where="motion = 7", quiet=True)
    (row,) = (row for row in table if row["motion"] == 7)
    needed = sum(file["size"] for file in row["files"])
    assert needed <= run.bytes <= needed + 4096  # the headers between its files
    assert [end - start for _, start, end in asked] == [run.bytes]
    assert run.bytes < row["shard_bytes"] / 2


def test_a_replaced_or_missing_tar_fails_its_samples_only(shards: str, tmp_path: Path):
    table = pq.read_table(Path(shards) / CATALOG).to_pylist()
    (Path(shards) / "clips-000001.tar").unlink()
    with (Path(shards) / "clips-000002.tar").open("ab") as tar:
        tar.write(bytes(512))
    run = fetch(shards, str(tmp_path / "out"), quiet=True)
    assert set(run.failed) == {
        row["clip_id"] for row in table if row["shard"] in ("clips-000001.tar", "clips-000002.tar")
    }
    assert run.fetched == CLIPS_THERE - len(run.failed)
    assert any("it was replaced or truncated" in reason for reason in run.failed.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"where": "nonsense > 3"}, "nonsense"),
        ({"where": "motion > 1000"}, "no sample of"),
        ({"where": "motion; DROP TABLE x"}, "where"),
        ({"clip_ids": ["x' OR true --"]}, "no sample of"),
    ],
)
def test_a_request_that_matches_nothing_or_is_no_condition(
    shards: str, tmp_path: Path, arguments: dict[str, Any], sentence: str
):
    with pytest.raises(UserError, match=sentence):
        fetch(shards, str(tmp_path / "out"), quiet=True, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_catalog_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match=r"no clips.parquet: expected a folder that `clipmill shard` has finished"):
        fetch(str(tmp_path), str(tmp_path / "out"))


def test_a_hostile_catalog_writes_nothing_outside(shards: str, tmp_path: Path):
    path = Path(shards) / CATALOG
    table = pq.read_table(path)
    names = ["../../outside"] * table.num_rows
    for name in ("clip_id", "key"):
        table = table.set_column(table.column_names.index(name), name, pa.array(names))
    pq.write_table(table, path)
    run = fetch(shards, str(tmp_path / "deep" / "out"), quiet=True)
    assert set(run.failed) == {"../../outside"}
    assert not (tmp_path / "outside.mp4").exists()


def files(**changes: Any) -> Any:
    """A change of all files of a row."""
    return lambda row: [file.update(changes) for file in row["files"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(key=""), "its key '' is not that of a sample"),
        (lambda row: row.update(key=".git", clip_id="x"), "its key '.git' is not"),
        (lambda row: row.update(key="a\x1b[31mb"), r"its key 'a\\x1b\[31mb' is not"),
        (lambda row: row.update(key=None), "its key None is not"),
        (lambda row: row.update(key="same"), "another row has its key same"),
        (lambda row: row.update(shard="../clips-000000.tar"), "is not the name of a tar"),
        (lambda row: row.update(shard=None), "None is not the name of a tar"),
        (lambda row: row["files"][0].update(extension="py"), "expected files of mp4, jpg, txt, json, got one of 'py'"),
        (files(extension="mp4"), "its list of files is damaged"),
        (lambda row: row.update(files=[]), "its list of files is damaged"),
        (lambda row: row.update(files=None), "its list of files is damaged"),
        (lambda row: row.update(files=[None, *row["files"]]), "its list of files is damaged"),
        (files(offset=-1), "cannot be .* bytes at -1"),
        (files(offset=None), "cannot be .* bytes at None"),
        (files(size=2**62), "cannot be 4611686018427387904 bytes"),
        (files(size=-(2**62)), "cannot be -4611686018427387904 bytes"),
    ],
)
def test_a_row_that_shard_does_not_write_fails_alone(shards: str, tmp_path: Path, change: Any, reason: str):
    path, out = Path(shards) / CATALOG, tmp_path / "out"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows[:2]:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    run = fetch(shards, str(out), quiet=True)
    assert run.failed
    assert all(re.search(reason, why) for why in run.failed.values())
    assert run.wanted == run.fetched + len(run.failed) >= CLIPS_THERE - 1
    written = {each.name for each in out.iterdir()} - {CATALOG}
    good = {row["key"] for row in rows[2:]} | ({"same"} if rows[0]["key"] == "same" else set())
    assert written == {f"{key}.{extension}" for key in good for extension in ("json", "mp4", "txt")}


def test_a_column_of_another_type_is_named(shards: str, tmp_path: Path):
    path = Path(shards) / CATALOG
    table = pq.read_table(path)
    for name, kind in (("key", pa.list_(pa.string())), ("files", pa.string()), ("shard_bytes", pa.list_(pa.int64()))):
        cells = pa.nulls(table.num_rows, kind)
        pq.write_table(table.set_column(table.column_names.index(name), name, cells.fill_null([])
                                        if pa.types.is_list(kind) else cells.fill_null("x")), path)  # fmt: skip
        with pytest.raises(UserError, match=rf"clips.parquet is damaged: expected .* in its column {name}, got"):
            fetch(shards, str(tmp_path / "out"), quiet=True)


def test_more_rows_than_fit_are_refused(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.fetch._MAX_ROWS_BYTES", 100)
    with pytest.raises(UserError, match="narrow them with --where or --limit"):
        fetch(shards, str(tmp_path / "out"), quiet=True)


def test_exit_codes(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def code(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["clipmill", "fetch", shards, "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert code("--where", "motion > 1000") == NOTHING_CAME_OUT
    assert code("--where", "motion < 3") == 0
    Path(shards, "clips-000001.tar").unlink()
    Path(shards, "clips-000003.tar").unlink()
    assert code() == PARTIAL
    with pq.ParquetFile(Path(shards) / CATALOG) as file:
        gone = next(row["clip_id"] for row in file.read().to_pylist() if row["shard"] == "clips-000001.tar")
    assert code("--clip", gone) == NOTHING_CAME_OUT
