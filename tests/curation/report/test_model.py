import base64
import gzip
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipmill import storage
from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, score_schema
from curation.report.model import build_report
from curation.report.page import page
from curation.report.payload import Report
from curation.report.pictures import pictures, strip
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from tests.curation.report.datasets import HOSTILE, jpeg, make


def unpacked(report: Report | str) -> tuple[dict[str, Any], bytes]:
    content = gzip.decompress(base64.b64decode(report if isinstance(report, str) else report.data))
    (length,) = struct.unpack("<I", content[:4])
    return json.loads(content[4 : 4 + length]), content[4 + length :]


def numbers(placed: dict[str, Any], rest: bytes) -> np.ndarray:
    dtype = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "i16": "<i2"}[placed["type"]]
    return np.frombuffer(rest, dtype, placed["length"], placed["offset"])


def test_all_columns_come_with_what_their_schemas_say(tmp_path: Path) -> None:
    header, rest = unpacked(build_report(make(tmp_path / "dataset")))
    columns = {column["name"]: column for column in header["columns"]}
    assert columns["motion"]["unit"] == "%/s"
    assert columns["motion"]["better"] == "higher"
    assert columns["sharpness"] == columns["sharpness"] | {
        "table": "mine",
        "meaning": "how sharp <i>it</i> is",
        "unit": "dB",
        "better": "higher",
        "slider": True,
    }
    motion = numbers(columns["motion"]["numbers"], rest)
    assert motion.dtype == np.float32
    assert np.isnan(motion).sum() == sum(i % 11 == 10 or i % 13 == 12 for i in range(60))
    assert header["total_clips"] == header["shown_clips"] == 60
    assert "embedding" not in {name for name, column in columns.items() if column["kind"] != "other"}


def test_captions_are_those_of_each_clip(tmp_path: Path) -> None:
    """The source holds all captions, and each clip names its own."""
    header, rest = unpacked(build_report(make(tmp_path / "dataset")))
    columns = {column["name"]: column for column in header["columns"]}
    codes = numbers(columns["captions"]["codes"], rest)
    captions = [columns["captions"]["values"][code] for code in codes]
    starts = numbers(columns["start_s"]["numbers"], rest)
    assert [[each["text"] for each in own] for own in captions] == [[HOSTILE[int(s) % len(HOSTILE)]] for s in starts]


def test_a_sample_is_spread_over_the_sources_and_brings_quantiles_of_all(tmp_path: Path) -> None:
    report = build_report(make(tmp_path / "dataset"), most_clips=20)
    header, rest = unpacked(report)
    assert (report.clips, report.shown, report.with_pictures) == (60, 20, 20)
    ids = next(column for column in header["columns"] if column["name"] == "clip_id")
    assert {text.partition("-")[0] for text in ids["texts"]} == {f"{i:016x}" for i in range(5)}
    quantiles = numbers(header["quantiles"]["aesthetic"]["quantiles"], rest)
    assert header["quantiles"]["aesthetic"]["scored"] == 60
    assert len(quantiles) == 1001
    assert (np.diff(quantiles) >= 0).all()


def test_transitions_and_signals_come_once_per_source(tmp_path: Path) -> None:
    header, rest = unpacked(build_report(make(tmp_path / "dataset")))
    sources = header["sources"]
    assert sorted(set(numbers(sources["of_clips"], rest).tolist())) == [0, 1, 2, 3, 4]
    (transitions,) = (column for column in sources["columns"] if column["name"] == "transitions")
    assert [len(transitions["values"][code]) for code in numbers(transitions["codes"], rest)] == [1] * 6
    assert sources["uris"][5] == "/videos/only-short-shots.mp4"  # without clips
    assert numbers(sources["signals"]["frame_changes"][0], rest)[24:27].tolist() == [1, 60, 1]


