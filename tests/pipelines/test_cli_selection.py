"""`select`, `status` and `duplicates` as scripts see them, on tables written by hand: exit codes and sentences."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill import storage
from clipmill.errors import UserError
from clipmill.formats import SHARDS
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, score_schema
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import DuplicatesConfig, find_duplicates, last_config
from pipelines import cli
from pipelines.cli_shared import BAD_REQUEST, NOTHING_CAME_OUT, curate_config
from pipelines.config import CurateConfig
from pipelines.status import status

REASON = "the clip has no caption"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["clipmill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Ten clips of ten sources, of which one has a caption; two of them nearly alike; and twelve rejected sources."""
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    angles = np.radians([0.0, 16.0, *range(90, 90 + 8 * 30, 30)])
    clips = [
        {
            "clip_id": f"c{i}",
            "source_id": f"s{i}",
            "uri": f"/v/{i}.mp4",
            "extraction": "remux",
            "duration_s": 4.0,
            "motion": float(i),
            "aesthetic": 5.0,
            "text_area": 0.0,
            "similarity": 0.3 if i == 9 else None,
            "similarity_error": None if i == 9 else REASON if i else "no caption has text: x",
            "similarity_error_kind": None if i == 9 else "failed",
            "embedding": [np.cos(angle), np.sin(angle)],
        }
        for i, angle in enumerate(angles)
    ]
    sources = [{"source_id": f"s{i}", "uri": f"/v/{i}.mp4", "status": "ok"} for i in range(10)]
    for i in range(12):
        reason = {"status": "rejected", "error_kind": "empty", "error": "it holds\n0 bytes"}
        sources.append({"source_id": f"r{i}", "uri": f"/v/bad-{i:02d}.mp4"} | reason)
    dataset.write_part("clips", "p", pa.Table.from_pylist(clips, CLIPS))
    dataset.write_part("sources", "p", pa.Table.from_pylist(sources, SOURCES))
    return dataset


def test_a_preset_with_nothing_to_go_by_exits_with_3_and_says_which_rule(dataset: Dataset, monkeypatch, capsys):
    find_duplicates(dataset)
    assert run(monkeypatch, "select", dataset.url) == NOTHING_CAME_OUT
    assert f"similarity dropped 6 clips without a score ({REASON}); 1 of 10 clips are left" in capsys.readouterr().err


def test_an_empty_selection_says_which_rule_took_the_most(dataset: Dataset, tmp_path: Path, monkeypatch, capsys):
    rules = tmp_path / "none.yaml"
    rules.write_text("rules: {aesthetic: {max: 5}, motion: {min: 100}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", rules) == NOTHING_CAME_OUT
    assert "no clip passed: motion removed the most (10 clips)" in capsys.readouterr().err


def test_the_funnel_says_what_captioning_the_selection_alone_saves(
    dataset: Dataset, tmp_path: Path, monkeypatch, capsys
):
    rules = tmp_path / "fast.yaml"
    rules.write_text("rules: {motion: {min: 5}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", rules, "--dry-run") == 0
    assert "captioning this selection alone saves 50% of the captions of all clips\n" in capsys.readouterr().out
    add_captions(dataset, "cheap", clips=4, tokens=10, price=None)
    add_captions(dataset, "video", clips=2, tokens=1200, price=0.25)
    assert run(monkeypatch, "select", dataset.url, "--config", rules, "--dry-run") == 0
    assert "all clips: about 6,000 tokens, price 1.25 of the captioner video\n" in capsys.readouterr().out
    rules.write_text("rules: {motion: {min: 0}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", rules, "--dry-run") == 0
    assert "captioning" not in capsys.readouterr().out


def add_captions(dataset: Dataset, captioner: str, *, clips: int, tokens: int, price: float | None) -> None:
    """Captions of some clips, each for these tokens and this price."""
    columns = [pa.field(f"{captioner}_caption", pa.string())]
    columns += [pa.field(f"{captioner}_{name}_tokens", pa.int64()) for name in ("prompt", "completion")]
    columns += [pa.field(f"{captioner}_price", pa.float64())]
    ids = dataset.read_part("clips", "p", ["clip_id"])["clip_id"].to_pylist()[:clips]
    row = {f"{captioner}_caption": "a", f"{captioner}_prompt_tokens": tokens, f"{captioner}_price": price}
    table = pa.Table.from_pylist([{"clip_id": i, **row} for i in ids], score_schema(captioner, columns))
    dataset.write_part(f"captions/{captioner}/v1", "p", table)
    made_with = ScoreVersion(scorer_version=1)
    dataset.record_versions(
        f"captions/{captioner}", [RecordedVersion(version=1, made_with=made_with, target="", finished=True)]
    )


