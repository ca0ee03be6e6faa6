"""Limits per group, balance, likeness and clusters on the page, against `select`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.rules import Rules, load_rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from tests.curation.report.browser import kept, opened, wait_until
from tests.curation.report.datasets import make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clips in eight clusters of different sizes, some in none, with embeddings around their directions."""
    dataset = make(tmp_path_factory.mktemp("groups") / "dataset", 200)
    random = np.random.default_rng(3)
    ids: list[str] = []
    for part in dataset.parts("clips"):
        table = dataset.read_part("clips", part)
        ids += table["clip_id"].to_pylist()
        rows = pa.array(random.standard_normal((table.num_rows, 8)).tolist(), pa.list_(pa.float32()))
        place = table.schema.get_field_index("embedding")
        field = table.schema.field("embedding")
        dataset.write_part("clips", part, table.set_column(place, field, rows.cast(field.type)))
    numbers = (random.random(200) ** 3 * 8).astype(np.int32)
    missing = random.random(200) < 0.05
    sizes = np.bincount(numbers[~missing], minlength=8)[numbers].astype(np.int32)
    columns = {
        "clip_id": ids,
        "cluster": pa.array(numbers, mask=missing),
        "cluster_size": pa.array(sizes, mask=missing),
        "cluster_distance": pa.array(random.random(200).astype(np.float32).round(1), mask=missing),
    }
    dataset.write_part("scores/cluster", "all", pa.table(columns))
    return dataset


def asked(random: np.random.Generator, ids: list[str]) -> dict[str, Any]:
    """Rules of all kinds, by chance."""
    rules: dict[str, Any] = {"name": "any", "rules": {"aesthetic": {"min": float(random.choice([4.0, 5.0]))}}}
    if random.random() < 0.5:
        rules["rules"]["duplicate_rank"] = {"max": 0}
    if random.random() < 0.6:
        bound = {"drop_lowest": "20%"} if random.random() < 0.5 else {"min": -0.1}
        rules["like"] = [{"clip": str(random.choice(ids)), **bound} for _ in range(random.integers(1, 3))]
    best = {"best": {"cluster_distance": "lowest", "motion": "highest"}} if random.random() < 0.5 else {}
    unscored = {"unscored": str(random.choice(["drop", "keep"])), "seed": int(random.integers(3))}
    if random.random() < 0.7:
        rules["max_per"] = {
            "source": int(random.integers(1, 30)),
            "cluster": {"clips": int(random.integers(1, 20)), **best, **unscored},
            "license": {"clips": int(random.integers(20, 60))},
        }
    if random.random() < 0.8:
        by = str(random.choice(["cluster", "width", "license", "source_id"]))
        power = float(random.choice([0, 0.3, 0.5, 1]))
        rules["balance"] = {"by": by, "power": power, "clips": int(random.integers(1, 90)), **best, **unscored}
    return rules


