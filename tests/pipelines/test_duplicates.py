"""The near-duplicate search with its kept clips spread over Ray."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from clipmill.errors import RunStopped, UserError
from curation.dataset.tables import Dataset
from curation.dedup import against
from curation.dedup.against import find_in_other
from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import find_duplicates
from curation.selection.rules import Rules
from pipelines import duplicates
from pipelines.cli import app
from pipelines.duplicates import RayIndex, compared_on_ray, search_against, search_duplicates
from pipelines.fence import owned
from pipelines.select import select
from tests.curation.dedup.test_duplicates import at, clip, copies_of, footage_like, stored, write

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """1500 clips of 60 sources, 500 of them copies, some of those with equal embeddings."""
    rng = np.random.default_rng(5)
    originals = footage_like(1000, rng)
    copies = copies_of(originals[:500], 0.955, rng)
    copies[:50] = copies[0]
    rows = [
        clip(i, vector, source_id=f"s{i % 60}", aesthetic=float(rng.random()))
        for i, vector in enumerate(np.concatenate([originals, copies]))
    ]
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    write(dataset, "one", rows[::2])
    write(dataset, "two", rows[1::2])
    return dataset


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayIndex, "block_clips", 100)
    nodes = duplicates._node_of_each_cpu
    monkeypatch.setattr(duplicates, "_node_of_each_cpu", lambda: nodes()[:1] * 3)


def table(dataset: Dataset) -> pa.Table:
    return stored(dataset).replace_schema_metadata(None)


def forget(dataset: Dataset) -> None:
    """Search from scratch next time."""
    for path in dataset.fs.find(dataset.file("scores", "duplicates")):
        dataset.fs.rm_file(path)


@pytest.mark.parametrize("exact_up_to", [10_000, 0])
def test_a_cluster_decides_the_same(local_ray: None, dataset: Dataset, exact_up_to: int) -> None:
    config = DuplicatesConfig(exact_up_to=exact_up_to, block_clips=40)
    here = find_duplicates(dataset, config)
    expected = table(dataset)
    assert here.approximate == (exact_up_to == 0)
    assert here.duplicates > 400
    forget(dataset)
    there = find_duplicates(dataset, config, make_index=RayIndex)
    assert there == here
    assert table(dataset).equals(expected)
    write(dataset, "three", [clip(5000, np.eye(64)[0])])
    more = find_duplicates(dataset, config, make_index=RayIndex)
    assert (more.clips, more.compared) == (here.clips + 1, 1)


def test_what_a_dead_actor_held_goes_to_the_others(local_ray: None, dataset: Dataset) -> None:
    config = DuplicatesConfig(block_clips=100)
    find_duplicates(dataset, config)
    expected = table(dataset)
    forget(dataset)

    class Unlucky(RayIndex):
        rounds = 0

        def best(self, block):
            Unlucky.rounds += 1
            if Unlucky.rounds in (4, 7):
                ray.kill(self._actors[0])
            return super().best(block)

    find_duplicates(dataset, config, make_index=Unlucky)
    assert Unlucky.rounds > 7
    assert table(dataset).equals(expected)


def test_a_run_that_loses_all_its_actors_stops(local_ray: None, dataset: Dataset) -> None:
    class Doomed(RayIndex):
        def best(self, block):
            for actor in self._actors:
                ray.kill(actor)
            return super().best(block)

    with pytest.raises(RunStopped, match="all nodes that held clips"):
        find_duplicates(dataset, make_index=Doomed)


def test_an_address_decides_where_it_runs(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert search_duplicates(dataset).clips == 1500
    forget(dataset)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"cannot connect to the Ray cluster at '127\.0\.0\.1:1'"):
        search_duplicates(dataset, address="127.0.0.1:1")


def test_clips_that_were_added_after_the_last_search_are_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    digits = "0123456789abcdef" * 4
    for part, number in (("one", 0), ("two", 1)):
        write(dataset, part, [clip(number, None, embedding_error="left out")])
        rows = [{"clip_id": f"c{number:05d}", "picture_hash": [digits, None, None]}]
        schema = pa.schema([("clip_id", pa.string()), ("picture_hash", pa.list_(pa.string()))])
        dataset.write_part("scores/picture_hash", part, pa.Table.from_pylist(rows, schema))
        if part == "one":
            search_duplicates(dataset)
    rules = Rules.from_values({"name": "r", "rules": {"duplicate_rank": {"max": 0}}}, origin="test")
    with pytest.raises(UserError, match="1 clips were added after the last duplicate search"):
        select(dataset.url, rules)
    search_duplicates(dataset)
    assert select(dataset.url, rules).clips == 1


def test_a_cluster_finds_the_same_clips_of_another_dataset(
    local_ray: None, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Dataset(str(tmp_path / "other")).create_or_open({})
    rng = np.random.default_rng(8)
    write(other, "one", [clip(i, vector) for i, vector in enumerate(footage_like(700, rng))])
    monkeypatch.setattr(against, "_CHUNK", 150)
    monkeypatch.setattr(against, "_BLOCK", 400)
    find_in_other(dataset, other, name="here")
    find_in_other(dataset, other, name="there", run=compared_on_ray)
    found = [pq.read_table(dataset.file("scores", f"against_{n}", f"against_{n}.parquet")) for n in ("here", "there")]
    assert [c.to_pylist() for c in found[0].columns] == [c.to_pylist() for c in found[1].columns]
    assert found[0].num_rows == 1500


def test_datasets_of_different_models_are_not_compared(tmp_path: Path) -> None:
    pair = [Dataset(str(tmp_path / name)).create_or_open({}) for name in ("ours", "theirs")]
    for number, each in enumerate(pair):
        write(each, "one", [clip(0, at(0))])
        Path(each.file("models.json")).write_text(f'{{"digests": {{"clip": "{number}"}}}}')
    with pytest.raises(UserError, match="were curated with different CLIP models"):
        search_against(*pair)


def test_a_search_that_cannot_work_or_has_nothing_to_do_does_not_stop_a_run(tmp_path: Path, capsys) -> None:
    def search(*arguments: str) -> str:
        """What it says; "" for success."""
        try:
            app(["duplicates", *arguments, "--take-over"], standalone_mode=False)
        except UserError as error:
            return str(error)
        return ""

    ours, theirs, empty = (Dataset(str(tmp_path / n)).create_or_open({}) for n in ("ours", "theirs", "empty"))
    write(ours, "one", [clip(0, at(0)), clip(1, at(40))])
    write(theirs, "one", [clip(0, at(0))])
    write(empty, "one", [clip(0, None)])
    assert search(ours.url) == search(ours.url, "--against", theirs.url) == ""
    with owned(ours.url) as live, owned(empty.url) as other_live:
        for arguments, said in (
            ([empty.url], "no clip of .*empty has an embedding to compare"),
            ([ours.url, "--against", empty.url], "no clip of .*empty has an embedding to compare"),
            ([ours.url, "--against", f"{ours.url}/"], "expected another dataset than"),
            ([ours.url, "--against", theirs.url, "--name", "Not this"], "expected a name of lower-case letters"),
            ([ours.url], ""),
            ([ours.url, "--against", theirs.url], ""),
        ):
            answer = search(*arguments)
            assert re.search(said, answer)
            assert bool(answer) == bool(said)
            live.check()
            other_live.check()
        write(ours, "two", [clip(2, at(80))])
        assert search(ours.url) == ""
        with pytest.raises(RunStopped, match="another run now owns"):
            live.check()