@pytest.mark.slow
def test_a_name_is_replaced_only_when_asked_and_a_dry_run_writes_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch, capsys
):
    rules = tmp_path / "fast.yaml"
    rules.write_text("rules: {motion: {min: 5}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", rules, "--dry-run") == 0
    assert "5 of 10 clips (dry run, not written)" in capsys.readouterr().out
    assert not storage.exists(dataset.fs, dataset.file("selections"))
    assert run(monkeypatch, "select", dataset.url, "--config", rules) == 0
    rules.write_text("rules: {motion: {min: 7}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", rules) == BAD_REQUEST
    assert "with other rules (5 clips): choose another --name, or pass --replace" in capsys.readouterr().err
    assert run(monkeypatch, "select", dataset.url, "--config", rules, "--replace") == 0
    assert "3 of 10 clips" in capsys.readouterr().out


def test_status_lists_rejected_sources_and_the_commonest_reason(dataset: Dataset, monkeypatch, capsys):
    assert run(monkeypatch, "status", dataset.url) == 0
    printed = capsys.readouterr().out
    assert f"{REASON} (8 of them)" in printed
    assert "bad-00" not in printed
    assert run(monkeypatch, "status", dataset.url, "--rejected") == 0
    printed = capsys.readouterr().out
    assert printed.count(r"empty: it holds\n0 bytes") == 12
    assert "/v/bad-11.mp4: empty: " in printed
    assert run(monkeypatch, "status", dataset.url, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["unscored_reasons"]["similarity"] == {"text": REASON, "clips": 8}
    assert len(values["rejected_sources"]) == 10


@pytest.mark.parametrize(
    ("totals", "note"),
    [
        ({"failed": 0, "selected": 38, "gone": 0}, None),
        ({"failed": 2, "selected": 43, "gone": 3}, "partial: 5 of 43 selected clips missing (2 failed, 3 gone)"),
        ({"failed": 0, "selected": 41, "gone": 3}, "partial: 3 of 41 selected clips missing (3 gone)"),
        ({"failed": 2}, "partial: 2 of 40 selected clips missing (2 failed)"),  # of an earlier release
    ],
)
def test_status_says_that_shards_are_partial(
    dataset: Dataset, monkeypatch, capsys, totals: dict[str, int], note: str | None
):
    counts = totals | {"shards": 1, "samples": 38, "bytes": 10}
    index = SHARDS.describe(kind="clips", selection="all", totals=counts)
    storage.write_bytes(dataset.fs, dataset.file("shards", "all", "index.json"), json.dumps(index).encode())
    assert run(monkeypatch, "status", dataset.url) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert note in printed if note else "partial" not in printed


def test_duplicates_uses_the_settings_of_the_last_search(dataset: Dataset, monkeypatch, capsys):
    assert run(monkeypatch, "duplicates", dataset.url) == 0  # a cosine of 0.961
    assert status(dataset).clips == 10
    assert re.search(r"duplicates +1 ", capsys.readouterr().out)
    assert run(monkeypatch, "duplicates", dataset.url, "--min-cosine", "0.98") == 0
    models = {"duplicates": {"min_cosine": 0.5}}  # what the first run had
    storage.write_bytes(dataset.fs, dataset.file("models.json"), json.dumps(models).encode())
    capsys.readouterr()
    assert run(monkeypatch, "duplicates", dataset.url) == 0
    assert "unchanged since the last search" in " ".join(capsys.readouterr().out.split())
    assert last_config(dataset) == DuplicatesConfig(min_cosine=0.98)


@pytest.mark.parametrize(("given", "name"), [("text", "text_area"), ("s", "similarity"), ("aesthetic", "aesthetic")])
def test_scores_to_leave_out_may_be_shortened(given: str, name: str) -> None:
    assert curate_config(None, given).without == (name,)


@pytest.mark.parametrize("given", ["x", "text_areas"])
def test_a_score_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="unknown score"):
        curate_config(None, given)


def test_scores_are_left_out_by_one_rule_for_names_in_the_option_and_the_configuration(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("without: [text, aes]\n")
    assert CurateConfig.from_file(str(tmp_path / "c.yaml")).without == ("aesthetic", "text_area")
    (tmp_path / "c.yaml").write_text("without: [texts]\n")
    with pytest.raises(UserError, match=r"without: unknown score 'texts'.*Known: aesthetic, similarity, text_area"):
        CurateConfig.from_file(str(tmp_path / "c.yaml"))