def test_a_source_has_all_of_its_signals_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(tmp_path / "dataset")
    header, rest = unpacked(build_report(dataset))
    frames = len(numbers(header["sources"]["signals"]["frame_changes"][0], rest))
    monkeypatch.setattr("curation.report.sources._MOST_FRAMES", 4 * frames + 1)
    header, _ = unpacked(build_report(dataset))
    for name in ("frame_changes", "frame_brightness"):
        assert [signal is not None for signal in header["sources"]["signals"][name]] == [True] * 2 + [False] * 4


def test_what_came_with_the_videos_is_counted_and_shown_per_clip(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset")
    header, _ = unpacked(build_report(dataset))
    categories = {column["name"]: column for column in header["overview"]["categories"]}
    assert categories["license"]["values"] == [["CC0", 3], ["CC BY 4.0", 2]]
    assert categories["hdr"] == categories["hdr"] | {"boolean": True, "values": [["no", 4], ["yes", 1]]}
    assert categories["hdr"]["meaning"]
    assert categories["bit_depth"]["values"] == [["8 bits", 4], ["10 bits", 1]]
    assert {"uri", "clip_id", "note"}.isdisjoint(categories)
    (license_,) = (column for column in header["columns"] if column["name"] == "license")
    assert sorted(license_["texts"]) == ["CC BY 4.0", "CC0"]
    lost = dict(header["overview"]["lost_s"])
    assert lost["lost_transition_s"] == 25.0
    assert header["overview"]["meanings"]["lost_transition_s"] == "footage dropped for transitions"


def test_labels_and_errors_of_added_scores_are_counted_in_the_version_that_counts(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 20)
    recorded = [
        RecordedVersion(version=i, made_with=ScoreVersion(scorer_version=i), target="", finished=True) for i in (1, 2)
    ]
    dataset.record_versions("scores/camera", recorded)
    ids = [clip_id for part in dataset.parts("clips") for clip_id in dataset.read_part("clips", part)["clip_id"]]
    kind = column("camera_kind", pa.string(), "how the camera moves")
    for version, values in ((1, ["pan"] * 20), (2, ["pan"] * 5 + ["still"] * 12 + [None] * 3)):
        errors = [None if value else "too dark" for value in values]
        schema = score_schema("camera", [kind])
        rows = pa.table({"clip_id": ids, "camera_kind": values, "camera_error": errors})
        dataset.write_part(f"scores/camera/v{version}", "a", filled(rows, schema))
    overview = unpacked(build_report(dataset))[0]["overview"]
    (labels,) = (each for each in overview["categories"] if each["name"] == "camera_kind")
    assert labels == {
        "name": "camera_kind",
        "table": "clips",
        "boolean": False,
        "meaning": "how the camera moves",
        "values": [["still", 12], ["pan", 5]],
    }
    assert overview["errors"] == {"motion": [["<b>flow</b> failed", 1]], "camera": [["too dark", 3]]}
    assert {"duplicate_of", "weights_digest", "version"}.isdisjoint(each["name"] for each in overview["categories"])


def filled(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with nulls for the columns that they lack."""
    columns = [
        rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(len(rows), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


def test_columns_beyond_the_budget_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(tmp_path / "dataset")
    whole, _ = unpacked(build_report(dataset))
    assert whole["left_out"] == []
    numeric = [column for column in whole["columns"] if column["kind"] in ("single", "double")]
    kept = {column["name"]: 60 * (4 if column["kind"] == "single" else 8) for column in numeric}
    of_sources = [column["name"] for column in numeric if column["table"] == "sources"]
    monkeypatch.setattr(
        "curation.report.model._NUMBER_BYTES", sum(size for name, size in kept.items() if name not in of_sources)
    )
    header, _ = unpacked(build_report(dataset))
    assert header["left_out"] == of_sources
    assert len(of_sources) > 3
    assert len(header["columns"]) == len(whole["columns"]) - len(of_sources)


def test_pictures_shrink_where_data_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(tmp_path / "dataset")
    report = build_report(dataset)
    monkeypatch.setattr("curation.report.model.LARGEST_FILE_BYTES", len(report.data) + len(report.pictures) // 2)
    smaller = build_report(dataset)
    assert smaller.data == report.data
    assert 0 < len(smaller.pictures) <= len(report.pictures) // 2 + 4 * 62


def test_shards_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset")
    for name, index in {"broken": "{", "older": '{"format": "clipmill shards", "format_version": 1}'}.items():
        storage.write_bytes(dataset.fs, dataset.file("shards", name, "index.json"), index.encode())
    header, _ = unpacked(build_report(dataset))
    assert [folder["name"] for folder in header["shards"]] == ["broken", "older"]
    assert all("index.json" in folder["problem"] or "format" in folder["problem"] for folder in header["shards"])


def test_a_condition_comes_with_its_outcome_per_clip(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset")
    select_clips(dataset, Rules(name="wide", where="width > 320 AND motion > 1"))
    header, rest = unpacked(build_report(dataset, "wide"))
    outcomes = numbers(header["where"]["outcomes"], rest)
    assert (outcomes == 0).sum() == header["selection"]["clips"]


def test_nothing_of_a_dataset_is_in_the_file_as_text(tmp_path: Path) -> None:
    text = page(build_report(make(tmp_path / "dataset")))
    assert not any(hostile in text for hostile in HOSTILE)
    assert "attacked" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert "default-src 'none'" in policy[1]
    assert "//" not in re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)


def test_a_selection_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="selection"):
        build_report(make(tmp_path / "dataset"), "absent")


def test_pictures_stay_within_their_budget(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset")
    with dataset.connect() as connection:
        ids = [row[0] for row in connection.execute("SELECT clip_id FROM clips ORDER BY 1").fetchall()]
    rich, poor = pictures(dataset, ids), pictures(dataset, ids, budget_bytes=20_000)
    assert len(rich.strips) > len(poor.strips) > 0
    assert len(poor.strips) <= 20_000 * 4 / 3 + 4 * len(ids)
    first = base64.b64decode(rich.strips[rich.offsets[0] : rich.offsets[1]])
    (tmp_path / "strip.webp").write_bytes(first)
    with Image.open(tmp_path / "strip.webp") as image:
        assert image.size == (480, 90)


def test_a_picture_that_is_none_leaves_a_gap(tmp_path: Path) -> None:
    assert strip((jpeg(0), b"not a picture", jpeg(1)), 96, 50) == b""
    assert strip((None, None, None), 96, 50) == b""
    huge = jpeg(0).replace(b"\x00\x5a\x00\xa0", b"\xff\xff\xff\xff")  # 90 x 160 in its header
    assert huge != jpeg(0)
    assert strip((huge, huge, huge), 96, 50) == b""


def test_few_clips_of_many_find_their_pictures(tmp_path: Path) -> None:
    report = build_report(make(tmp_path / "dataset", 600, parts=1), most_clips=2)
    assert (report.shown, report.with_pictures) == (2, 2)


def test_pictures_of_a_dataset_too_large_to_read_are_from_all_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(tmp_path / "dataset", 40, parts=20)
    parts = dataset.parts("previews")
    ids = {part: dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist() for part in parts}
    sizes = [dataset.fs.size(dataset.file("previews", f"{part}.parquet")) for part in parts]
    monkeypatch.setattr("curation.report.pictures.READ_BYTES", sum(sizes) // 2)
    offsets = pictures(dataset, [clip_id for part in parts for clip_id in ids[part]]).offsets
    shown = [part for i, part in enumerate(parts) if offsets[2 * i] < offsets[2 * i + 1]]
    assert 8 <= len(shown) <= 11
    assert shown[0] in parts[:4]
    assert shown[-1] in parts[-4:]


def test_a_table_with_two_rows_for_a_clip_is_refused(tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset")
    with dataset.connect() as connection:
        ids = [row[0] for row in connection.execute("SELECT clip_id FROM clips").fetchall()]
    dataset.write_part("scores/twice", "twice", pa.table({"clip_id": [ids[0], ids[0]], "twice": [1.0, 2.0]}))
    with pytest.raises(UserError, match="at most one row per clip_id"):
        build_report(dataset)
