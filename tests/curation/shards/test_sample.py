"""The JSON of samples: one type for all, whatever a clip lacks, in every reader."""

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from curation.shards.catalog import catalog
from curation.shards.clip_row import ExtractedClip
from curation.shards.places import CATALOG, write_catalog
from curation.shards.sample import sample_json, sample_type
from curation.shards.write import ShardConfig, plan_shards, write_shard
from tests.curation.shards.rows import SHAPE, clip_row

NOTHING: dict[str, Any] = {
    "captions": [],
    "metadata": None,
    "motion": None,
    "motion_bucket": None,
    "aesthetic": None,
    "luma": None,
    "cluster": None,
    "fps": None,
    "distinct_fps": None,
    "frames": 1,
    "fps_id": None,
}
FAILED = NOTHING | {
    "captions": [{"source": "chat", "text": None, "error_kind": "failed", "error": "no answer at /home/alice/x"}]
}
FULL: dict[str, Any] = {
    "captions": [{"source": "list", "text": "ein Ort", "error_kind": None, "error": None}],
    "metadata": [("author", "Zoë"), ("license", "CC0")],
    "motion": 4,
    "motion_bucket": 60,
    "aesthetic": 5.5,
    "luma": 0.25,
    "cluster": "sea",
    "distinct_frames": [0, 2],
}
OTHER = FULL | {"metadata": [("url", "https://example.org/a?token=secret")], "luma": None}


def content(clip_id: str, suffix: str = "mp4") -> ExtractedClip:
    if suffix == "jpg":
        shape = {"codec": "jpeg", "width": 64, "height": 48, "pts": 3, "picture": 0, "pictures": 1}
        return ExtractedClip(content=clip_id.encode(), suffix="jpg", shape=shape)
    shape = SHAPE | ({"psnr_db": 44.5} if clip_id.startswith("s1") else {})
    return ExtractedClip(content=clip_id.encode(), suffix="mp4", shape=shape)


def extract(function: Any, uri: str, clips: list[dict[str, Any]], kind: str, config: Any) -> list[ExtractedClip]:
    return [content(clip["clip_id"], "mp4" if kind == "clips" else "jpg") for clip in clips]


def rows(*values: dict[str, Any]) -> list[dict[str, Any]]:
    return [clip_row(f"s{i % 3}", i) | {"luma": None, "cluster": None} | each for i, each in enumerate(values)]


def shards_with(folder: Path, *values: dict[str, Any], kind: Any = "clips") -> Path:
    """Shards whose samples have these values in this order."""
    plans = plan_shards(_table(rows(*values)), kind=kind, config=ShardConfig(clips_per_shard=8, images_per_shard=8))
    everything = pa.concat_tables([plan.clips for plan in plans])
    order = pa.compute.sort_indices(everything["start_pts"])
    ordered = everything.take(order)
    records = {}
    for i in range(len(plans)):
        part = ordered.slice(8 * i, 8)
        plans[i] = type(plans[i])(name=plans[i].name, kind=kind, clips=part)
        records[plans[i].name] = write_shard(plans[i], str(folder), selection="s", run=extract)
    write_catalog(str(folder), catalog(plans, records))
    return folder


def _table(values: list[dict[str, Any]]) -> pa.Table:
    known = clip_row("s", 0)
    types = {"luma": pa.float32(), "cluster": pa.string()}
    from curation.dataset.schemas import CLIPS, SOURCES

    fields = [
        pa.field(n, types.get(n) or (CLIPS if n in CLIPS.names else SOURCES).field(n).type) for n in (*known, *types)
    ]
    return pa.Table.from_pylist(values, pa.schema(fields))


