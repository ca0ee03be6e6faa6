"""`clipmill score` on a dataset that is there: exactly once, versions, selections, plug-ins that misbehave."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from clipmill import curate
from curation.dataset.tables import Dataset
from pipelines.config import CurateConfig
from pipelines.score import score
from tests.pipelines.corpora import WITHOUT_CLIP, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

LUMA = f"{Path(__file__).with_name('scorers.py')}:Luma"
SOURCES = 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_small(tmp_path_factory.mktemp("score") / "in", SOURCES)


@pytest.fixture(scope="module")
def curated(videos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray) -> Path:
    out = tmp_path_factory.mktemp("score") / "dataset"
    curate([str(videos)], str(out), config=WITHOUT_CLIP, limit=SOURCES - 2, quiet=True)
    return out


def luma_of_previews(dataset: Dataset, gain: float = 1.0) -> dict[str, float]:
    """clip_id -> the score, computed by a plain loop."""
    expected = {}
    for part in dataset.parts("previews"):
        for row in dataset.read_part("previews", part).to_pylist():
            images = [cv2.imdecode(np.frombuffer(row[name], np.uint8), 1) for name in ("first", "middle", "last")]
            expected[row["clip_id"]] = gain * float(np.mean([image.mean() / 255 for image in images]))
    return expected


def column(dataset: Dataset, name: str) -> dict[str, float | None]:
    with dataset.connect() as connection:
        rows = connection.execute(f'SELECT clip_id, "{name}" FROM joined ORDER BY clip_id').fetchall()
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_clip_is_scored_once_and_new_ones_by_a_rerun(curated: Path, videos: Path):
    dataset = Dataset(str(curated))
    result = score(str(curated), LUMA, quiet=True)
    expected = luma_of_previews(dataset)
    assert (result.version, result.scored_now, result.failed_now) == (1, len(expected), 0)
    assert column(dataset, "luma") == pytest.approx(expected, abs=1e-6)
    again = score(str(curated), LUMA, quiet=True)
    assert (again.version, again.scored_before, again.scored_now) == (1, len(expected), 0)

    curate([str(videos)], str(curated), config=WITHOUT_CLIP, quiet=True)
    grown = luma_of_previews(dataset)
    assert len(grown) > len(expected)
    assert {clip for clip, value in column(dataset, "luma").items() if value is None} == grown.keys() - expected.keys()
    assert set(column(dataset, "luma_error_kind").values()) == {None, "not_scored"}
    assert score(str(curated), LUMA, quiet=True).scored_now == len(grown) - len(expected)
    assert column(dataset, "luma") == pytest.approx(grown, abs=1e-6)


def test_other_settings_make_the_next_version(curated: Path):
    dataset = Dataset(str(curated))
    config = CurateConfig.from_values({"scorers": {LUMA: {"gain": 2}}}, origin="test")
    assert score(str(curated), LUMA, quiet=True).version == 1
    assert score(str(curated), LUMA, config=config, quiet=True).version == 2
    assert column(dataset, "luma") == pytest.approx(luma_of_previews(dataset, 2.0), abs=1e-6)
