"""Take the pictures of the report that README and docs show.

    python -m docs.report_pictures DEMO_DATASET FOOTAGE_DATASET

DEMO_DATASET is that of `make demo`; FOOTAGE_DATASET is any with a fade, whose sources have addresses fit to be shown.
Needs Chromium (CLIPMILL_CHROMIUM, or on PATH).
"""

import argparse
import io
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from pipelines.report import report

DOCS = Path(__file__).parent
SCORES = ("motion", "similarity", "aesthetic", "text_area")
WIDTH_PX, HEIGHT_PX = 1280, 860
_FIRST_ROWS = """for (const cards of document.querySelectorAll('.groups .cards'))
    [...cards.children].slice(2).forEach(card => card.remove());
document.querySelectorAll('.groups .more').forEach(button => button.remove());
scrollTo(0, document.querySelector('.groups').offsetTop - 90)"""


def main() -> None:
    """Write docs/report.jpg, a picture per score, report-film.jpg and report-cuts.jpg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo")
    parser.add_argument("footage")
    options = parser.parse_args()
    executable = os.environ.get("CLIPMILL_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX}, color_scheme="light")
        _open(page, report(options.demo, "svd-paper").file)
        page.select_option(".gallery select >> nth=1", "aesthetic")
        _save(page, "report.jpg")
        page.select_option(".gallery select >> nth=0", "borderline")
        for score in SCORES:
            page.click(f'[data-column="{score}"] h2 button')
            page.wait_for_timeout(200)
            page.evaluate(_FIRST_ROWS)
            _save(page, f"report-{score.replace('_', '-')}.jpg", page.locator(".groups").bounding_box())
        _open(page, report(options.footage).file)
        page.click("#tab-Choose")
        page.get_by_label("motion: percentage with the lowest that is dropped").fill("25%")
        page.keyboard.press("Enter")
        page.select_option(".gallery select >> nth=0", "borderline")
        _save(page, "report-film.jpg")
        page.click("#tab-Cuts")
        page.locator("#panel-Cuts tr", has_text="black").get_by_role("button", name="Look").first.click()
        _save(page, "report-cuts.jpg", {"x": 0, "y": 0, "width": WIDTH_PX, "height": 700})
        browser.close()


def _open(page: Any, file: str) -> None:
    page.goto(Path(file).resolve().as_uri())
    page.wait_for_selector("html[data-ready]")


def _save(page: Any, name: str, clip: dict[str, float] | None = None) -> None:
    page.wait_for_timeout(300)
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as image:
        image.convert("RGB").save(DOCS / name, quality=85, optimize=True)


if __name__ == "__main__":
    main()
