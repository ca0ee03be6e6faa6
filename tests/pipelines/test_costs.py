"""What runs cost, as `status` says it: by stage, over several runs, at a price."""

import json
from pathlib import Path

import pytest

from clipmill import curate, select, shard
from clipmill.costs import Cost, charge, take
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from pipelines.costs import DRIVER, Prices, RunCosts, measured_here, read_costs, recorded_costs, stage_costs
from pipelines.duplicates import search_duplicates
from pipelines.status import Status, status
from tests.curation.dedup.test_duplicates import at, clip, write
from tests.pipelines.corpora import WITHOUT_CLIP, many_small
from tests.pipelines.test_cli import run as run_cli


def by_stage(seen: Status) -> dict[str, float]:
    return {cost.stage: cost.cpu_s for cost in seen.costs}


@pytest.mark.slow
def test_every_stage_of_a_run_is_counted(tmp_path: Path, local_ray: None, monkeypatch, capsys) -> None:
    videos, out = many_small(tmp_path / "in", 4), str(tmp_path / "out")
    curate([str(videos)], out, config=WITHOUT_CLIP, quiet=True)
    dataset = Dataset(out)
    seen = status(dataset)
    spent = by_stage(seen)
    assert list(spent)[:5] == ["decode", "cuts", "motion", "thumbnails", "scan"]
    assert {"text_area", "previews", "picture_hash", "write", "duplicates", DRIVER} <= spent.keys()
    assert all(spent[stage] > 0 for stage in ("decode", "cuts", "motion", "thumbnails", "text_area", DRIVER))
    in_parts_s = sum(spent[part] for part in ("decode", "cuts", "motion", "thumbnails"))
    assert 0.5 * seen.scan_cpu_s < in_parts_s <= seen.scan_cpu_s
    # The records count the children of the workers, whose start is not part of a scan.
    assert in_parts_s + spent["scan"] >= 0.9 * seen.scan_cpu_s
    assert seen.costs[0].bytes == sum(path.stat().st_size for path in videos.iterdir())
    assert seen.stored_bytes > 1000
    curate([str(videos)], out, config=WITHOUT_CLIP, quiet=True)
    assert len(status(dataset).runs) == len(seen.runs), "a run without work has no record"
    select(out, everything())
    shard(out, "all", quiet=True)
    after = status(dataset)
    assert by_stage(after)["shard"] > 0
    written = sum(path.stat().st_size for path in (tmp_path / "out" / "shards" / "all").glob("*.tar"))
    assert next(cost.bytes for cost in after.costs if cost.stage == "shard") == written
    bytes_of = {cost.stage: cost.bytes for cost in after.costs}
    for stage, folders in {"write": ("sources", "clips", "previews"), "picture_hash": ("scores/picture_hash",)}.items():
        files = (path for folder in folders for path in (tmp_path / "out" / folder).rglob("*") if path.is_file())
        assert bytes_of[stage] == sum(path.stat().st_size for path in files) > 0
    assert after.stored_bytes == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [run.command for run in after.runs] == ["curate", "shard"]
    assert run_cli(monkeypatch, "status", out, "--price-per-cpu-hour", "3600", "--price-per-gb-month", "1000") == 0
    printed = capsys.readouterr().out
    assert "costs of 2 runs" in printed
    assert all(word in printed for word in ("CPU time", "busy", "bytes"))
    cells = next(line for line in printed.splitlines() if line.strip().startswith("all ")).split()
    assert float(cells[-1].replace(",", "")) == pytest.approx(sum(by_stage(after).values()), rel=0.01)
    assert "if they are rented for the whole of each run" in printed


def everything() -> Rules:
    return Rules.from_values({"name": "all", "rules": {}, "where": "true"}, origin="test")


def test_a_search_of_duplicates_is_counted_unless_it_was_reused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    write(dataset, "one", [clip(0, at(0)), clip(1, at(1))])
    search_duplicates(dataset)
    search_duplicates(dataset)
    (run,) = read_costs(dataset)
    assert run.command == "duplicates"
    costs = run.costs()
    assert costs["duplicates"].cpu_s > 0
    assert costs[DRIVER].cpu_s < costs["duplicates"].cpu_s + 1


def test_runs_are_added_up_and_priced(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    write(dataset, "one", [])
    stages = {"text_area": {"cpu_s": 1800.0}, "video": {"cpu_s": 1.0, "tokens_in": 2_000_000, "tokens_out": 500_000}}
    runs = [
        RunCosts(command="curate", started_at="t", wall_s=9.0, cpus=2, gpus=0, stages=stages),
        RunCosts(command="score", started_at="t", wall_s=9.0, cpus=2, gpus=1, stages={"text_area": {"gpu_s": 7200}}),
    ]
    with dataset.connect() as connection:
        costs = {cost.stage: cost for cost in stage_costs(runs, connection)}
    prices = Prices(cpu_hour=0.1, gpu_hour=2, million_tokens_in=0.5, million_tokens_out=4)
    assert costs["text_area"].price(prices) == pytest.approx(0.05 + 4)
    assert costs["video"].price(prices) == pytest.approx(0.1 / 3600 + 1 + 2)
    assert Prices(cpu_hour=1).stated
    assert not Prices().stated


def test_a_record_outlives_a_failing_run_and_only_damage_is_an_error(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})

    @recorded_costs(dataset, "curate")
    @measured_here("work")
    def breaks() -> None:
        charge("endpoint", Cost(tokens_out=5))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks()
    (run,) = read_costs(dataset)
    assert run.costs()["endpoint"].tokens_out == 5
    assert {"work", DRIVER} <= run.costs().keys()
    assert take() == {}
    path = next(Path(dataset.file("costs")).iterdir())
    no_number = json.loads(path.read_text()) | {"stages": {"a": {"cpu_s": "x"}}}
    for wrong in ("{", "[]", json.dumps({"command": 3}), json.dumps(no_number)):
        path.write_text(wrong)
        with pytest.raises(UserError, match="is damaged"):
            read_costs(dataset)


def test_a_record_within_another_adds_to_it(tmp_path: Path) -> None:
    """As the search for duplicates at the end of `curate`: what was counted before it is not lost."""
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    with recorded_costs(dataset, "curate"):
        charge("scan", Cost(cpu_s=3))
        with recorded_costs(dataset, "duplicates") as inner:
            charge("duplicates", Cost(cpu_s=2))
            inner.discard()
    (run,) = read_costs(dataset)
    assert run.command == "curate"
    assert {stage: cost.cpu_s for stage, cost in run.costs().items() if stage != DRIVER} == {"scan": 3, "duplicates": 2}