def test_the_page_keeps_the_very_clips_that_select_keeps(browser: Any, dataset: Dataset, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    with dataset.connect() as connection:
        ids = [row[0] for row in connection.execute("SELECT clip_id FROM clips ORDER BY 1").fetchall()]
    judged = """() => {
        const {judged, judge} = clipmill;
        const ids = judge.columns.get('clip_id');
        return [[...judged.kept.keys()].filter(i => judged.kept[i]).map(i => ids.texts[ids.codes[i]]).sort(),
            judged.steps.map(s => [s.name, s.removed, s.unscoredDropped, s.removedAlone, s.unscored, s.left])];
    }"""
    for _ in range(12):
        rules = asked(random, ids)
        selection = select_clips(dataset, Rules.from_values(rules, origin="test"), replace=True)
        file = Path(write_page(dataset, "any", build_report(dataset, "any")))
        with opened(browser, file) as page:
            clips, steps = page.evaluate(judged)
            rows = [row for batch in selected_clips(dataset, "any", ["clip_id"]) for row in batch.to_pylist()]
            assert clips == [row["clip_id"] for row in rows], rules
            assert steps == [
                [s.rule, s.removed, s.unscored_dropped, s.removed_alone, s.unscored, s.clips_left]
                for s in selection.funnel
            ], rules
            (tmp_path / "copied.yaml").write_text(page.input_value("#yaml"))
            copied = select_clips(dataset, load_rules(str(tmp_path / "copied.yaml")), dry_run=True)
            assert copied.clips_sha256 == selection.clips_sha256, page.input_value("#yaml")


def test_limits_can_be_switched_off_and_say_why_a_clip_is_dropped(browser: Any, dataset: Dataset) -> None:
    rules = {"name": "few", "max_per": {"source": 3}, "balance": {"by": "cluster", "clips": 8}}
    selection = select_clips(dataset, Rules.from_values(rules, origin="test"), replace=True)
    with opened(browser, Path(write_page(dataset, "few", build_report(dataset, "few")))) as page:
        assert kept(page) == selection.clips == 8
        assert "at most 3 per source_id" in page.inner_text(".steps")
        reasons = page.evaluate(
            "[...clipmill.judged.kept.keys()].filter(i => !clipmill.judged.kept[i]).map(i => clipmill.reason(i))"
        )
        limited = [reason for reason in reasons if reason.startswith("dropped by max_per source: ")]
        assert all(
            reason.startswith("dropped by max_per source: 3 of the 40 clips with source_id ") for reason in limited
        )
        assert len(limited) == selection.funnel[0].removed
        page.uncheck("#useGroups")
        wait_until(page, "document.querySelector('#kept-clips').dataset.clips == 200")
        assert "balance" not in page.input_value("#yaml")


def test_a_sample_balances_its_share_and_leaves_limits_out(browser: Any, dataset: Dataset) -> None:
    rules = {"name": "few", "max_per": {"source": 3}, "balance": {"by": "cluster", "clips": 80, "unscored": "keep"}}
    select_clips(dataset, Rules.from_values({**rules, "max_per": {}}, origin="test"), replace=True)
    with opened(browser, Path(write_page(dataset, "few", build_report(dataset, "few", most_clips=100)))) as page:
        assert page.evaluate("clipmill.judged.steps.map(step => step.name)") == ["balance"]
        assert page.evaluate("clipmill.judged.steps[0].left - clipmill.judged.tests[0].unscored") == 40
    select_clips(dataset, Rules.from_values(rules, origin="test"), replace=True)
    with opened(browser, Path(write_page(dataset, "few", build_report(dataset, "few", most_clips=100)))) as page:
        assert "skipped: needs all clips" in page.inner_text(".steps")


def test_the_difference_on_the_page_names_the_balance(browser: Any, dataset: Dataset) -> None:
    old = {"name": "old", "balance": {"by": "cluster", "clips": 30}}
    select_clips(dataset, Rules.from_values(old, origin="test"), replace=True)
    select_clips(dataset, Rules.from_values({"name": "all"}, origin="test"), replace=True)
    with opened(browser, Path(write_page(dataset, "all", build_report(dataset, "all", "old")))) as page:
        page.click("#tab-Compare")
        text = " ".join(page.inner_text("#panel-Compare").split())
        (unscored,) = page.evaluate(
            "[clipmill.judge.columns.get('cluster').numbers.filter(n => Number.isNaN(n)).length]"
        )
        assert f"balance {200 - 30}" in text
        assert unscored > 0


def test_clusters_are_shown_with_their_most_typical_clips(browser: Any, dataset: Dataset) -> None:
    rules = {"name": "few", "balance": {"by": "cluster", "clips": 20, "power": 0}}
    select_clips(dataset, Rules.from_values(rules, origin="test"), replace=True)
    with dataset.connect() as connection:
        sizes = connection.execute(
            "SELECT cluster, count(*) FROM joined WHERE cluster IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
    with opened(browser, Path(write_page(dataset, "few", build_report(dataset, "few")))) as page:
        page.click("#tab-Clusters")
        titles = page.evaluate("[...document.querySelectorAll('.clusters .group h2')].map(e => e.textContent)")
        assert [title.partition(" clips")[0] for title in titles] == [f"Cluster {k}: {size}" for k, size in sizes]
        assert all(title.endswith(("2 kept", "3 kept", "1 kept")) for title in titles)
        assert page.locator(".clusters .group").first.locator("img.strip").count() == 6
        page.select_option(".clusters select", "kept")
        assert page.locator(".clusters .group").count() == len(sizes)


def test_a_dataset_without_clusters_says_how_to_make_them(browser: Any, tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 10)
    with opened(browser, Path(write_page(dataset, "all", build_report(dataset)))) as page:
        page.click("#tab-Clusters")
        assert "Run clipmill cluster DATASET" in page.inner_text("#panel-Clusters")
