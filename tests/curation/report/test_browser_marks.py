"""Marks on the page, against `select --marks`."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.marks import Mark, Marks
from curation.selection.rules import Rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from tests.curation.report.browser import kept, opened, wait_until
from tests.curation.report.conftest import RULES
from tests.curation.report.datasets import make

pytestmark = pytest.mark.slow


def test_marks_count_as_select_counts_them(browser: Any, file: Path, dataset: Dataset) -> None:
    random = np.random.default_rng(2)
    judge = """marks => {
        clipmill.useMarks = true;
        clipmill.marks.clear();
        for (const [id, mark] of Object.entries(marks)) clipmill.marks.set(id, mark);
        clipmill.rejudge();
        const ids = [...clipmill.judged.kept.keys()].filter(i => clipmill.judged.kept[i]).map(i => clipmill.clipId(i));
        return [ids.sort().map(id => id + "\\n").join(""),
            clipmill.judged.steps.map(s => [s.name, s.asked, s.removed, s.unscoredDropped, s.removedAlone, s.left])];
    }"""
    with dataset.connect() as connection:
        ids = [row[0] for row in connection.execute("SELECT clip_id FROM clips ORDER BY 1").fetchall()]
    rules = Rules.from_values({"name": "start", "rules": RULES, "where": "width >= 640"}, origin="test")
    with opened(browser, file) as page:
        for _ in range(8):
            marks = {
                clip_id: {"verdict": str(verdict)} | ({"score": str(random.choice(list(RULES)))} if wrong else {})
                for clip_id in random.choice(ids, 60, replace=False)
                for verdict in [random.choice(["keep", "drop", "bad cut", "wrong score"])]
                for wrong in [verdict == "wrong score"]
            }
            kept_ids, steps = page.evaluate(judge, marks)
            given = Marks(marks=tuple(Mark(clip_id=clip_id, **mark) for clip_id, mark in marks.items()))
            expected = select_clips(dataset, rules, marks=given, dry_run=True)
            assert hashlib.sha256(kept_ids.encode()).hexdigest() == expected.clips_sha256
            assert [[name, *rest] for name, _, *rest in steps] == [
                [s.rule, s.removed, s.unscored_dropped, s.removed_alone, s.clips_left] for s in expected.funnel
            ]
            (asked,) = (asked for name, asked, *_ in steps if name == "--marks")
            assert asked == next(step.asked for step in expected.funnel if step.rule == "--marks")


def test_a_mark_changes_the_count_and_can_be_left_out_of_it(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        before = kept(page)
        page.locator(".gallery .card.kept").first.press("d")
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips == {before - 1}")
        assert page.locator(".steps tbody tr", has_text="--marks").locator("td").first.inner_text() == "drop 1"
        assert "--marks marks.json" in page.inner_text(".yaml .note")
        page.uncheck("#useMarks")
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips == {before}")


def test_the_page_of_a_selection_with_marks_starts_with_its_count(browser: Any, tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 60)
    rules = Rules.from_values({"name": "marked", "rules": {"aesthetic": {"drop_lowest": "25%"}}}, origin="test")
    unmarked = select_clips(dataset, rules)
    first, second, *_ = (row["clip_id"] for batch in selected_clips(dataset, "marked") for row in batch.to_pylist())
    marks = Marks(marks=(Mark(clip_id=first, verdict="drop"), Mark(clip_id=second, verdict="bad cut")))
    marked = select_clips(dataset, rules, marks=marks, replace=True)
    assert marked.clips == unmarked.clips - 2
    with opened(browser, Path(write_page(dataset, "marked", build_report(dataset, "marked")))) as page:
        assert kept(page) == marked.clips
        page.evaluate(f"clipmill.mark(clipmill.places.get('{first}'), 'drop')")  # takes the mark back
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips == {marked.clips + 1}")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert kept(page) == marked.clips + 1


def test_keys_are_heard_in_a_clip_and_after_a_mark(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.locator(".card .open").first.click()
        page.get_by_role("button", name="bad cut").click()  # the button is drawn anew
        page.keyboard.press("k")
        page.keyboard.press("d")
        wait_until(page, "[...clipmill.marks.values()].map((mark) => mark.verdict).join() === 'drop'")
        page.keyboard.press("Escape")
        page.locator("#tab-Duplicates").click()
        page.locator("#panel-Duplicates .card").first.focus()
        page.keyboard.press("k")
        page.wait_for_timeout(100)  # the cards are drawn anew
        page.keyboard.press("w")
        wait_until(page, "[...clipmill.marks.values()].some((mark) => mark.verdict === 'wrong score')")
