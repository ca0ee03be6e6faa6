"""The page for eyes, fingers and readers: accessibility, screenshots at two sizes and schemes, print."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from tests.curation.report.browser import kept, opened, wait_until
from tests.curation.report.datasets import make

AXE = Path(__file__).parents[3] / "curation/report/template/node_modules/axe-core/axe.min.js"
SIZES = ((1280, 800), (390, 844))

pytestmark = pytest.mark.slow


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


def test_nothing_that_a_file_says_runs(browser: Any, tmp_path: Path) -> None:
    """Captions, file names, tags and their names, column names and meanings, kinds, reasons, folders."""
    dataset = make(tmp_path / "<img src=x onerror='window.attacked=9'>", 40)
    file = Path(write_page(dataset, "all", build_report(dataset)))
    with opened(browser, file) as page:
        page.select_option(".gallery select >> nth=0", "all")
        for tab in page.locator("[role=tab]").all():
            tab.click()
        page.click("#tab-Cuts")
        for source in range(6):
            page.select_option("#panel-Cuts select", str(source))
            page.get_by_role("button", name="Look", exact=True).first.click()
        page.click("#tab-Choose")
        page.locator(".card .open").first.click()
        assert "window.attacked" in page.inner_text("dialog")
        assert page.evaluate("window.attacked") is None
        assert page.evaluate("document.querySelectorAll('body script').length") == 3
        assert page.locator("main img:not(.strip), main iframe, main object").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", SIZES)
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
        page.click("#tab-Choose")
        page.locator(".card .open").first.click()
        assert not page.evaluate("axe.run('dialog').then(found => found.violations.map(violation => violation.id))")
        assert page.evaluate(
            "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('dialog'))"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", SIZES)
def test_every_tab_is_drawn_in_the_scheme_that_is_asked_for(
    browser: Any, compared: Path, screenshots: Path, viewport: tuple[int, int], scheme: str
) -> None:
    """The screenshots are for looking at: CLIPMILL_SCREENSHOTS keeps them."""
    size = {"width": viewport[0], "height": viewport[1]}
    with opened(browser, compared, viewport=size, color_scheme=scheme) as page:
        for tab in page.locator("[role=tab]").all():
            tab.click()
            name = tab.inner_text()
            if name == "Cuts":
                page.get_by_role("button", name="Look", exact=True).first.click()
            _shoot(page, screenshots / f"{name}-{viewport[0]}-{scheme}.png", dark=scheme == "dark")
        page.click("#tab-Choose")
        page.locator(".card .open").first.click()
        _shoot(page, screenshots / f"Details-{viewport[0]}-{scheme}.png", dark=scheme == "dark")


def test_paper_is_light_and_without_controls(browser: Any, compared: Path, screenshots: Path) -> None:
    size = {"width": 794, "height": 1123}  # A4 at 96 dots per inch
    with opened(browser, compared, viewport=size, color_scheme="dark") as page:
        for tab in page.locator("[role=tab]").all():
            tab.click()
            name = tab.inner_text()
            page.emulate_media(media="print", color_scheme="light")
            page.wait_for_timeout(100)  # plots are drawn anew
            _shoot(page, screenshots / f"{name}-print.png", dark=False)
            controls = page.locator("[role=tablist], .controls, .marks, .card button").locator("visible=true")
            assert controls.count() == 0
            darkest = page.locator("canvas").locator("visible=true").evaluate_all(_DARKEST)
            assert all(level < 90 for level in darkest), f"labels of plots are too light to read on paper: {darkest}"
            page.emulate_media(media="screen", color_scheme="dark")
        page.click("#tab-Choose")
        page.pdf(path=str(screenshots / "Choose.pdf"), format="A4")
        assert (screenshots / "Choose.pdf").read_bytes().startswith(b"%PDF")


_DARKEST = """plots => plots.map(plot => {
    const {data} = plot.getContext('2d').getImageData(0, 0, plot.width, plot.height);
    let darkest = 255;
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) darkest = Math.min(darkest, data[i + 1]);
    return darkest;
})"""


def _shoot(page: Any, path: Path, *, dark: bool) -> None:
    """Take a screenshot; it shows something, and on the background of the scheme."""
    page.wait_for_timeout(100)
    page.screenshot(path=path)
    with Image.open(path) as image:
        levels = np.asarray(image.convert("L"))
    assert len(np.unique(levels)) > 20, f"{path.name} is blank"
    background = int(np.median(levels))
    assert background < 60 if dark else background > 195, f"{path.name} is {background} of 255"


@pytest.fixture(scope="module")
def compared(dataset: Dataset) -> Path:
    """A page with every tab."""
    wide = Rules.from_values({"name": "wide", "rules": {"motion": {"drop_lowest": "50%"}}}, origin="test")
    select_clips(dataset, wide, replace=True)
    return Path(write_page(dataset, "looks", build_report(dataset, "start", "wide")))


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("CLIPMILL_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
