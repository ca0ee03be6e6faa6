"""Clips are played from sources and from shards."""

from pathlib import Path
from typing import Any

import fsspec
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
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from curation.shards.folder import index_of, start_shards
from curation.shards.write import plan_shards, write_shard
from pipelines.report import report
from tests.curation.report.browser import kept, opened, served, wait_until
from tests.curation.report.datasets import make
from tests.media import panning, write_video

pytestmark = pytest.mark.slow


def test_it_plays_a_clip_from_its_source(browser: Any, tmp_path: Path) -> None:
    video = tmp_path / "a video #1 %.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3), dtype=np.uint8)
    write_video(video, frames)
    dataset = make(tmp_path / "dataset", 5, video=str(video), scores=False)
    with opened(browser, Path(write_page(dataset, "all", build_report(dataset)))) as page:
        page.locator(".card .open").first.click()
        page.click(".play")
        wait_until(page, "document.querySelector('video').currentTime >= 0.2")


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


def test_it_opens_from_a_bucket_and_plays_from_its_shards(
    browser: Any, sharded: Path, s3_endpoint: str, s3_url: str
) -> None:
    bucket = s3_url.removeprefix("s3://")
    fs = fsspec.filesystem("s3")
    fs.put(str(sharded.parents[1]), f"{bucket}/dataset", recursive=True)
    written = report(f"{s3_url}/dataset", "all")
    assert written.file == f"{s3_url}/dataset/report/all.html"
    for name in ("report/all.html", "shards/all/clips-000000.tar"):
        fs.chmod(f"{bucket}/dataset/{name}", "public-read")
    with opened(browser, f"{s3_endpoint}/{bucket}/dataset/report/all.html", offline=False) as page:
        assert kept(page) == written.clips == 1
        assert s3_url in page.inner_text(".dataset")
        page.locator(".card .open").first.click()
        page.click(".play-shard")
        wait_until(page, "document.querySelector('video')?.currentTime >= 0.5")


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
