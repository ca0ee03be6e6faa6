"""`clipmill cluster`: a score with versions, reruns after footage was added, and rules on it."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipmill import UserError
from curation.dataset.commits import read_commits
from curation.dataset.joined import joined_query
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.score_counts import version_counts
from curation.dataset.tables import Dataset
from curation.dedup.clusters import ClusterConfig
from curation.selection.rules import Rules
from pipelines import cli
from pipelines.clustering import cluster
from pipelines.costs import read_costs
from pipelines.fence import owned
from pipelines.select import select
from tests.curation.dedup.test_clusters import blobs

ROWS_ND, LABEL_N = blobs([60, 40, 20, 10])
CONFIG = ClusterConfig(clusters=12)
FAILED = {"embedding": None, "embedding_error": "no thumbnails", "embedding_error_kind": "failed"}


def add_part(dataset: Dataset, part: str, numbers: range) -> None:
    """Clips with these embeddings, and one that has none."""
    clips = [
        {"clip_id": f"{i:016x}-0-40", "source_id": f"{i:016x}", "uri": f"/v/{i}.mp4", "duration_s": 4.0}
        | ({"embedding": ROWS_ND[i].tolist()} if i in numbers else FAILED)
        for i in [*numbers, 1000 + numbers.start]
    ]
    sources = [{"source_id": clip["source_id"], "status": "ok"} for clip in clips]
    dataset.write_part("clips", part, pa.Table.from_pylist(clips, schema=CLIPS))
    dataset.write_part("sources", part, pa.Table.from_pylist(sources, schema=SOURCES))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    add_part(dataset, "p0", range(50))
    add_part(dataset, "p1", range(50, 110))
    return dataset


def column(dataset: Dataset, name: str) -> dict[str, Any]:
    with dataset.connect() as connection:
        rows = connection.execute(joined_query(connection, ["clip_id", name])).fetchall()
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_clip_has_its_cluster_size_and_distance(dataset: Dataset):
    result = cluster(dataset.url, CONFIG, quiet=True)
    assert (result.version, result.trained) == (1, True)
    assert 4 <= result.clusters <= 12
    assert (result.clips, result.without_embedding) == (110, 2)
    (costs,) = read_costs(dataset)
    assert costs.costs()["cluster"].cpu_s > 0
    found, sizes, distance = (column(dataset, name) for name in ("cluster", "cluster_size", "cluster_distance"))
    scored = {clip_id: value for clip_id, value in found.items() if value is not None}
    assert len(scored) == 110
    counts = Counter(scored.values())
    assert (max(counts.values()), min(counts.values())) == (result.largest, result.smallest)
    assert all(sizes[clip_id] == counts[value] for clip_id, value in scored.items())
    assert all(0 <= distance[clip_id] < 0.2 for clip_id in scored)
    assert len({(LABEL_N[int(clip_id[:16], 16)], value) for clip_id, value in scored.items()}) == result.clusters
    errors = column(dataset, "cluster_error")
    assert {clip_id for clip_id, error in errors.items() if error == "no thumbnails"} == found.keys() - scored.keys()
    assert [(each.cluster, each.clips) for each in result.examples] == sorted(
        counts.items(), key=lambda each: (-each[1], each[0])
    )[:10]
    for each in result.examples:
        assert distance[each.clip_id] == min(distance[i] for i, value in scored.items() if value == each.cluster)


def test_new_clips_come_into_the_same_clusters(dataset: Dataset):
    first = cluster(dataset.url, CONFIG, quiet=True)
    before = column(dataset, "cluster")
    add_part(dataset, "p2", range(110, 130))
    with pytest.raises(UserError, match="20 clips were added after the last clustering: run `clipmill cluster"):
        select(dataset.url, Rules.from_values({"name": "x", "balance": {"by": "cluster", "clips": 9}}, origin="x"))
    second = cluster(dataset.url, CONFIG, quiet=True)
    assert (first.version, second.version, second.trained, second.clips) == (1, 1, False, 130)
    after = column(dataset, "cluster")
    assert {clip_id: after[clip_id] for clip_id in before} == before
    pure = {(LABEL_N[int(i[:16], 16)], value) for i, value in after.items() if value is not None}
    assert len(pure) == len({value for _, value in pure}), "a new clip came into a cluster of another direction"
    sizes, counts = column(dataset, "cluster_size"), Counter(value for value in after.values() if value is not None)
    assert all(sizes[clip_id] == counts[value] for clip_id, value in after.items() if value is not None)
    with dataset.connect() as connection:
        (count,) = version_counts(connection)
    assert (count.scorer, count.version, count.counted, count.clips, count.failed) == ("cluster", 1, True, 133, 3)


def test_other_settings_and_retraining_make_versions_side_by_side(dataset: Dataset):
    cluster(dataset.url, CONFIG, quiet=True)
    before = column(dataset, "cluster")
    assert cluster(dataset.url, CONFIG.replace(clusters=2), quiet=True).version == 2
    assert column(dataset, "cluster@1") == before
    assert set(column(dataset, "cluster").values()) == {0, 1, None}
    add_part(dataset, "p2", range(110, 130))
    again = cluster(dataset.url, CONFIG, retrain=True, quiet=True)
    assert (again.version, again.trained) == (3, True)
    assert cluster(dataset.url, CONFIG, quiet=True).version == 3  # the newest with these settings
    recorded = dataset.recorded_versions("scores/cluster")
    assert [version.made_with.settings["trained_on_clips"] for version in recorded] == [110, 110, 130]
    rules = {"name": "old", "balance": {"by": "cluster@1", "clips": 8, "unscored": "keep"}}
    selection = select(dataset.url, Rules.from_values(rules, origin="test"))
    assert selection.versions == {"cluster@1": 1}
    assert selection.clips == 8 + 2 + 21  # the clips that version 1 does not know are kept


def test_a_run_that_was_killed_before_its_rows_is_done_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.clustering._write", killed)
        with pytest.raises(KeyboardInterrupt):
            cluster(dataset.url, CONFIG, quiet=True)
    with dataset.connect() as connection:
        assert version_counts(connection) == ()
    result = cluster(dataset.url, CONFIG, quiet=True)
    assert (result.version, result.trained) == (1, False)  # with the centroids that were written


def test_damaged_centroids_are_named(dataset: Dataset):
    cluster(dataset.url, CONFIG, quiet=True)
    file = Path(dataset.path) / "scores" / "cluster" / "v1" / "centroids.npy"
    whole = file.read_bytes()
    for content in (b"", b"not numpy", whole[:-8]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"centroids.npy is damaged: .* --retrain"):
            cluster(dataset.url, CONFIG, quiet=True)
    assert cluster(dataset.url, CONFIG, retrain=True, quiet=True).version == 2


def test_one_run_at_a_time(dataset: Dataset):
    with owned(dataset.url), pytest.raises(UserError, match="in use by another run"):
        cluster(dataset.url, CONFIG, quiet=True)


def test_a_dataset_without_embeddings_says_what_to_do(tmp_path: Path):
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    with owned(dataset.url) as live:
        with pytest.raises(UserError, match="Curate with CLIP into a new folder"):
            cluster(dataset.url, take_over=True, quiet=True)
        live.check()
    assert dataset.versioned() == []


def test_a_rerun_without_new_clips_writes_nothing(dataset: Dataset):
    cluster(dataset.url, CONFIG, quiet=True)
    marks, commits = dataset.part_versions("scores/cluster/v1"), read_commits(dataset)
    cluster(dataset.url, CONFIG, quiet=True)
    assert (dataset.part_versions("scores/cluster/v1"), read_commits(dataset)) == (marks, commits)
    add_part(dataset, "p2", range(110, 130))
    cluster(dataset.url, CONFIG, quiet=True)
    assert set(dataset.part_versions("scores/cluster/v1")) == {"p0", "p1", "p2"}
    assert len(read_commits(dataset)) == len(commits) + 1


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clipmill", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_from_the_command_line(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "cluster", dataset.url, "--clusters", "4", "--seed", "2") == 0
    assert "version 1, trained" in capsys.readouterr().out
    rules = "max_per: {source: 5}\nbalance: {by: cluster, power: 0.5, clips: 30}\n"
    (tmp_path / "rules.yaml").write_text(rules)
    assert run(monkeypatch, "select", dataset.url, "--config", str(tmp_path / "rules.yaml")) == 0
    assert "30 clips, by cluster to the power 0.5" in " ".join(capsys.readouterr().out.split())
    assert run(monkeypatch, "status", dataset.url) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "selection rules 30 2 min 00 s; at most 5 per source_id, random order, seed 0; 30 clips, by cluster" in printed
    )
    assert "cluster version 1 112" in printed
