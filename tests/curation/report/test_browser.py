"""The page in a real browser, opened from disk without a network, against what `select` and DuckDB say."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipmill.shard_folder import write_index
from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.inputs.sources import list_sources
from curation.report.model import build_report
from curation.report.page import write_page
from curation.scan.one_pass import ScanConfig, scan
from curation.selection.marks import Mark, Marks
from curation.selection.rules import Rules, load_rules
from curation.selection.select import select_clips, selected_clips
from curation.shards.folder import index_of, start_shards
from curation.shards.write import plan_shards, write_shard
from tests.curation.report.browser import launched, opened, served, wait_until
from tests.curation.report.datasets import HOSTILE, make
from tests.media import panning, write_video

AXE = Path(__file__).parents[3] / "curation/report/template/node_modules/axe-core/axe.min.js"
VALUES = {"motion": 5.3, "aesthetic": 5.0123, "text_area": 0.07, "width": 640, "sharpness": 0.1}
RULES = {"motion": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}, "duplicate_rank": {"max": 0}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = make(tmp_path_factory.mktemp("report") / "dataset", 200)
    select_clips(made, Rules.from_values({"name": "start", "rules": RULES, "where": "width >= 640"}, origin="test"))
    return made


@pytest.fixture(scope="module")
def file(dataset: Dataset) -> Path:
    return Path(write_page(dataset, "start", build_report(dataset, "start")))


def kept(page: Any) -> int:
    return int(page.get_attribute("#kept-clips", "data-clips"))


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


def test_nothing_that_a_file_says_runs(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.select_option(".gallery select >> nth=0", "all")
        for tab in page.locator("[role=tab]").all():
            tab.click()
        page.click("#tab-Choose")
        page.locator(".card .open").first.click()
        assert "window.attacked" in page.inner_text("dialog")
        assert page.evaluate("window.attacked") is None
        assert page.evaluate("document.querySelectorAll('body script').length") == 3
        assert page.locator("main img:not(.strip), main iframe, main object").count() == 0


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


def test_it_is_walked_by_keyboard_and_marks_clips(browser: Any, file: Path, tmp_path: Path) -> None:
    with opened(browser, file) as page:
        page.focus("#tab-Choose")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-Pairs"
        page.keyboard.press("ArrowLeft")
        handle = page.locator('[data-column="aesthetic"] .handle.min')
        handle.focus()
        before = kept(page)
        for _ in range(6):
            page.keyboard.press("PageUp")
        wait_until(page, f"document.querySelector('#kept-clips').dataset.clips != {before}")
        page.locator(".card").first.focus()
        page.keyboard.press("b")
        page.wait_for_selector("#export-marks")
        with page.expect_download() as download:
            page.click("#export-marks")
        download.value.save_as(tmp_path / "marks.json")
        assert '"verdict": "bad cut"' in (tmp_path / "marks.json").read_text()
        page.locator(".card").first.press("Enter")
        assert page.locator("dialog[open]").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0


def test_text_boxes_lie_over_the_frame_that_they_are_in(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        page.locator(".card .open").first.click()
        frame, shape = (page.locator(f"dialog .frame {what}").bounding_box() for what in ("img", "polygon"))
        left = (shape["x"] - frame["x"]) / frame["width"]
        right = (shape["x"] + shape["width"] - frame["x"]) / frame["width"]
        assert (left, right) == (pytest.approx(1.1 / 3, abs=0.01), pytest.approx(1.4 / 3, abs=0.01))
        assert "middle 0.07 (decides)" in page.inner_text("figcaption")


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [(1280, 800), (390, 844)])
def test_it_is_accessible(browser: Any, file: Path, viewport: tuple[int, int], scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: make check fetches it")
    size = {"width": viewport[0], "height": viewport[1]}
    with opened(browser, file, viewport=size, color_scheme=scheme, bypass_csp=True) as page:
        page.evaluate(AXE.read_text())
        for tab in page.locator("[role=tab]").all():
            tab.click()
            page.wait_for_timeout(50)
            violations = page.evaluate("axe.run().then(found => found.violations)")
            found = {v["id"]: [node["html"][:160] for node in v["nodes"][:3]] for v in violations}
            assert not found, tab.inner_text()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab.inner_text()


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


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a dataset whose source is gone after shards were written."""
    folder = tmp_path_factory.mktemp("sharded")
    video = write_video(folder / "source.mp4", panning(height=180, pixels_per_frame=2, frames=72))
    dataset = Dataset(str(folder / "dataset")).create_or_open({})
    scanned = scan(next(iter(list_sources([str(video)]))), ScanConfig())
    dataset.write_part("clips", "p", pa.Table.from_pylist(scanned.clips, CLIPS))
    dataset.write_part("sources", "p", pa.Table.from_pylist([scanned.source], SOURCES))
    select_clips(dataset, Rules(name="all"))
    plans = plan_shards(pa.Table.from_pylist(scanned.clips), kind="clips")
    shards = dataset.file("shards", "all")
    start_shards(shards, plans, selection="all", settings={})
    records = [write_shard(plan, shards, selection="all") for plan in plans]
    write_index(shards, index_of(plans, records, selection="all", settings={}))
    video.unlink()
    return Path(write_page(dataset, "all", build_report(dataset, "all")))


def test_it_plays_a_clip_from_a_chosen_shard(browser: Any, sharded: Path, tmp_path: Path) -> None:
    tar = sharded.parents[1] / "shards/all/clips-000000.tar"
    other = tmp_path / tar.name
    other.write_bytes(bytes(tar.stat().st_size))
    with opened(browser, sharded) as page:
        page.locator(".card .open").first.click()
        page.click(".play-shard")
        wait_until(page, "document.querySelector('.video [role=status]').textContent.startsWith('Choose the file')")
        assert "shards/all/clips-000000.tar" in page.inner_text(".video [role=status]")
        page.set_input_files(".video input[type=file]", other)
        wait_until(page, "document.querySelector('.video [role=status]').textContent.includes('is not shards/all')")
        page.set_input_files(".video input[type=file]", tar)
        wait_until(page, "document.querySelector('video')?.currentTime >= 0.5")
        assert page.evaluate("document.querySelector('video').duration") == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("ranges", [True, False])
def test_it_plays_a_clip_from_a_shard_beside_a_served_page(browser: Any, sharded: Path, ranges: bool) -> None:
    with (
        served(sharded.parents[1], ranges=ranges) as url,
        opened(browser, f"{url}/report/all.html", offline=False) as page,
    ):
        page.locator(".card .open").first.click()
        page.click(".play-shard")
        if ranges:
            wait_until(page, "document.querySelector('video')?.currentTime >= 0.5")
        else:
            wait_until(page, "document.querySelector('.video [role=status]').textContent.includes('range requests')")


def test_it_plays_a_clip_from_its_source(browser: Any, tmp_path: Path) -> None:
    video = tmp_path / "a video #1 %.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3), dtype=np.uint8)
    write_video(video, frames)
    dataset = make(tmp_path / "dataset", 5, video=str(video), scores=False)
    with opened(browser, Path(write_page(dataset, "all", build_report(dataset)))) as page:
        page.locator(".card .open").first.click()
        page.click(".play")
        wait_until(page, "document.querySelector('video').currentTime >= 0.2")
