"""Clips that are in shards already are copied: the same bytes as by extraction, and no source is read."""

from pathlib import Path
from typing import Any

import pytest

from clipmill.resume import deciding
from clipmill.shard_folder import remove_index, write_index
from curation.shards import existing
from curation.shards.catalog import catalog
from curation.shards.existing import with_existing
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shards.folder import index_of, start_shards
from curation.shards.places import write_catalog
from curation.shards.write import ShardConfig, plan_shards, write_shard
from tests.curation.shards import test_write

CONFIG = ShardConfig(clips_per_shard=4)
rows = test_write.clips
"""A fixture: remuxed and transcoded clips."""


@pytest.fixture
def shards(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """Two shards of six remuxed and transcoded clips, as `clipmill shard` leaves them."""
    folder, plans = tmp_path / "shards", plan_shards(rows, kind="clips", config=CONFIG)
    settings: dict[str, Any] = deciding(CONFIG.model_dump(mode="json"))
    start_shards(str(folder), plans, selection="s", settings=settings)
    records = {plan.name: write_shard(plan, str(folder), selection="s", config=CONFIG) for plan in plans}
    write_catalog(str(folder), catalog(plans, records))
    write_index(str(folder), index_of(plans, records.values(), selection="s", settings=settings))
    existing._shard.cache_clear()
    return folder


def write_again(out: Path, rows: list[dict[str, Any]], shards: Path, config: ShardConfig = CONFIG) -> list[str]:
    """The ids of the clips that were extracted."""
    extracted: list[str] = []

    def run(function: Any, uri: str, together: list[dict[str, Any]], *args: Any) -> Any:
        assert function is extract_clips
        extracted.extend(clip["clip_id"] for clip in together)
        return function(uri, together, *args)

    for plan in with_existing(plan_shards(rows, kind="clips", config=config), str(shards), config.extraction):
        write_shard(plan, str(out), selection="s", config=config, run=run)
    return sorted(extracted)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_copies_are_what_extraction_gives(tmp_path: Path, shards: Path, rows: list[dict[str, Any]]) -> None:
    captions = [{"source": "human", "text": "another caption", "error_kind": None, "error": None}]
    again = [clip | {"captions": captions} for clip in rows]
    for name, clips, config in (
        ("same", rows, CONFIG),
        ("other captions, other division", again, ShardConfig(clips_per_shard=2, seed=1)),
    ):
        assert write_again(tmp_path / name, clips, shards, config) == []
        for plan in plan_shards(clips, kind="clips", config=config):
            write_shard(plan, str(tmp_path / f"{name}, extracted"), selection="s", config=config)
        assert tars(tmp_path / name) == tars(tmp_path / f"{name}, extracted")
    assert tars(tmp_path / "same") == tars(shards)


@pytest.mark.parametrize(
    "change", [{"crop_left": 8}, {"frames": 12}, {"extraction": "transcode"}, {"start_pts": 1}, {"fps": 23.976}]
)
def test_a_clip_with_another_row_is_extracted(
    tmp_path: Path,
    shards: Path,
    rows: list[dict[str, Any]],
    change: dict[str, Any],
) -> None:
    first = next(clip for clip in rows if clip["extraction"] == "remux")
    changed = [clip | change if clip is first else clip for clip in rows]
    assert write_again(tmp_path / "out", changed, shards) == [first["clip_id"]]


def test_a_clip_whose_tar_is_gone_or_replaced_is_extracted(
    tmp_path: Path,
    shards: Path,
    rows: list[dict[str, Any]],
) -> None:
    gone, replaced = sorted(shards.glob("*.tar"))
    gone.unlink()
    replaced.write_bytes(replaced.read_bytes() + bytes(512))
    assert write_again(tmp_path / "out", rows, shards) == sorted(clip["clip_id"] for clip in rows)


def test_other_bytes_at_a_place_are_not_taken(tmp_path: Path, shards: Path, rows: list[dict[str, Any]]) -> None:
    """As of a tar that was written again with other clips, and the same size."""
    for path in shards.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b'"clip_id": "', b'"clip_id": "x')[: path.stat().st_size])
    assert len(write_again(tmp_path / "out", rows, shards)) == len(rows)


def test_shards_of_another_version_are_not_taken(
    tmp_path: Path,
    shards: Path,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(existing, "version", lambda _: "0.0.0")
    assert len(write_again(tmp_path / "out", rows, shards)) == len(rows)


def test_shards_with_other_settings_or_without_end_are_not_taken(shards: Path, rows: list[dict[str, Any]]) -> None:
    plans = plan_shards(rows, kind="clips", config=CONFIG)

    def found(folder: Path, config: ExtractionConfig) -> int:
        return sum(len(plan.existing.places) for plan in with_existing(plans, str(folder), config) if plan.existing)

    assert found(shards, ExtractionConfig()) == len(rows)
    assert found(shards, ExtractionConfig(audio="keep")) == 0
    assert found(shards / "nothing", ExtractionConfig()) == 0
    remove_index(str(shards))
    assert found(shards, ExtractionConfig()) == 0
