"""Captions on the page, and the similarity of each, when captioners ran after the score."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipmill import storage
from clipmill.columns import with_values
from curation.dataset.score_versions import RecordedVersion, ScoreVersion
from curation.dataset.tables import Dataset
from curation.report.model import build_report
from curation.report.page import write_page
from tests.curation.report.browser import opened
from tests.curation.report.datasets import HOSTILE, make

pytestmark = pytest.mark.slow


def caption(dataset: Dataset, captioner: str, version: int, text: str, parts: list[str]) -> None:
    """Add a version of a captioner, as `clipmill caption` does."""
    root = f"captions/{captioner}"
    made_with = ScoreVersion(scorer_version=1, settings={"prompt": text})
    recorded = RecordedVersion(
        version=version, made_with=made_with, target="", created=f"2026-01-0{version}", finished=True
    )
    dataset.record_versions(root, [*dataset.recorded_versions(root), recorded])
    for part in parts:
        ids = dataset.read_part("clips", part, ["clip_id"])["clip_id"]
        columns = {"clip_id": ids, f"{captioner}_caption": pa.array([text] * len(ids))}
        columns |= {f"{captioner}_{name}": pa.nulls(len(ids), pa.string()) for name in ("error", "error_kind")}
        dataset.write_part(f"{root}/v{version}", part, pa.table(columns))


def shown(browser: Any, dataset: Dataset) -> list[tuple[str, str]]:
    """Source and similarity of each caption in the details of a clip, and the caption of its card."""
    with opened(browser, Path(write_page(dataset, "all", build_report(dataset)))) as page:
        card = page.locator(".gallery .card").first
        text = card.locator(".caption").inner_text()
        card.locator(".open").click()
        rows = page.locator("dialog table", has_text="similarity (cosine)").locator("tbody tr")
        cells = [row.locator("th, td").all_inner_texts() for row in rows.all()]
        return [*((source, similarity) for source, _, similarity in cells), ("card", text)]


def test_a_caption_that_is_newer_than_the_score_has_no_similarity(browser: Any, tmp_path: Path) -> None:
    dataset = make(tmp_path / "dataset", 5, scores=False)
    parts = dataset.parts("clips")
    for part in parts:
        table = dataset.read_part("clips", part)
        dataset.write_part("clips", part, with_values(table, "similarity_captions", [[0.25, 0.5]] * table.num_rows))
    caption(dataset, "video", 1, "a video", parts)
    models = {"captions": {"video": 1}}
    storage.write_json(dataset.fs, dataset.file("models.json"), models)
    came, *scored = shown(browser, dataset)
    assert any(came[0] in hostile for hostile in HOSTILE)
    assert (came[1], scored) == ("0.25", [("video", "0.5"), ("card", "a video")])

    caption(dataset, "coca", 2, "a picture", parts)  # stands before the video captioner's
    assert shown(browser, dataset)[1:] == [("coca", "–"), ("video", "0.5"), ("card", "a picture")]

    caption(dataset, "video", 3, "another video", parts)
    assert shown(browser, dataset) == [came, ("coca", "–"), ("video", "–"), ("card", "another video")]
