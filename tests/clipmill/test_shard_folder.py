"""plan.json, records and index.json of a shard folder are read back; damage and other versions are rejected."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import UserError
from clipmill.formats import LATENTS, RUN, SHARDS, Format
from clipmill.shard_folder import (
    FailedClip,
    Members,
    ShardRecord,
    add_latent_folder,
    check_shard_format,
    index_of,
    latent_folders,
    parse_record,
    read_index,
    read_plan,
    read_record,
    record_json,
    records_in,
    remove_index,
    write_index,
    write_plan,
    write_record,
)

count = st.integers(0, 2**53)
text = st.text(st.characters(codec="utf-8"), max_size=8)
failures = st.builds(FailedClip, clip_id=text, error_kind=text, error=text)


@st.composite
def byte_ranges(draw: st.DrawFn) -> Members:
    keys = tuple(draw(st.lists(text, max_size=4)))
    ranges = st.lists(st.none() | st.tuples(count, count), min_size=len(keys), max_size=len(keys)).map(tuple)
    return Members(keys=keys, ranges=draw(st.dictionaries(text, ranges, max_size=3)))


records = st.builds(
    ShardRecord,
    name=text,
    samples=count,
    bytes=count,
    sha256=st.none() | text,
    duration_s=st.none() | st.floats(0, 1e9),
    fingerprint=st.none() | text,
    problem=st.none() | text,
    failed=st.lists(failures, max_size=2).map(tuple),
    members=st.none() | byte_ranges(),
)


@given(record=records)
def test_a_record_survives_a_round_trip(record: ShardRecord) -> None:
    assert parse_record(record_json(record)) == record
    assert record_json(record).splitlines() == [record_json(record)]


@given(written=st.lists(records, max_size=3))
def test_an_index_lists_the_shards_and_adds_up(written: list[ShardRecord], tmp_path_factory: Any) -> None:
    folder = str(tmp_path_factory.mktemp("shards"))
    index = index_of(SHARDS.describe({"seed": 0}, kind="clips"), written, totals={"gone": 1}, gone=["x"])
    write_index(folder, index)
    assert read_index(folder, SHARDS) == index
    totals = index["totals"]
    assert totals["bytes"] == sum(record.bytes for record in written)
    assert totals["failed"] == len(index["failed"]) == sum(len(record.failed) for record in written)
    assert (totals["gone"], index["gone"], index["kind"]) == (1, ["x"], "clips")
    listed = records_in(index)
    assert [(r.name, r.samples, r.duration_s, r.members) for r in listed] == [
        (r.name, r.samples, r.duration_s, r.members) for r in written
    ]


def test_an_index_has_a_line_per_shard(tmp_path: Path) -> None:
    members = Members(keys=("a",), ranges={"mp4": ((512, 9),)})
    shards = [ShardRecord(name=f"{i}.tar", samples=1, bytes=1, members=members) for i in range(3)]
    write_index(str(tmp_path), index_of(SHARDS.describe({}), shards))
    lines = (tmp_path / "index.json").read_text().splitlines()
    assert [line for line in lines if ".tar" in line] == [
        f'  {{"name": "{i}.tar", "samples": 1, "bytes": 1, "members": {{"keys": ["a"], "ranges": '
        f'{{"mp4": [[512, 9]]}}}}}}' + ("," if i < 2 else "")
        for i in range(3)
    ]


def test_a_record_stands_beside_its_shard(tmp_path: Path) -> None:
    record = ShardRecord(
        name="a-0.tar", samples=2, bytes=10, failed=(FailedClip(clip_id="x", error_kind="k", error="e"),)
    )
    assert read_record(str(tmp_path), "a-0.tar") is None
    write_record(str(tmp_path), record)
    assert read_record(str(tmp_path), "a-0.tar") == record
    (tmp_path / "a-0.json").write_text("{")
    with pytest.raises(ValueError, match="Invalid JSON"):
        read_record(str(tmp_path), "a-0.tar")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": -1}, "samples: Input should be greater than or equal to 0"),
        ({"bytes": "many"}, "bytes: "),
        ({"duration_s": float("inf")}, "duration_s: Input should be a finite number"),
        ({"failed": [1]}, r"failed\.0: "),
        ({"members": {"keys": ["a", "b"], "ranges": {"mp4": [[0, 1]]}}}, "members: .*one range per key"),
        ({"members": {"keys": ["a"], "ranges": {"mp4": [[0, -1]]}}}, r"members\.ranges\.mp4\.0"),
    ],
)
def test_the_first_invalid_value_of_a_record_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record({"name": "a.tar", "samples": 1, "bytes": 1} | values)


READERS: list[Callable[[str, Format], Any]] = [read_plan, read_index]


@pytest.mark.parametrize("known", [SHARDS, LATENTS, RUN], ids=lambda known: known.kind)
@pytest.mark.parametrize("read", READERS)
def test_other_versions_and_damage_are_rejected(tmp_path: Path, known: Format, read: Callable[..., Any]) -> None:
    folder, name = str(tmp_path), "plan.json" if read is read_plan else "index.json"
    assert read(folder, known) is None
    for version, advice in ((known.version - 1, known.if_older), (known.version + 1, "upgrade clipmill")):
        (tmp_path / name).write_text(json.dumps(known.describe({}) | {"format_version": version}))
        with pytest.raises(UserError, match=re.escape(advice)):
            read(folder, known)
    for content in ("", "{", "[]", "5", "{}", json.dumps(known.describe({}) | {"format_version": "1"})):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            read(folder, known)


def test_a_removed_index_marks_the_folder_as_incomplete(tmp_path: Path) -> None:
    write_index(str(tmp_path), index_of(SHARDS.describe({}), []))
    remove_index(str(tmp_path))
    assert read_index(str(tmp_path), SHARDS) is None
    remove_index(str(tmp_path))


@pytest.mark.parametrize("known", [SHARDS, LATENTS], ids=lambda known: known.kind)
def test_readers_of_tars_reject_folders_of_other_versions_only(tmp_path: Path, known: Format) -> None:
    check_shard_format(str(tmp_path))
    write_plan(str(tmp_path), known.describe({}))
    check_shard_format(str(tmp_path))
    for foreign in ("{", "[]", '{"format_version": 99}', '{"format": "other", "format_version": 99}'):
        (tmp_path / "plan.json").write_text(foreign)
        check_shard_format(str(tmp_path))
    write_plan(str(tmp_path), known.describe({}) | {"format_version": known.version + 1})
    with pytest.raises(UserError, match=f"{known.kind} format {known.version + 1}.*upgrade clipmill"):
        check_shard_format(str(tmp_path))


def test_folders_of_latents_are_noted_once(tmp_path: Path) -> None:
    folders = [str(tmp_path / "latents"), "s3://bucket/latents", "file:///data/latents"]
    assert latent_folders(str(tmp_path)) == []
    for folder in [*folders, *folders]:
        add_latent_folder(str(tmp_path), folder)
    assert latent_folders(str(tmp_path)) == folders


@pytest.mark.parametrize(
    "folder", ["http://127.0.0.1/latents", "sftp://host/latents", "zip://a::http://127.0.0.1/b.zip", "latents", "", 7]
)
def test_a_note_of_latents_names_no_server(tmp_path: Path, folder: Any) -> None:
    """Tars are looked up in these folders: shards from elsewhere must not direct requests to any server."""
    (tmp_path / "latents.json").write_text(json.dumps({"folders": [folder]}))
    with pytest.raises(UserError, match=r"latents\.json is damaged: expected absolute paths or addresses in an object"):
        latent_folders(str(tmp_path))
    if isinstance(folder, str):
        with pytest.raises(UserError, match="expected latents in a local folder or an object store"):
            add_latent_folder(str(tmp_path / "other"), folder)
