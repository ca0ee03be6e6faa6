"""Removing sources: all of them goes, nothing else changes, whenever the run is killed."""

import json
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipmill import UserError, status, storage
from clipmill.shard_folder import add_latent_folder, add_published_folder, read_record
from curation.dataset.commits import read_commits
from curation.dataset.removed import removed_sources
from curation.dataset.tables import Dataset
from curation.dataset.totals import source_totals
from curation.dedup.duplicates import find_duplicates, is_current
from curation.report.model import build_report
from curation.selection.difference import difference
from curation.selection.marks import dataset_marks
from curation.selection.rules import Rules
from curation.selection.saved import load_selection, selected_ids
from pipelines import fence
from pipelines.remove import remove
from tests.curation.dataset.kills import Killed, kill_at_write
from tests.pipelines.removable import LICENSES, clip_rows, dataset_of, select, source_id, with_outputs

PARTS = ((0, 1, 2), (3,), (4, 5, 6, 7))
GONE = (1, 3, 4)
REASON = "takedown of 3 May"
HISTORY = {"commits", "run.json", "heartbeat.json"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = with_outputs(dataset_of(str(tmp_path_factory.mktemp("remove") / "dataset"), PARTS))
    return Path(dataset.path)


@pytest.fixture
def dataset(calm: Path, tmp_path: Path) -> Dataset:
    return Dataset(str(shutil.copytree(calm, tmp_path / "dataset")))


def listed(folder: Path, numbers: tuple[int, ...] = GONE) -> str:
    path = folder / "takedown.txt"
    path.write_text("".join(f"/videos/{number}.mp4\n" for number in numbers))
    return str(path)


def rows(dataset: Dataset) -> dict[str, list[tuple[Any, ...]]]:
    """Every view of the dataset, sorted."""
    with dataset.connect() as connection:
        views = [
            row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        ]
        return {
            view: sorted(connection.execute(f'SELECT * FROM "{view}"').fetchall(), key=repr)
            for view in views
            if not view.startswith("_") and not view.endswith("_rows")
        }


def samples(folder: Path) -> dict[str, bytes]:
    """Every file of every sample."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[f"{path.name}/{member.name}"] = file.read()
    return found


def mentions(folder: Path, numbers: tuple[int, ...]) -> list[str]:
    """Files that have the id of a source anywhere in their values.

    Of samples in shards, only what they are: that a copy names the clip it is a copy of stays as it was written.
    """
    ids = [source_id(number) for number in numbers]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).parts[0] not in {*HISTORY, "removed"}:
            if path.suffix == ".tar":
                with tarfile.open(path) as tar:
                    text = str(tar.getnames())
            elif path.suffix == ".parquet":
                text = str(pq.read_table(path, columns=_without_copies(path)).to_pylist())
            else:
                text = path.read_text()
            found += [str(path.relative_to(folder))] * any(i in text for i in ids)
    return found


def _without_copies(path: Path) -> list[str]:
    return [name for name in pq.read_schema(path).names if path.name != "clips.parquet" or name != "duplicate_of"]


def test_nothing_of_the_sources_is_left_and_the_rest_is_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(dataset.path)
    before, before_samples = rows(dataset), samples(folder / "shards/all")
    assert len(mentions(folder, GONE)) > 12
    result = remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    clips = sum(len(clip_rows(number)) for number in GONE)
    assert (result.version, result.sources, result.clips, result.not_in_dataset) == (2, 3, clips, ())
    assert not mentions(folder, GONE), mentions(folder, GONE)

    ids = {source_id(number) for number in GONE}
    after = rows(dataset)
    untouched = before.keys() - {"scores_duplicates", "scores_cluster@1", "scores_cluster@2", "joined"}
    for view in untouched:
        assert after[view] == [
            row for row in before[view] if not any(str(value).split("-")[0] in ids for value in row)
        ], view
    kept = {name: content for name, content in before_samples.items() if name.split("/")[1].split("-")[0] not in ids}
    assert samples(folder / "shards/all") == kept
    assert 0 < len(kept) < len(before_samples)


def test_clusters_count_the_clips_that_are_left(dataset: Dataset, tmp_path: Path) -> None:
    """In every version, also those that do not count."""
    remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    for version in (1, 2):
        with dataset.connect() as connection:
            found = connection.execute(f'SELECT cluster, cluster_size FROM "scores_cluster@{version}"').fetchall()
        counts = Counter(cluster for cluster, _ in found)
        assert len(counts) > 1
        assert {(k, size) for k, size in found} == {(k, n if k is not None else None) for k, n in counts.items()}


def test_the_embedding_of_a_query_goes_with_its_clip(dataset: Dataset, tmp_path: Path) -> None:
    """The selection stays readable: compared with others, and on the report's page."""
    gone, kept = (clip_rows(number)[0]["clip_id"] for number in (1, 2))
    bounds = {"drop_lowest": "40%"}
    select(dataset, "alike", {"motion": {"min": 0}}, like=[{"clip": gone, **bounds}, {"clip": kept, **bounds}])
    first = load_selection(dataset, "alike").resolved["like"]
    assert all(len(like["embedding"]) == 16 for like in first)
    remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    after = load_selection(dataset, "alike")
    assert after.resolved["like"] == [{k: v for k, v in first[0].items() if k != "embedding"}, first[1]]
    everything = Rules.from_values({"name": "x", "where": "true"}, origin="test")
    found = difference(dataset, everything, "alike")
    assert found.both == after.clips
    assert "likeness_2" in {change.rule for change in found.coming}
    assert "likeness" not in {change.rule for change in found.coming}
    assert build_report(dataset, "alike").clips == sum(len(clip_rows(n)) for n in range(8) if n not in GONE)
    with pytest.raises(UserError, match=f"has no clip '{gone}'"):
        select(dataset, "again", {}, like=[{"clip": gone, **bounds}])


def test_shards_are_whole_after_a_removal(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(dataset.path) / "shards" / "all"
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    result = remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    rewritten = {Path(tar).name for tar in result.shards if Path(tar).parent == folder}
    assert rewritten
    index = json.loads((folder / "index.json").read_text())
    catalog = pq.read_table(folder / "clips.parquet").to_pylist()
    assert index["totals"]["samples"] == len(catalog) == index["totals"]["selected"]
    assert index["totals"]["duration_s"] == pytest.approx(sum(row["duration_s"] for row in catalog))
    assert index["totals"]["bytes"] == sum(path.stat().st_size for path in folder.glob("*.tar"))
    for path in sorted(folder.glob("*.tar")):
        record = read_record(str(folder), path.name)
        assert record is not None
        assert (record.bytes, record.samples) == (
            path.stat().st_size,
            sum(row["shard"] == path.name for row in catalog),
        )
        if path.name not in rewritten:
            assert path.read_bytes() == before[path.name]
    for row in catalog:
        content = (folder / row["shard"]).read_bytes()
        assert row["shard_bytes"] == len(content)
        for file in row["files"]:
            start = file["offset"]
            name = content[start - 512 : start].split(b"\0")[0].decode()
            assert name == f"{row['clip_id']}.{file['extension']}"
        video = content[row["offset"] : row["offset"] + row["size"]]
        assert video.startswith(row["clip_id"].encode())
        assert content[row["files"][-1]["offset"] :].startswith(row["caption"].encode())


def test_a_rewritten_tar_is_what_would_have_been_written(dataset: Dataset, tmp_path: Path) -> None:
    """Byte for byte, to the padding at its end."""
    from curation.shards.write import plan_shards, write_shard
    from pipelines.selected import selected_rows
    from tests.pipelines.removable import CONFIG, _videos

    table, _ = selected_rows(dataset, "all")
    plans = plan_shards(table, kind="clips", config=CONFIG)
    result = remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    folder, ids = Path(dataset.path) / "shards/all", {source_id(number) for number in GONE}
    compared = 0
    for plan in plans:
        left = [i for i, clip_id in enumerate(plan.clips["clip_id"].to_pylist()) if clip_id.split("-")[0] not in ids]
        expected = type(plan)(name=plan.name, kind=plan.kind, clips=plan.clips.take(left))
        record = write_shard(expected, str(tmp_path / "expected"), selection="all", config=CONFIG, run=_videos)
        assert (folder / plan.name).read_bytes() == (tmp_path / "expected" / plan.name).read_bytes()
        mine = read_record(str(folder), plan.name)
        assert mine is not None
        assert (mine.sha256, mine.members, mine.bytes) == (record.sha256, record.members, record.bytes)
        compared += str(folder / plan.name) in result.shards
    assert compared


def test_selections_marks_and_pages_follow(dataset: Dataset, tmp_path: Path) -> None:
    before = load_selection(dataset, "moving")
    result = remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    after, ids = load_selection(dataset, "moving"), selected_ids(dataset, "moving")["clip_id"].to_pylist()
    assert after.clips == len(ids) == before.clips - result.selections["moving"]
    assert after.removed_clips == result.selections["moving"] > 0
    dropped = sum(step.removed + step.unscored_dropped for step in after.funnel)
    assert after.total_clips == after.clips + after.removed_clips + dropped
    durations = {row["clip_id"]: row["duration_s"] for number in range(8) for row in clip_rows(number)}
    assert after.seconds == pytest.approx(sum(durations[clip_id] for clip_id in ids), abs=1e-5)
    left = {mark.clip_id.split("-")[0] for mark in dataset_marks(dataset).marks}
    assert left == {source_id(number) for number in range(8) if number not in GONE}
    assert [Path(page).name for page in result.pages] == ["all.html", "search-dogs.png"]
    assert not list((Path(dataset.path) / "report").iterdir())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_after_a_removal_equals_never_having_had_the_sources(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows, totals, percentiles and near-duplicates."""
    numbers = data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=10, unique=True))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(numbers) - 1), max_size=3)))
    parts = [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
    gone = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=len(numbers) - 1, unique=True))
    folder = tmp_path_factory.mktemp("property")
    removed = dataset_of(str(folder / "removed"), parts)
    remove(removed.url, sources=[source_id(number) for number in gone], reason=REASON, quiet=True)
    never = dataset_of(str(folder / "never"), [[n for n in part if n not in gone] for part in parts])
    expected = rows(never)
    found = rows(removed)
    likes = found.pop("scores_theirs"), expected.pop("scores_theirs")  # numbered by the row: only their clips compare
    assert [row[0] for row in likes[0]] == [row[0] for row in likes[1]]
    del found["joined"], expected["joined"]
    assert found == expected
    rules = {"motion": {"drop_lowest": "25%"}, "luma": {"drop_highest": "10%"}, "duplicate_rank": {"max": 0}}
    one, other = (select(each, "s", rules) for each in (removed, never))
    assert (one.clips_sha256, one.resolved, one.seconds, one.funnel) == (
        other.clips_sha256,
        other.resolved,
        other.seconds,
        other.funnel,
    )
    assert is_current(removed)
    assert find_duplicates(removed) == find_duplicates(never)
    with removed.connect() as a, never.connect() as b:
        assert source_totals(a) == source_totals(b)


def test_in_an_object_store(s3_url: str, dataset: Dataset, tmp_path: Path) -> None:
    stored = with_outputs(dataset_of(f"{s3_url}/dataset", PARTS))
    for each in (stored, dataset):
        remove(each.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    found, expected = rows(stored), rows(dataset)
    assert found == expected
    for name in ("all", "moving"):
        assert load_selection(stored, name) == load_selection(dataset, name)
        paths = stored.file("shards", name), dataset.file("shards", name)
        one, other = (
            {p.rpartition("/")[2]: p for p in storage.list_files(d.fs, f, ".tar")}
            for d, f in zip((stored, dataset), paths, strict=True)
        )
        assert one.keys() == other.keys()
        for tar in one:
            assert storage.read_bytes(stored.fs, one[tar]) == storage.read_bytes(dataset.fs, other[tar])
    assert [(c.version, c.command) for c in read_commits(stored)] == [(1, "curate"), (2, "remove")]
    assert not any(state.gone_clips for state in status(stored).outdated_shards.values())


def test_by_condition_on_the_sources_and_their_metadata(dataset: Dataset) -> None:
    result = remove(dataset.url, where=f"license = '{LICENSES[1]}'", reason="licence", quiet=True)
    assert result.sources == 4
    assert set(dataset.uris().values()) == {f"/videos/{number}.mp4" for number in (0, 2, 4, 6)}
    with pytest.raises(UserError, match=r"where: .*licens"):
        remove(dataset.url, where="licens = 'CC0'", reason="licence", quiet=True)
    with pytest.raises(UserError, match="no source for which the condition holds"):
        remove(dataset.url, where="license = 'MIT'", reason="licence", quiet=True)


def test_a_dry_run_says_the_same_and_writes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path(dataset.path).rglob("*") if path.is_file()}

    before = files()
    planned = remove(dataset.url, sources=listed(tmp_path), reason=REASON, dry_run=True, quiet=True)
    assert files() == before
    assert planned.version is None
    done = remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    assert done.version == 2
    assert {**vars(done), "version": None} == vars(planned)


def test_it_is_recorded_and_a_rerun_does_nothing(dataset: Dataset, tmp_path: Path) -> None:
    sources = listed(tmp_path, (*GONE, 99))
    result = remove(dataset.url, sources=sources, reason=REASON, quiet=True)
    assert result.not_in_dataset == ("/videos/99.mp4",)
    commits = read_commits(dataset)
    assert [(c.version, c.command, c.reason) for c in commits] == [(1, "curate", None), (2, "remove", REASON)]
    assert commits[1].changes["clips"] == -result.clips
    table = pq.read_table(dataset.file("removed", "000002.parquet"))
    assert set(table["reason"].to_pylist()) == {REASON}
    assert set(table["uri"].to_pylist()) == {f"/videos/{number}.mp4" for number in (*GONE, 99)}
    assert removed_sources(dataset).covers("another", "/videos/1.mp4")
    again = remove(dataset.url, sources=sources, reason=REASON, quiet=True)
    assert (again.version, again.sources) == (None, 0)
    assert len(read_commits(dataset)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": "/videos/1.mp4"}, "needs a --reason"),
        ({"sources": "/videos/99.mp4", "reason": "r"}, "none of the 1 sources given is in"),
        ({"sources": "/videos/1.mp4", "where": "true", "reason": "r"}, "mutually exclusive"),
        ({}, "no removal of .* was interrupted"),
        ({"where": "clips > (SELECT 1)", "reason": "r"}, "a query inside the condition"),
    ],
)
def test_requests_that_cannot_be_carried_out(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        remove(dataset.url, quiet=True, **options)
    assert len(dataset.uris()) == 8


def test_listed_shards_stay_and_status_names_them(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(dataset.path) / "shards/all"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    latents = tmp_path / "latents"
    latents.mkdir()
    for name in ("clips-000000", "clips-000001"):
        (latents / f"{name}.tar").write_bytes(b"")
    add_latent_folder(str(folder), str(latents))
    fresh = status(dataset)
    assert (fresh.version, fresh.outdated_shards, fresh.outdated_selections) == (1, {}, {})
    result = remove(dataset.url, sources=listed(tmp_path), reason=REASON, shards="list", quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
    held = {Path(tar).name for tar in result.shards if Path(tar).parent == folder}
    assert set(result.latents) == {str(latents / name) for name in held & {"clips-000000.tar", "clips-000001.tar"}}
    state = status(dataset)
    assert state.outdated_shards["all"].gone_tars == {t: n for t, n in result.shards.items() if "/all/" in t}
    assert state.outdated_shards["all"].gone_clips == result.clips
    assert (state.outdated_selections["all"].older, state.outdated_selections["all"].gone_clips) == (True, 0)


def test_published_folders_that_hold_the_clips_are_listed(dataset: Dataset, tmp_path: Path) -> None:
    """Finished or not, in every layout; a dry run says the same."""
    expected = []
    for name, table, numbers in (
        ("hub", "data/clips.parquet", (1, 2)),
        ("files", "clips.parquet", (3,)),
        ("others", "clips.parquet", (0, 2)),
        ("unfinished", None, ()),
        ("gone", None, None),
    ):
        folder = tmp_path / name
        add_published_folder(dataset.url, str(folder))
        if numbers is not None:
            folder.mkdir()
        if table is not None:
            (folder / table).parent.mkdir(exist_ok=True)
            ids = [row["clip_id"] for number in numbers or () for row in clip_rows(number)]
            pq.write_table(pa.table({"clip_id": ids}), folder / table)
        expected += [str(folder)] * (name in ("hub", "files", "unfinished"))
    sources = listed(tmp_path)
    assert remove(dataset.url, sources=sources, reason=REASON, dry_run=True, quiet=True).published == tuple(expected)
    assert remove(dataset.url, sources=sources, reason=REASON, quiet=True).published == tuple(expected)


@pytest.mark.parametrize("missing", ["clips-000001.tar", "clips-000001.json"])
def test_damaged_shards_are_noticed_before_anything_is_removed(dataset: Dataset, tmp_path: Path, missing: str) -> None:
    (Path(dataset.path) / "shards/all" / missing).unlink()
    with pytest.raises(UserError, match=r"shards/all is damaged: clips\.parquet lists"):
        remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    assert len(dataset.uris()) == 8
    assert remove(dataset.url, sources=listed(tmp_path), reason=REASON, shards="list", quiet=True).version == 2


def test_an_unfinished_shard_folder_is_emptied(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(dataset.path) / "shards/all"
    (folder / "index.json").unlink()
    remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    assert not [path for path in folder.iterdir() if path.name not in {"run.json", "heartbeat.json"}]


def test_shards_that_lost_clips_are_not_written_again_under_the_same_name(dataset: Dataset, tmp_path: Path) -> None:
    from pipelines.shard import shard

    remove(dataset.url, sources=listed(tmp_path), reason=REASON, quiet=True)
    with pytest.raises(UserError, match="clips were removed from the shards"):
        shard(dataset.url, "all", quiet=True)


def state(folder: Path) -> dict[str, Any]:
    """All files but the history, without what tells when they were written."""
    return {
        str(path.relative_to(folder)): pq.read_table(path) if path.stem == "duplicates" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not HISTORY & set(path.relative_to(folder).parts) and "removed" not in path.parts
    }


@pytest.mark.slow
def test_killed_at_any_write_nothing_reads_a_half_and_a_rerun_finishes(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_beat", lambda *_: None)  # a thread whose writes would count too
    sources, undisturbed = listed(tmp_path), Path(shutil.copytree(calm, tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        tried = kill_at_write(patch, 10_000)
        remove(str(undisturbed), sources=sources, reason=REASON, quiet=True)
    expected, before, writes = state(undisturbed), state(calm), tried()
    assert writes > 30
    refused, ends = 0, range(writes - 6, writes)
    for number in sorted({*random.Random(4).sample(range(writes), 14), *ends}):
        folder = tmp_path / f"killed-{number}"
        dataset = Dataset(str(shutil.copytree(calm, folder)))
        with monkeypatch.context() as patch:
            kill_at_write(patch, number)
            with pytest.raises(Killed):
                remove(dataset.url, sources=sources, reason=REASON, quiet=True, take_over=True)
        if (folder / "removal.json").exists():
            with pytest.raises(UserError, match="clipmill remove"):
                dataset.open()
            refused += 1
        else:
            assert state(folder) in (before, expected), number
        for index in folder.glob("shards/*/index.json"):
            name = str(index.relative_to(folder))
            assert index.read_bytes() in (before[name], expected[name])
        again = remove(dataset.url, sources=sources, reason=REASON, quiet=True, take_over=True)
        assert again.version in (None, 2)
        found = state(folder)
        assert found.keys() == expected.keys(), number
        assert [name for name in found if found[name] != expected[name]] == [], number
        commits = [(c.version, c.command, c.reason, c.interrupted) for c in read_commits(dataset)]
        assert commits == [(1, "curate", None, False), (2, "remove", REASON, False)], number
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        shutil.rmtree(folder)
    assert refused >= 10