def samples(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield json.load(file)


@pytest.mark.parametrize("values", [NOTHING, FAILED, FULL, OTHER], ids=["nothing", "failed", "full", "other"])
@pytest.mark.parametrize("suffix", ["mp4", "jpg"])
def test_every_sample_has_the_same_keys_and_types(values: dict[str, Any], suffix: str) -> None:
    (row,) = rows(values)
    row |= {"root": "local", "path": "a.mp4", "metadata": dict(values["metadata"] or [])}
    sample = json.loads(json.dumps(sample_json(row, content("s1", suffix), "s")))
    inferred = pa.array([sample]).type
    assert inferred == sample_type(suffix)
    assert None not in list(leaves(sample))
    assert pa.array([sample], sample_type(suffix)).to_pylist() == [sample]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def test_what_a_clip_lacks_is_no_entry(tmp_path: Path) -> None:
    bare, full = samples(shards_with(tmp_path, NOTHING, FULL))
    assert bare["scores"] == bare["conditioning"] == [{"name": "", "value": 0.0}] or bare["scores"] == [
        {"name": "psnr_db", "value": 44.5}
    ]
    assert bare["metadata"] == bare["labels"] == [{"name": "", "value": ""}]
    assert bare["captions"] == [{"source": "", "text": "", "error_kind": ""}]
    assert bare["shape"]["distinct_frames"] == [0]
    assert bare["shape"]["fps"] == bare["shape"]["distinct_fps"] == 1.0
    scores = {entry["name"]: entry["value"] for entry in full["scores"]}
    assert {name: scores[name] for name in ("motion", "aesthetic", "luma")} == {
        "motion": 4.0,
        "aesthetic": 5.5,
        "luma": 0.25,
    }
    assert {entry["name"]: entry["value"] for entry in full["metadata"]} == {"author": "Zoë", "license": "CC0"}
    assert full["labels"] == [{"name": "cluster", "value": "sea"}]


@pytest.mark.parametrize("kind", ["clips", "images"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values",
    [(*[NOTHING] * 7, FAILED, FULL, OTHER), (FULL, *[FAILED] * 8), (NOTHING, FULL, FAILED, OTHER)],
    ids=["late", "early", "mixed"],
)
def test_datasets_reads_them_whatever_the_first_samples_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[dict[str, Any], ...], streaming: bool, kind: str
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = shards_with(tmp_path / "shards", *values, kind=kind)
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    media, feature = ("mp4", datasets.Video) if kind == "clips" else ("jpg", datasets.Image)
    found = list(loaded.cast_column(media, feature(decode=False)))
    assert [row["json"] for row in found] == list(samples(folder))
    assert [row[media]["bytes"].decode() for row in found] == [row["__key__"] for row in found]
    assert [row["txt"] for row in found] == [row["json"]["captions"][0]["text"] for row in found]


def test_webdataset_tar_and_readers_by_index_open_them(tmp_path: Path) -> None:
    folder = shards_with(tmp_path, NOTHING, FULL, OTHER)
    (path,) = folder.glob("*.tar")
    decoded = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["json"] for sample in decoded] == list(samples(folder))
    listed = subprocess.run(["tar", "tf", str(path)], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [f"{s['__key__']}.{suffix}" for s in decoded for suffix in ("json", "mp4", "txt")]
    index = wids_index(path)
    with path.open("rb") as tar:
        for sample, files in zip(decoded, index, strict=True):
            for extension, (offset, size) in files.items():
                tar.seek(offset)
                assert tar.read(size) == (
                    json.dumps(sample["json"], ensure_ascii=False).encode()
                    if extension == "json"
                    else {"mp4": sample["__key__"], "txt": sample["txt"]}[extension].encode()
                )


def wids_index(path: Path) -> list[dict[str, tuple[int, int]]]:
    """As wids does: the members of a tar by position, grouped by the name before the first dot."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            groups.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return list(groups.values())


def test_duckdb_reads_the_list_of_samples_and_their_json(tmp_path: Path) -> None:
    folder = shards_with(tmp_path, NOTHING, FULL, OTHER)
    query = f"SELECT clip_id, motion, metadata['license'], path FROM '{folder / CATALOG}' ORDER BY start_pts"
    bare, full, other = duckdb.sql(query).fetchall()
    assert (bare[1], bare[2], full[1], full[2]) == (None, None, 4.0, "CC0")
    assert [row[3] for row in (bare, full, other)] == ["s0.mp4", "s1.mp4", "s2.mp4"]
    written = tmp_path / "samples.jsonl"
    written.write_text("".join(json.dumps(sample) + "\n" for sample in samples(folder)))
    types = duckdb.sql(f"DESCRIBE SELECT scores, metadata, provenance.path FROM read_json('{written}')").fetchall()
    assert [row[1] for row in types][:2] == [
        'STRUCT("name" VARCHAR, "value" DOUBLE)[]',
        'STRUCT("name" VARCHAR, "value" VARCHAR)[]',
    ]


def test_nothing_of_the_machine_is_in_the_files(tmp_path: Path) -> None:
    error = {"motion": None, "motion_error": "cannot open /home/alice/models/raft.pth"}
    hidden = OTHER | error | {"cluster": "/home/alice/clusters/sea.npy"}
    folder = shards_with(tmp_path, FAILED | error, hidden)
    texts = [path.read_bytes() for path in folder.iterdir() if path.suffix != ".parquet"]
    texts.append(json.dumps(pq.read_table(folder / CATALOG).to_pylist(), default=str).encode())
    texts.append(str(pq.read_schema(folder / CATALOG).metadata).encode())
    for text in texts:
        assert not [secret for secret in (b"alice", b"secret", b"token=", b"/videos/", b"/home") if secret in text]
    assert b"sea.npy" in b"".join(texts)
    assert io.BytesIO(texts[0]).getbuffer().nbytes > 0
