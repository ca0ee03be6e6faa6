"""Thresholds on the page in a real browser, opened from disk without a network, against `select` and DuckDB."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.rules import Rules, load_rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from tests.curation.report.browser import kept, opened, wait_until
from tests.curation.report.datasets import make

VALUES = {"motion": 5.3, "aesthetic": 5.0123, "text_area": 0.07, "width": 640, "sharpness": 0.1}

pytestmark = pytest.mark.slow


def selects(dataset: Dataset, text: str, folder: Path) -> int:
    (folder / "rules.yaml").write_text(text)
    return select_clips(dataset, load_rules(str(folder / "rules.yaml")), dry_run=True).clips


def test_it_starts_with_what_the_selection_holds(browser: Any, file: Path, dataset: Dataset, tmp_path: Path) -> None:
    with opened(browser, file) as page:
        expected = sum(batch.num_rows for batch in selected_clips(dataset, "start"))
        assert kept(page) == expected > 0
        assert selects(dataset, page.input_value("#yaml"), tmp_path) == expected


def test_dragged_and_typed_thresholds_give_what_select_gives(
    browser: Any, file: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with opened(browser, file) as page:
        before = kept(page)
        handle = page.locator('[data-column="aesthetic"] .handle.min')
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + 150, box["y"] + 10, steps=5)
        page.mouse.up()
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips != {before}")
        value = float(page.input_value('[data-column="aesthetic"] .end:first-child .value'))
        with dataset.connect() as connection:
            selected = [row[0] for row in connection.execute("SELECT clip_id FROM joined").fetchall()]
            assert len(selected) == 200
            query = f"SELECT count(*) FROM joined WHERE aesthetic < {value}::FLOAT"
            (removed,) = connection.execute(query).fetchone() or (0,)
        assert f"this rule alone removes {removed}" in page.inner_text('[data-column="aesthetic"] .note')
        assert selects(dataset, page.input_value("#yaml"), tmp_path) == kept(page)
        field = page.locator('[data-column="motion"] .end:first-child .percent')
        field.fill("37.5")
        field.press("Tab")
        wait_until(page, "document.querySelector('#yaml').value.includes('37.5%')")
        assert selects(dataset, page.input_value("#yaml"), tmp_path) == kept(page)


def test_the_copied_rules_are_those_in_the_box(browser: Any, file: Path) -> None:
    with opened(browser, file, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.click("#copy-yaml")
        wait_until(page, "document.querySelector('.yaml [role=status]').textContent === 'Copied.'")
        assert page.evaluate("navigator.clipboard.readText()") == page.input_value("#yaml")


def test_any_rules_keep_the_very_clips_that_select_keeps(browser: Any, file: Path, dataset: Dataset) -> None:
    random = np.random.default_rng(1)
    judge = """rules => {
        const found = clipmill.judge.judge(new Map(Object.entries(rules)), true);
        const ids = clipmill.judge.columns.get('clip_id');
        return [[...found.kept.keys()].filter(i => found.kept[i]).map(i => ids.texts[ids.codes[i]]).sort(),
            found.steps.map(s => [s.removed, s.unscoredDropped, s.removedAlone, s.unscored, s.left])];
    }"""
    with opened(browser, file) as page:
        for _ in range(25):
            asked: dict[str, dict[str, Any]] = {}
            for name in random.permutation([*VALUES, "duplicate_rank"])[:4]:
                if name == "duplicate_rank":
                    asked[name] = {"max": int(random.integers(0, 2))}
                    continue
                which = random.choice(["drop_lowest", "drop_highest", "min", "max"])
                percentage = f"{random.choice([7, 12.5, 25, 33.3, 50])}%".replace(".0%", "%")
                value = VALUES[name]
                asked[name] = {which: percentage if which.startswith("drop") else value}
                if random.random() < 0.3:
                    asked[name]["unscored"] = "keep"
            clips, steps = page.evaluate(judge, asked)
            rules = Rules.from_values({"name": "any", "rules": asked, "where": "width >= 640"}, origin="test")
            expected = select_clips(dataset, rules, replace=True)
            ids = [row["clip_id"] for batch in selected_clips(dataset, "any", ["clip_id"]) for row in batch.to_pylist()]
            assert clips == ids, asked
            assert steps == [
                [s.removed, s.unscored_dropped, s.removed_alone, s.unscored, s.clips_left] for s in expected.funnel
            ], asked


def test_rules_that_select_skipped_are_shown_and_left_out(browser: Any, tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 30)
    asked = {"name": "some", "rules": {"absent": {"min": 1}, "aesthetic": {"drop_lowest": "25%"}}}
    selection = select_clips(dataset, Rules.from_values(asked, origin="test"), allow_missing=True)
    with opened(browser, Path(write_page(dataset, "some", build_report(dataset, "some")))) as page:
        assert kept(page) == selection.clips
        assert "skipped: unknown column 'absent'" in page.inner_text(".steps")
        assert selects(dataset, page.input_value("#yaml"), tmp_path) == selection.clips


def test_the_page_takes_no_threshold_that_select_refuses(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        before = page.input_value("#yaml")
        field = page.locator('[data-column="text_area"] .end:last-child .value')
        field.fill("7")
        field.press("Tab")
        assert field.get_attribute("aria-invalid") == "true"
        assert page.input_value("#yaml") == before
        assert page.locator('[data-column="duplicate_rank"] .percent').first.is_disabled()


def test_borderline_shows_both_sides_of_the_threshold(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        field = page.locator('[data-column="sharpness"] .end:first-child .value')
        field.fill("0.25")
        field.press("Tab")
        page.select_option(".gallery select >> nth=0", "borderline")
        wait_until(page, "document.querySelectorAll('.gallery h2').length === 2")
        titles = page.locator(".gallery h2").all_inner_texts()
        assert titles == ["Just passing: sharpness from 0.25 dB", "Just failing: sharpness below 0.25 dB"]
        scores = page.locator(".gallery .score.active").all_inner_texts()
        values = [float(text.split()[1]) for text in scores]
        assert values[:8] == sorted(values[:8])
        assert min(values[:8]) >= 0.25 > max(values[8:])
        assert values[8:] == sorted(values[8:], reverse=True)
        failing = page.locator(".gallery .card.dropped .verdict").all_inner_texts()
        assert any("dropped by sharpness: " in text and "< 0.25" in text for text in failing)


def test_a_sample_says_so_and_counts_within_a_few_clips(browser: Any, tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 400)
    rules = Rules.from_values({"name": "most", "rules": {"aesthetic": {"drop_lowest": "30%"}}}, origin="test")
    exact = select_clips(dataset, rules)
    with opened(browser, Path(write_page(dataset, "most", build_report(dataset, "most", most_clips=200)))) as page:
        assert "estimated from a sample of 200" in page.inner_text(".totals")
        (bound,) = page.evaluate("Object.values(clipmill.judged.tests[0].bounds)")
        assert bound == pytest.approx(exact.funnel[0].thresholds["drop_lowest"], abs=0.02)
        before = kept(page)
        assert before == pytest.approx(exact.clips, abs=40)
        page.locator(".gallery .card.kept").first.press("d")  # of one clip, not of the two that it stands for
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips == {before - 1}")
        assert page.input_value('[data-column="aesthetic"] .end:first-child .percent') == "30%"
