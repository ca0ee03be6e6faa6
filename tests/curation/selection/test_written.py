"""Selections in the dataset folder: names, files, replacing, dry runs, object stores, full disks."""

import errno
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.saved import funnel_rows, load_selection, selection_names
from tests.curation.selection.datasets import chosen, make, motions, rules, select


def test_what_is_written(ten: Dataset) -> None:
    selection = select(ten, rules(motion={"drop_lowest": "25%"}), name="fast")
    path = ten.file("selections", "fast.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["clip_id", "source_id", "uri"]
    assert table["clip_id"].to_pylist() == sorted(f"s{i % 3}-{i:04d}-0" for i in range(3, 10))
    written = json.loads(Path(ten.file("selections", "fast.json")).read_text())
    assert written["clips"] == 7
    assert written["seconds"] == 28.0
    assert written["rules"] == {"name": "fast", "rules": {"motion": {"drop_lowest": "25%"}}}
    assert written["resolved"] == {"name": "fast", "rules": {"motion": {"min": 2.25}}}
    assert written["funnel"][0]["thresholds"] == {"drop_lowest": 2.25}
    assert load_selection(ten, "fast") == selection
    assert selection_names(ten) == ["fast"]
    with pytest.raises(UserError, match="'fast'"):
        load_selection(ten, "fsat")
    rows = funnel_rows(selection)
    assert [(row["rule"], row["clips_left"], row["seconds_left"]) for row in rows] == [
        ("all clips", 10, 40.0),
        ("motion", 7, 28.0),
    ]


def test_the_same_selection_twice_is_the_same_bytes(ten: Dataset) -> None:
    def files() -> list[bytes]:
        select(ten, rules(motion={"drop_lowest": "25%"}, text_area={"max": 0.05, "unscored": "keep"}))
        return [Path(ten.file("selections", f"test.{suffix}")).read_bytes() for suffix in ("json", "parquet")]

    assert files() == files()


def test_a_full_disk_leaves_the_older_selection(ten: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    older = select(ten, rules(motion={"min": 5}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(UserError, match="No space left"):
            select(ten, rules(motion={"min": 7}))
    assert load_selection(ten, "test") == older
    assert len(chosen(ten)) == older.clips
    assert len(list(Path(ten.file("selections")).iterdir())) == 2


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a.b", "x" * 200])
def test_names_that_are_no_file_names_are_refused(ten: Dataset, name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        rules(motion={"min": 1}).named(name)


@pytest.mark.slow
def test_select_on_an_object_store(s3_url: str) -> None:
    dataset = make(f"{s3_url}/dataset", [{"motion": float(i)} for i in range(10)])
    selection = select(dataset, rules(motion={"drop_lowest": "25%"}))
    assert selection.clips == len(chosen(dataset)) == 7
    assert load_selection(dataset, "test") == selection
    assert sorted(m for m in motions(dataset) if m is not None) == [float(i) for i in range(3, 10)]


def test_a_selection_is_replaced_only_when_asked(ten: Dataset) -> None:
    older = select(ten, rules(motion={"min": 5}))
    assert select(ten, rules(motion={"min": 5}), replace=False) == older
    with pytest.raises(
        UserError, match=r"already exists with other rules .5 clips.: choose another --name, or pass --replace"
    ):
        select(ten, rules(motion={"min": 6}), replace=False)
    (Path(ten.path) / "shards" / "test-images").mkdir(parents=True)
    with pytest.raises(UserError, match="from which shards/test-images were made"):
        select(ten, rules(motion={"min": 6}), replace=False)
    assert load_selection(ten, "test") == older
    assert len(chosen(ten)) == 5
    ten.write_part("clips", "p0", ten.read_part("clips", "p0").slice(0, 2))
    with pytest.raises(UserError, match="already exists with other clips"):
        select(ten, rules(motion={"min": 5}), replace=False)
    assert select(ten, rules(motion={"min": 6})).clips == 2
    assert len(list(Path(ten.file("selections")).iterdir())) == 2


def test_a_dry_run_writes_nothing(ten: Dataset) -> None:
    dry = select(ten, rules(motion={"min": 5}), dry_run=True)
    assert not Path(ten.file("selections")).exists()
    written = select(ten, rules(motion={"min": 5}))
    assert dry == written
    select(ten, rules(motion={"min": 7}), dry_run=True, replace=False)
    assert load_selection(ten, "test") == written
