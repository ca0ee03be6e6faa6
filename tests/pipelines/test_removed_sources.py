"""Removed and replaced sources in `curate`, and the versions that commands leave behind."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill import UserError, curate, remove, score, select, shard, status
from curation.dataset.commits import read_commits
from curation.dataset.removed import removed_sources
from curation.dataset.tables import Dataset
from pipelines.cli import app
from tests.pipelines.corpora import WITHOUT_CLIP, content, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

LUMA = f"{Path(__file__).with_name('scorers.py')}:Luma"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray) -> Path:
    """Videos in `in`, and their dataset."""
    folder = tmp_path_factory.mktemp("removed")
    many_small(folder / "in", 4)
    curate([str(folder / "in")], str(folder / "dataset"), config=WITHOUT_CLIP, quiet=True)
    return folder


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Dataset:
    return Dataset(str(shutil.copytree(made / "dataset", tmp_path / "dataset")))


def again(made: Path, dataset: Dataset, **options: bool) -> tuple[int, int]:
    """Sources that a run over the same folder scans, and those it skips."""
    result = curate([str(made / "in")], dataset.url, config=WITHOUT_CLIP, quiet=True, **options)
    return result.sources_done_now, result.sources_removed


def test_removed_sources_are_scanned_again_only_when_asked(made: Path, dataset: Dataset, tmp_path: Path):
    uris = sorted(dataset.uris().values())
    before = content(dataset.url)
    remove(dataset.url, sources=uris[:2], reason="takedown", quiet=True)
    assert again(made, dataset) == (0, 2)
    assert sorted(dataset.uris().values()) == uris[2:]
    # Another file at the same address is not what was removed, and not what was allowed either.
    moved = Path(shutil.move(uris[0], tmp_path))
    shutil.copy(uris[3], uris[0])
    assert again(made, dataset) == (0, 2)
    shutil.move(moved, uris[0])
    assert again(made, dataset, restore=True) == (2, 0)
    assert content(dataset.url) == before
    assert not removed_sources(dataset).uris
    assert again(made, dataset) == (0, 0)
    assert [(c.version, c.command, c.changes["sources"]) for c in read_commits(dataset)] == [
        (1, "curate", 4),
        (2, "remove", -2),
        (3, "curate", 2),
    ]


def test_when_all_inputs_were_removed_the_run_says_so(made: Path, dataset: Dataset):
    (uri, *_) = sorted(dataset.uris().values())
    remove(dataset.url, sources=uri, reason="takedown", quiet=True)
    with pytest.raises(UserError, match=r"all 1 sources were removed .* --restore"):
        curate([uri], dataset.url, config=WITHOUT_CLIP, quiet=True)


def test_a_replaced_file_supersedes_its_older_version(tmp_path: Path):
    videos = many_small(tmp_path / "in", 3)
    dataset = Dataset(str(tmp_path / "dataset"))
    curate([str(videos)], dataset.url, config=WITHOUT_CLIP, quiet=True)
    score(dataset.url, LUMA, quiet=True)
    select(dataset.url, select_all())
    shard(dataset.url, "all", quiet=True)
    (older,) = (i for i, uri in dataset.uris().items() if uri.endswith("0001.mp4"))
    fresh = many_small(tmp_path / "other", 5)
    shutil.copy(fresh / "0004.mp4", videos / "0001.mp4")
    curate([str(videos)], dataset.url, config=WITHOUT_CLIP, quiet=True)
    assert older not in dataset.uris()
    assert len(dataset.uris()) == 3
    with dataset.connect() as connection:
        for view in ("clips", '"scores_luma@1"'):
            [(left,)] = connection.execute(f"SELECT count(*) FROM {view} WHERE clip_id LIKE '{older}-%'").fetchall()
            assert left == 0
    state = status(dataset)
    gone = state.outdated_selections["all"].gone_clips
    assert state.outdated_shards["all"].gone_clips == gone > 0
    assert sum(state.outdated_shards["all"].gone_tars.values()) == gone
    never = Dataset(str(tmp_path / "never"))
    curate([str(videos)], never.url, config=WITHOUT_CLIP, quiet=True)
    assert content(dataset.url) == content(never.url)


def select_all():
    from curation.selection.rules import Rules

    return Rules(name="all", rules={"duration_s": {"min": 0}})


def test_each_command_leaves_one_version_and_a_rerun_none(made: Path, dataset: Dataset):
    for _ in range(2):
        score(dataset.url, LUMA, quiet=True)
        assert again(made, dataset) == (0, 0)
        selection = select(dataset.url, select_all())
        assert selection.dataset_version == 2
        run = shard(dataset.url, "all", quiet=True)
        assert run.index["dataset_version"] == 2
    assert [(c.version, c.command, c.what) for c in read_commits(dataset)] == [
        (1, "curate", str(made / "in")),
        (2, "score", "luma, version 1"),
    ]
    runner = CliRunner()
    printed = runner.invoke(app, ["log", dataset.url, "--json"])
    assert printed.exit_code == 0
    assert [commit["version"] for commit in json.loads(printed.stdout)] == [2, 1]
    table = runner.invoke(app, ["log", dataset.url]).stdout  # its cells are wrapped
    assert all(part in table for part in ("score luma,", "version 1", "luma@1 +4"))
    removed = runner.invoke(app, ["remove", dataset.url, "--where", "true", "--reason", "all of it", "--dry-run"])
    assert removed.exit_code == 0
    assert "would be removed from" in removed.stdout
    assert len(read_commits(dataset)) == 2
