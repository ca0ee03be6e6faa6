"""Versions of a score: side by side, over a selection, in rules, in a growing dataset; the same scorers in curate."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from clipmill import UserError, curate, score, select, shard, status
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from pipelines.config import CurateConfig
from tests.pipelines.corpora import WITHOUT_CLIP, content, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

FILE = Path(__file__).with_name("scorers.py")
LUMA, FLICKER = f"{FILE}:Luma", f"{FILE}:Flicker"
EVERYTHING = {"duration_s": {"min": 0}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_small(tmp_path_factory.mktemp("versions") / "in", 5)


@pytest.fixture(scope="module")
def curated(videos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray) -> Path:
    out = tmp_path_factory.mktemp("versions") / "dataset"
    curate([str(videos)], str(out), config=WITHOUT_CLIP, quiet=True)
    return out


@pytest.fixture
def dataset(curated: Path, tmp_path: Path) -> Dataset:
    return Dataset(str(shutil.copytree(curated, tmp_path / "dataset")))


def gain(value: float) -> CurateConfig:
    return CurateConfig.from_values({"scorers": {LUMA: {"gain": value}}}, origin="test")


def column(dataset: Dataset, *names: str) -> dict[str, Any]:
    """clip_id -> the value, or the values; the names may be of versions."""
    from curation.dataset.joined import joined_query

    with dataset.connect() as connection:
        query = joined_query(connection, ["clip_id", *names])
        rows = connection.execute(f"SELECT * FROM ({query}) ORDER BY clip_id").fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {clip_id: values[0] if len(names) == 1 else tuple(values) for clip_id, *values in rows}


def chosen(dataset: Dataset, rules: dict[str, Any], **others: Any) -> Any:
    return select(dataset.url, Rules.from_values({"name": "r", "rules": rules, **others}, origin="test"), dry_run=True)


def test_versions_stand_side_by_side_and_rules_may_name_one(dataset: Dataset):
    assert score(dataset.url, LUMA, quiet=True).version == 1
    first = column(dataset, "luma")
    second = score(dataset.url, LUMA, config=gain(0.5), quiet=True)
    assert (second.version, second.changes) == (2, ("settings.gain: was 1.0, now 0.5",))
    assert column(dataset, "luma") == pytest.approx({clip: value / 2 for clip, value in first.items()})
    assert column(dataset, "luma@1") == first
    assert column(dataset, "luma@2") == column(dataset, "luma")
    # The settings of the first version again: nothing is done, and the newest still counts.
    again = score(dataset.url, LUMA, quiet=True)
    assert (again.version, again.scored_now, again.changes) == (1, 0, ())
    assert column(dataset, "luma") == column(dataset, "luma@2")

    middle = sorted(first.values())[len(first) // 2]
    pinned = chosen(dataset, {"luma@1": {"min": middle}})
    assert (pinned.clips, pinned.versions) == (sum(v >= middle for v in first.values()), {"luma@1": 1})
    newest = chosen(dataset, {"luma": {"min": middle}})
    assert (newest.clips, newest.versions) == (sum(v / 2 >= middle for v in first.values()), {"luma": 2})
    both = chosen(dataset, EVERYTHING, where='"luma@1" > 1.9 * luma AND luma > 0')
    assert (both.clips, both.versions) == (len(first), {"luma": 2, "luma@1": 1})
    with pytest.raises(UserError, match=r"unknown column of numbers 'luma@3'"):
        chosen(dataset, {"luma@3": {"min": 0}})
    counts = [(v.version, v.counted, v.clips, v.failed) for v in status(dataset).versions if v.scorer == "luma"]
    assert counts == [(1, False, len(first), 0), (2, True, len(first), 0)]


def test_a_version_of_a_selection_leaves_the_other_clips_unscored(dataset: Dataset):
    score(dataset.url, LUMA, quiet=True)
    first = column(dataset, "luma")
    bright = Rules.from_values({"name": "bright", "rules": {"luma": {"drop_lowest": "50%"}}}, origin="test")
    selected = select(dataset.url, bright)
    assert 0 < selected.clips < len(first)
    partial = score(dataset.url, LUMA, config=gain(2), selection="bright", quiet=True)
    assert (partial.version, partial.clips, partial.scored_now) == (2, selected.clips, selected.clips)
    assert partial.uncovered == len(first) - selected.clips
    values = column(dataset, "luma", "luma_error", "luma_error_kind")
    missing = {clip for clip, row in values.items() if row == (None, "not scored by version 2", "not_scored")}
    assert len(missing) == partial.uncovered
    assert all(values[clip] == (pytest.approx(2 * first[clip]), None, None) for clip in first.keys() - missing)
    kept = chosen(dataset, {"luma": {"min": 0}})
    assert (kept.clips, kept.funnel[0].unscored, kept.funnel[0].unscored_reason) == (
        selected.clips,
        len(missing),
        "not scored by version 2",
    )
    found = status(dataset)
    assert found.unscored["luma"] == len(missing)
    assert found.unscored_reasons["luma"].text == "not scored by version 2"
    # The rest, by the same command without the selection.
    rest = score(dataset.url, LUMA, config=gain(2), quiet=True)
    assert (rest.version, rest.scored_before, rest.scored_now) == (2, selected.clips, len(missing))
    assert column(dataset, "luma") == pytest.approx({clip: 2 * value for clip, value in first.items()})


def test_failed_clips_are_scored_again_when_asked(dataset: Dataset):
    odd = CurateConfig.from_values({"scorers": {f"{FILE}:Flaky": {"fails": str(dataset.file("fail"))}}}, origin="test")
    failing = sorted(column(dataset, "motion"))[:2]
    Path(dataset.file("fail")).write_text("\n".join(failing))
    result = score(dataset.url, f"{FILE}:Flaky", config=odd, quiet=True)
    assert result.failed_now == len(failing) < result.clips
    before = column(dataset, "flaky")
    Path(dataset.file("fail")).unlink()
    assert score(dataset.url, f"{FILE}:Flaky", config=odd, quiet=True).scored_now == 0
    retried = score(dataset.url, f"{FILE}:Flaky", config=odd, retry_failed=True, quiet=True)
    assert (retried.version, retried.scored_now, retried.failed_now) == (1, result.failed_now, 0)
    after = column(dataset, "flaky", "flaky_error")
    assert {clip for clip, value in before.items() if value is None} == {c for c, (v, _) in after.items() if v == 2.0}
    assert {error for _, error in after.values()} == {None}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(dataset: Dataset):
    files = sorted(Path(dataset.url).rglob("*"))
    planned = score(dataset.url, LUMA, dry_run=True, quiet=True)
    assert (planned.version, planned.scored_now) == (1, planned.clips)
    assert sorted(Path(dataset.url).rglob("*")) == files


def test_curate_runs_the_same_scorers_with_the_same_results(dataset: Dataset, videos: Path, tmp_path: Path):
    config = WITHOUT_CLIP.replace(scorers={LUMA: {"gain": 0.5}, FLICKER: {}})
    other = Dataset(str(tmp_path / "other"))
    curate([str(videos)], other.url, config=config, quiet=True)
    assert content(other.url) == content(dataset.url)
    for scorer in (LUMA, FLICKER):
        score(dataset.url, scorer, config=config, quiet=True)
        again = score(other.url, scorer, config=config, quiet=True)
        assert (again.version, again.scored_now) == (1, 0)
    names = ("luma", "luma_pictures", "luma_error", "flicker", "flicker_times_s", "flicker_error_kind")
    assert column(other, *names) == column(dataset, *names)
    assert None not in column(other, "flicker").values()


def test_a_growing_dataset_keeps_its_versions_in_step(dataset: Dataset, tmp_path: Path):
    """curate with a scorer adds rows to the version with its settings; status names what the newest one lacks."""
    config = WITHOUT_CLIP.replace(scorers={LUMA: {"gain": 1.0}})
    score(dataset.url, LUMA, quiet=True)
    score(dataset.url, LUMA, config=gain(2), quiet=True)
    before = column(dataset, "luma@1")
    more = many_small(tmp_path / "more", 7)
    for name in sorted(more.iterdir())[:5]:
        name.unlink()
    curate([str(more)], dataset.url, config=config, quiet=True)
    grown = column(dataset, "luma@1")
    new = grown.keys() - before.keys()
    assert new
    assert None not in grown.values()
    assert {clip for clip, value in column(dataset, "luma").items() if value is None} == new
    assert status(dataset).unscored["luma"] == len(new)
    assert score(dataset.url, LUMA, config=gain(2), quiet=True).scored_now == len(new)
    assert column(dataset, "luma") == pytest.approx({clip: 2 * value for clip, value in grown.items()})


def test_shards_have_the_score_that_counts(dataset: Dataset):
    import io
    import json
    import tarfile

    score(dataset.url, LUMA, quiet=True)
    score(dataset.url, LUMA, config=gain(0.5), quiet=True)
    select(dataset.url, Rules.from_values({"name": "all", "rules": EVERYTHING}, origin="test"))
    run = shard(dataset.url, "all", quiet=True)
    luma = column(dataset, "luma")
    seen = {}
    for path in Path(run.folder).glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    sample = json.load(io.TextIOWrapper(file))
                    scores = {entry["name"]: entry["value"] for entry in sample["scores"]}
                    assert not [name for name in scores if "@" in name]
                    seen[sample["clip_id"]] = scores["luma"]
    assert seen == pytest.approx(luma)
