"""The tabs of the page: pairs, duplicates, cuts, two selections, details of a clip."""

import re
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import yaml

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.removal import remove_from_selections
from curation.selection.rules import Rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from tests.curation.report.browser import opened, wait_until
from tests.curation.report.datasets import HOSTILE, make

pytestmark = pytest.mark.slow


def test_text_boxes_lie_over_the_frame_that_they_are_in(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.locator(".card .open").first.click()
        frame, shape = (page.locator(f"dialog .frame {what}").bounding_box() for what in ("img", "polygon"))
        left = (shape["x"] - frame["x"]) / frame["width"]
        right = (shape["x"] + shape["width"] - frame["x"]) / frame["width"]
        assert (left, right) == (pytest.approx(1.1 / 3, abs=0.01), pytest.approx(1.4 / 3, abs=0.01))
        assert "middle 0.07 (decides)" in page.inner_text("figcaption")


def test_a_clip_is_shown_with_its_captions(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        cards = page.locator(".gallery .card")
        assert cards.count() > 0
        for text in cards.all_inner_texts():
            assert any(" ".join(each.split())[:20] in " ".join(text.split()) for each in HOSTILE), text
        page.locator(".card .open").first.click()
        (caption,) = page.locator("dialog table", has_text="similarity (cosine)").locator("tbody tr").all_inner_texts()
        assert any(" ".join(each.split())[:20] in " ".join(caption.split()) for each in HOSTILE), caption


def test_a_cut_is_shown_with_the_signals_around_it(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Cuts")
        page.get_by_role("button", name="Look", exact=True).first.click()
        assert "hard at frame 25" in page.inner_text(".signal .note")
        assert page.locator(".signal canvas").count() == 1


def test_a_refused_cut_says_why(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Cuts")
        refused = page.locator("#panel-Cuts table", has_text="Refused proposals (1)").locator("tbody tr")
        assert HOSTILE[3] in refused.inner_text()
        refused.get_by_role("button", name="Look").click()
        assert f"refused: {HOSTILE[3]}" in page.inner_text(".signal .note")


def test_the_timeline_has_every_shot_of_the_source(browser: Any, file: Path) -> None:
    titles = "[...document.querySelectorAll('.timeline .kind-shot title')].map((title) => title.textContent)"
    with opened(browser, file) as page:
        page.click("#tab-Cuts")
        assert page.evaluate(titles) == ["shot 0 s to 1 s", "shot 1 s to 195.9 s"]  # the end of its last clip
        page.select_option("#panel-Cuts select", label="/videos/only-short-shots.mp4 (no clips)")
        assert page.evaluate(titles) == ["shot 0 s to 0.1 s: no clip", "shot 0.1 s to 3 s: no clip"]
        assert page.locator(".timeline + .ends").inner_text().split() == ["0", "s", "3", "s"]


def test_a_source_without_clips_is_found_with_its_cuts(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Cuts")
        assert page.locator("#panel-Cuts select option").count() == 6
        page.fill("#find-source", "only-short")
        page.press("#find-source", "Enter")
        wait_until(page, "document.querySelectorAll('#panel-Cuts select option').length === 1")
        text = page.inner_text("#panel-Cuts")
        assert "/videos/only-short-shots.mp4 (no clips)" in text
        assert "no shot yields a clip of 2 s" in text
        assert "Transitions (1)" in text
        assert page.evaluate("document.activeElement.id") == "find-source"


def test_two_selections_side_by_side(browser: Any, dataset: Dataset) -> None:
    wide = Rules.from_values({"name": "wide", "rules": {"motion": {"drop_lowest": "50%"}}}, origin="test")
    select_clips(dataset, wide, replace=True)
    file = Path(write_page(dataset, "compared", build_report(dataset, "start", "wide")))
    kept_ids = {
        name: {row["clip_id"] for batch in selected_clips(dataset, name, ["clip_id"]) for row in batch.to_pylist()}
        for name in ("start", "wide")
    }
    with opened(browser, file) as page:
        page.click("#tab-Compare")
        counts = page.locator(".compare table >> nth=0").locator("tbody td:nth-child(2)").all_inner_texts()
        start, wide_ids = kept_ids["start"], kept_ids["wide"]
        expected = [start, wide_ids, start & wide_ids, start - wide_ids, wide_ids - start]
        assert [int(n) for n in counts] == list(map(len, expected))
        assert page.locator(".compare .card").count() > 0


def test_a_selection_that_lost_clips_says_so(browser: Any, tmp_path: Path) -> None:
    dataset, gone = make(tmp_path / "dataset", 20, scores=False), "0" * 16
    selection = select_clips(dataset, Rules.from_values({"name": "some", "where": "aesthetic > 4"}, origin="test"))
    lost = sum(row["source_id"] == gone for batch in selected_clips(dataset, "some") for row in batch.to_pylist())
    remove_from_selections(dataset, {gone})
    for part in dataset.parts("clips"):
        rows = dataset.read_part("clips", part)
        dataset.write_part("clips", part, rows.filter(pc.not_equal(rows["source_id"], gone)))
    with opened(browser, Path(write_page(dataset, "some", build_report(dataset, "some")))) as page:
        page.click("#tab-Overview")
        text = page.inner_text("#panel-Overview")
    assert f"Funnel of some as written: {selection.clips - lost} clips" in text
    assert f"some: {lost} of its clips were removed from the dataset later." in text
    assert "some: The dataset had 20 clips then, and has 16 now: select again." in text
    assert re.search(rf"where\s+{20 - selection.clips}\s+{selection.clips}\s", text)


BRUSH = """() => {
    const over = document.querySelector('.scatter .u-over').getBoundingClientRect();
    return [over.x, over.y, over.width, over.height];
}"""


def test_a_brush_selects_clips_and_becomes_rules(browser: Any, file: Path, dataset: Dataset) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Pairs")
        page.select_option("#panel-Pairs select >> nth=0", "aesthetic")
        page.select_option("#panel-Pairs select >> nth=1", "sharpness")
        x, y, width, height = page.evaluate(BRUSH)
        page.mouse.move(x + 0.3 * width, y + 0.25 * height)
        page.mouse.down()
        page.mouse.move(x + 0.7 * width, y + 0.6 * height, steps=4)
        page.mouse.up()
        (low, high), (least, most) = ([float(page.input_value(f"#brush-{s}-{e}")) for e in (0, 1)] for s in "xy")
        assert low < high
        assert least < most
        told = int(re.match(r"\d+", page.inner_text(".pairs [role=status]"))[0])  # type: ignore[index]
        page.click("text=Show the brushed clips")
        assert page.inner_text(".gallery h2") == f"Brushed: {told}"
        page.click("#tab-Pairs")
        page.click("text=Use the brush as rules")
        rules = {"aesthetic": {"min": low, "max": high}, "sharpness": {"min": least, "max": most}}
        with dataset.connect() as connection:
            [(inside,)] = connection.execute(
                f"SELECT count(*) FROM joined WHERE aesthetic BETWEEN {low}::FLOAT AND {high}::FLOAT "
                f"AND sharpness BETWEEN {least} AND {most}"
            ).fetchall()
        assert 0 < inside < 200
        assert abs(inside - told) <= 2  # the brush lies between pixels, rules are rounded to four digits
        wait_until(page, "document.querySelector('#yaml').value.includes('sharpness')")
        copied = yaml.safe_load(page.input_value("#yaml"))["rules"]
        assert {name: copied[name] for name in rules} == rules


def test_a_brush_is_typed_and_stays_when_thresholds_move(browser: Any, file: Path, dataset: Dataset) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Pairs")
        page.select_option("#panel-Pairs select >> nth=0", "aesthetic")
        page.select_option("#panel-Pairs select >> nth=1", "sharpness")
        page.fill("#brush-x-0", "5.5")
        page.press("#brush-x-0", "Tab")
        with dataset.connect() as connection:
            query = "SELECT count(*) FROM joined WHERE aesthetic >= 5.5"
            [(inside,)] = connection.execute(query).fetchall()
        assert page.inner_text(".pairs [role=status]").startswith(f"{inside} clips brushed")
        box = page.locator(".scatter .u-select").bounding_box()
        page.evaluate("clipmill.change('sharpness', {min: 0.5})")
        page.wait_for_timeout(100)
        assert page.locator(".scatter .u-select").bounding_box() == box
        page.fill("#brush-x-0", "nonsense")
        page.press("#brush-x-0", "Tab")
        assert page.get_attribute("#brush-x-0", "aria-invalid") == "true"


def test_rank_correlations_are_spearmans(browser: Any, file: Path, dataset: Dataset) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Pairs")
        labels = page.locator(".heat button").evaluate_all("all => all.map(b => b.getAttribute('aria-label'))")
        shown = {tuple(label.rsplit(": ", 1)[0].split(" and ")): label.rsplit(": ", 1)[1] for label in labels}
        pairs = [("motion", "aesthetic"), ("text_area", "sharpness"), ("aesthetic", "duplicate_rank")]
        with dataset.connect() as connection:
            for a, b in pairs:
                ranks = ", ".join(
                    f"rank() OVER (ORDER BY {name}) + (count(*) OVER (PARTITION BY {name}) - 1) / 2 AS r{i}"
                    for i, name in enumerate((a, b))
                )
                [(rho,)] = connection.execute(
                    f"SELECT corr(r0, r1) FROM (SELECT {ranks} FROM joined WHERE isfinite({a}) AND isfinite({b}))"
                ).fetchall()
                assert float(shown[a, b]) == float(shown[b, a]) == pytest.approx(rho, abs=0.006)
        assert {shown[name, name] for name in ("motion", "aesthetic", "sharpness")} == {"1.00"}
        page.get_by_role("button", name="text_area and sharpness").click()
        chosen = [page.input_value(f"#panel-Pairs select >> nth={i}") for i in (0, 1)]
        assert chosen == ["sharpness", "text_area"]


def test_another_copy_is_kept_instead_of_the_best(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.click("#tab-Duplicates")
        group = page.locator("#panel-Duplicates .group").first
        best, copy = (group.locator(".card").nth(i) for i in (0, 1))
        assert "best of the group" in best.inner_text()
        assert "cosine 0.97" in copy.inner_text()
        copy.get_by_role("button", name="Keep this one instead").click()
        wait_until(page, "document.querySelector('#panel-Duplicates .card').innerText.includes('your mark: drop')")
        assert "✓ kept" in group.locator(".card").nth(1).inner_text()
        group.locator(".card").nth(0).get_by_role("button", name="Keep this one instead").click()
        wait_until(page, "document.querySelector('#panel-Duplicates .card').innerText.includes('marked keep')")
        assert "marked drop" in group.locator(".card").nth(1).inner_text()


def test_details_show_every_column_that_has_a_value(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.locator(".card .open").first.click()
        rows = page.locator("dialog table.columns tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText))"
        )
        shown = {row[0]: row[1:] for row in rows}
        assert shown["sharpness"][1:] == ["dB", "how sharp <i>it</i> is"]
        assert shown["license"][0] in ("CC0", "CC BY 4.0")
        assert shown["hdr"][0] in ("yes", "no")
        assert float(shown["bit_depth"][0]) in (8, 10)
        assert shown["metadata"][0].startswith("license CC")
