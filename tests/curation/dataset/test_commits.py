"""Each change of a dataset is one commit, whenever the run that makes it is killed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill import storage
from clipmill.errors import RunStopped, UserError
from curation.dataset.commits import Change, current_version, latest_commit, read_commits, recorded
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.select import select_clips
from tests.curation.dataset.kills import Killed, kill_at_write
from tests.curation.selection.datasets import rules

CURATE, SCORE = Change(command="curate", what="videos"), Change(command="score", what="luma, version 1")


def add_source(dataset: Dataset, name: str, clips: int = 2) -> None:
    """Commit a part with one source."""
    rows = [
        {"clip_id": f"{name}-{i}-{i + 1}", "source_id": name, "uri": f"/{name}", "duration_s": 1.0}
        for i in range(clips)
    ]
    dataset.write_part("clips", name, pa.Table.from_pylist(rows, CLIPS))
    sources = [{"source_id": name, "uri": f"/{name}", "status": "ok", "clips": clips}]
    dataset.write_part("sources", name, pa.Table.from_pylist(sources, SOURCES))


def add_score(dataset: Dataset, value: float = 1.0) -> None:
    dataset.write_part("scores/luma", "a", pa.table({"clip_id": ["a-0-1"], "luma": [value]}))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "dataset")).create_or_open({})


def history(dataset: Dataset) -> list[tuple[int, str, bool, dict[str, int]]]:
    return [(c.version, c.command, c.interrupted, c.changes) for c in read_commits(dataset)]


def test_commits_are_numbered_and_count_the_rows_of_tables(dataset: Dataset) -> None:
    with recorded(dataset, CURATE):
        add_source(dataset, "a")
        add_source(dataset, "b", clips=3)
    with recorded(dataset, SCORE):
        add_score(dataset)
    assert history(dataset) == [
        (1, "curate", False, {"clips": 5, "sources": 2}),
        (2, "score", False, {"scores/luma": 1}),
    ]
    latest = latest_commit(dataset)
    assert latest is not None
    assert latest.rows == {"clips": 5, "scores/luma": 1, "sources": 2}
    assert (latest.what, latest.reason) == ("luma, version 1", None)
    assert latest.started <= latest.finished
    assert current_version(dataset).version == 2
    assert not current_version(dataset).changing


def test_a_run_with_nothing_to_do_makes_no_commit(dataset: Dataset) -> None:
    with recorded(dataset, CURATE):
        pass
    assert read_commits(dataset) == []
    with recorded(dataset, CURATE):
        add_source(dataset, "a")
    with recorded(dataset, CURATE):
        dataset.remove_unfinished()
    assert [commit.version for commit in read_commits(dataset)] == [1]
    assert storage.list_files(dataset.fs, dataset.file("commits")) == [dataset.file("commits", "000001.json")]


def test_rows_are_counted_again_where_another_program_wrote_between_versions(dataset: Dataset) -> None:
    with recorded(dataset, SCORE):
        add_score(dataset)
    dataset.write_part("scores/luma", "theirs", pa.table({"clip_id": ["b", "c"], "luma": [0.0, 0.0]}))
    with recorded(dataset, CURATE):
        add_source(dataset, "a")
    assert read_commits(dataset)[1].rows == {"clips": 2, "scores/luma": 3, "sources": 1}
    with recorded(dataset, CURATE):
        add_source(dataset, "b", clips=3)
    assert read_commits(dataset)[2].rows == {"clips": 5, "scores/luma": 3, "sources": 2}


def test_rows_that_are_replaced_are_a_change(dataset: Dataset) -> None:
    with recorded(dataset, SCORE):
        add_score(dataset, 1.0)
    size = Path(dataset.file("scores/luma/a.parquet")).stat().st_size
    with recorded(dataset, SCORE):
        add_score(dataset, 2.0)
    assert Path(dataset.file("scores/luma/a.parquet")).stat().st_size == size
    assert history(dataset)[1] == (2, "score", False, {"scores/luma": 0})


def test_uncommitted_parts_are_no_change(dataset: Dataset) -> None:
    with recorded(dataset, CURATE):
        dataset.write_part("clips", "left", CLIPS.empty_table())
    assert read_commits(dataset) == []


def test_a_failed_run_that_changed_nothing_leaves_no_trace(dataset: Dataset) -> None:
    def fail() -> None:
        with recorded(dataset, CURATE):
            raise UserError("no weights")

    with pytest.raises(UserError, match="no weights"):
        fail()
    assert storage.list_files(dataset.fs, dataset.file("commits")) == []


def killed_while(dataset: Dataset, change: Change, work: Callable[[], None]) -> None:
    """A run that dies after `work`, before its commit."""

    def run() -> None:
        with recorded(dataset, change):
            work()
            raise Killed

    with pytest.raises(Killed):
        run()


def test_the_rerun_of_a_killed_run_makes_one_commit_for_both(dataset: Dataset) -> None:
    killed_while(dataset, CURATE, lambda: add_source(dataset, "a"))
    assert current_version(dataset).changing
    with recorded(dataset, CURATE):
        add_source(dataset, "b")
    assert history(dataset) == [(1, "curate", False, {"clips": 4, "sources": 2})]
    assert not current_version(dataset).changing


def test_another_command_first_records_what_a_killed_run_changed(dataset: Dataset) -> None:
    killed_while(dataset, CURATE, lambda: add_source(dataset, "a"))
    with recorded(dataset, SCORE):
        add_score(dataset)
    assert history(dataset) == [
        (1, "curate", True, {"clips": 2, "sources": 1}),
        (2, "score", False, {"scores/luma": 1}),
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_kill_at_any_write_leaves_one_commit_after_the_rerun(
    dataset: Dataset, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        with recorded(dataset, CURATE):
            for name in ("a", "b"):
                if name not in dataset.parts("clips"):
                    add_source(dataset, name)

    with monkeypatch.context() as patch:
        tried = kill_at_write(patch, number)
        try:
            run()
        except Killed:
            assert number < 7
        else:
            assert (tried(), number) in {(7, 7), (7, 8)}, "noted, four parts, the commit, the note removed"
    assert len(read_commits(dataset)) == (number >= 6)
    run()
    run()
    assert history(dataset) == [(1, "curate", False, {"clips": 4, "sources": 2})]
    assert len(storage.list_files(dataset.fs, dataset.file("commits"))) == 1


def test_a_copy_of_a_dataset_has_the_same_version(dataset: Dataset, tmp_path: Path) -> None:
    with recorded(dataset, CURATE):
        add_source(dataset, "a")
    copy = Dataset(str(shutil.copytree(dataset.path, tmp_path / "copy", copy_function=shutil.copyfile)))
    with recorded(copy, CURATE):
        pass
    assert read_commits(copy) == read_commits(dataset)


def test_of_two_runs_that_record_the_same_version_one_stops(dataset: Dataset) -> None:
    path = dataset.file("commits", "000001.json")

    def check() -> None:  # passes, and right after it the other run commits
        if dataset.parts("sources"):
            storage.write_bytes(dataset.fs, path, b"{}")

    def run() -> None:
        with recorded(dataset, CURATE, check):
            add_source(dataset, "a")

    with pytest.raises(RunStopped, match="another run recorded version 1"):
        run()
    assert storage.read_bytes(dataset.fs, path) == b"{}"


def test_a_version_is_written_once(dataset: Dataset, s3_url: str) -> None:
    for place in (dataset, Dataset(f"{s3_url}/dataset")):
        path = place.file("commits", "000001.json")
        storage.create_bytes(place.fs, path, b"first")
        with pytest.raises(FileExistsError):
            storage.create_bytes(place.fs, path, b"second")
        assert storage.read_bytes(place.fs, path) == b"first"
        assert storage.list_files(place.fs, place.file("commits")) == [path]


def test_a_run_that_lost_the_dataset_does_not_commit(dataset: Dataset) -> None:
    def check() -> None:
        if dataset.parts("sources"):
            raise RunStopped("another run owns it")

    def run() -> None:
        with recorded(dataset, CURATE, check):
            add_source(dataset, "a")

    with pytest.raises(RunStopped):
        run()
    assert read_commits(dataset) == []
    assert current_version(dataset).changing


def test_in_an_object_store(s3_url: str) -> None:
    dataset = Dataset(f"{s3_url}/dataset").create_or_open({})
    for name in ("a", "b"):
        with recorded(dataset, CURATE):
            add_source(dataset, name)
        with recorded(dataset, CURATE):
            pass
    assert history(dataset) == [
        (1, "curate", False, {"clips": 2, "sources": 1}),
        (2, "curate", False, {"clips": 2, "sources": 1}),
    ]


def test_a_selection_names_the_version_it_was_made_from(dataset: Dataset) -> None:
    with recorded(dataset, CURATE):
        add_source(dataset, "a")
    first = select_clips(dataset, rules(duration_s={"min": 0}))
    assert (first.dataset_version, first.dataset_changing) == (1, False)
    with recorded(dataset, SCORE):
        add_score(dataset)
        during = select_clips(dataset, rules(duration_s={"min": 0}), replace=True)
        assert (during.dataset_version, during.dataset_changing) == (1, True)
    assert select_clips(dataset, rules(duration_s={"min": 0}), replace=True).dataset_version == 2


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", json.dumps({"version": "x"}), "[" * 100_000],
    ids=["half", "list", "empty", "type", "deep"],
)
def test_a_damaged_commit_is_one_sentence(dataset: Dataset, content: str) -> None:
    Path(dataset.file("commits")).mkdir()
    Path(dataset.file("commits", "000001.json")).write_text(content)
    with pytest.raises(UserError, match=r"000001\.json is damaged"):
        read_commits(dataset)


def test_a_missing_commit_is_noticed(dataset: Dataset) -> None:
    for name in ("a", "b", "c"):
        with recorded(dataset, CURATE):
            add_source(dataset, name)
    Path(dataset.file("commits", "000002.json")).unlink()
    with pytest.raises(UserError, match="expected commits 1 to 3, got 2"):
        read_commits(dataset)
