"""`clipmill score` on a dataset that is there: exactly once, versions, selections, plug-ins that misbehave."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill import UserError, curate
from curation.dataset.joined import joined_columns
from curation.dataset.tables import Dataset
from pipelines.config import CurateConfig
from pipelines.fence import owned
from pipelines.score import score
from tests.pipelines.corpora import WITHOUT_CLIP, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

FILE = Path(__file__).with_name("scorers.py")
LUMA = f"{FILE}:Luma"
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


def column(dataset: Dataset, name: str) -> dict[str, Any]:
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
    with owned(str(curated)) as live:  # nothing to do: a live run is not stopped for it
        again = score(str(curated), LUMA, take_over=True, quiet=True)
        live.check()
    assert (again.version, again.scored_before, again.scored_now) == (1, len(expected), 0)

    curate([str(videos)], str(curated), config=WITHOUT_CLIP, quiet=True)
    grown = luma_of_previews(dataset)
    assert len(grown) > len(expected)
    assert {clip for clip, value in column(dataset, "luma").items() if value is None} == grown.keys() - expected.keys()
    assert set(column(dataset, "luma_error_kind").values()) == {None, "not_scored"}
    assert score(str(curated), LUMA, quiet=True).scored_now == len(grown) - len(expected)
    assert column(dataset, "luma") == pytest.approx(grown, abs=1e-6)


def test_frames_are_decoded_from_the_span_alone(curated: Path):
    dataset = Dataset(str(curated))
    result = score(str(curated), f"{FILE}:Flicker", quiet=True)
    assert (result.failed_now, result.scored_now) == (0, result.clips)
    flicker, times_s = column(dataset, "flicker"), column(dataset, "flicker_times_s")
    durations_s = column(dataset, "duration_s")
    with dataset.connect() as connection:
        clips = connection.execute("SELECT clip_id, uri, start_s FROM clips").fetchall()
    for clip_id, uri, start_s in clips:
        duration_s = durations_s[clip_id]
        assert duration_s is not None
        with av.open(uri) as video:
            frames = [(float(f.time), f.to_ndarray(format="bgr24")) for f in video.decode(video=0)]
        wanted_s = [start_s + duration_s * (i + 0.5) / 6 for i in range(6)]
        chosen = [max((f for f in frames if f[0] <= at_s + 1e-9), key=lambda f: f[0]) for at_s in wanted_s]
        assert times_s[clip_id] == pytest.approx([at_s - start_s for at_s, _ in chosen], abs=1e-5)
        small = [cv2.resize(image, (64, 36), interpolation=cv2.INTER_AREA).mean(axis=2) for _, image in chosen]
        change = np.mean([np.abs(b - a).mean() for a, b in pairwise(small)])
        assert flicker[clip_id] == pytest.approx(change, rel=0.25)


def test_a_clip_comes_as_a_file_and_a_source_that_is_gone_is_an_error(curated: Path, tmp_path: Path):
    dataset = Dataset(str(shutil.copytree(curated, tmp_path / "copy")))
    assert score(dataset.url, f"{FILE}:Packets", quiet=True).failed_now == 0
    frames, counted = column(dataset, "frames"), column(dataset, "packets")
    assert counted == frames

    moved = dataset.file("clips")
    for part in dataset.parts("clips"):
        table = dataset.read_part("clips", part)
        uris = pa.array([f"{uri}.gone" for uri in table["uri"].to_pylist()])
        place = table.schema.get_field_index("uri")
        dataset.write_part("clips", part, table.set_column(place, table.schema.field("uri"), uris))
    shutil.rmtree(Path(moved).parent / "scores" / "packets")
    result = score(dataset.url, f"{FILE}:Packets", quiet=True)
    assert (result.scored_now, result.failed_now) == (0, len(frames))
    assert all(str(error).startswith("missing: ") for error in column(dataset, "packets_error").values())


def test_a_score_of_clipmill_is_the_same_from_the_command_and_from_curate(curated: Path, tmp_path: Path):
    """From thumbnails that are made again; with the settings of the dataset there is nothing to do."""
    dataset = Dataset(str(shutil.copytree(curated, tmp_path / "copy")))
    same = score(dataset.url, "text_area", quiet=True)
    assert (same.version, same.scored_now, same.scored_before) == (1, 0, same.clips)
    before = column(dataset, "text_area")
    config = CurateConfig.from_values({"text_area": {"giant_confidence": 0.81}}, origin="test")
    other = score(dataset.url, "text_area", config=config, quiet=True)
    assert (other.version, other.scored_now, other.failed_now) == (2, other.clips, 0)
    assert column(dataset, "text_area") == before
    with dataset.connect() as connection:
        known = joined_columns(connection)
        assert known["text_area"][0] == known["text_area@2"][0] == "scores_text_area@2"
        assert known["text_area@1"][0] == "clips"


@pytest.mark.parametrize(
    ("way", "error"),
    [
        ("weights", "the weights of odd are missing: put them into /weights"),
        ("length", r"scorer odd returned \d+ rows for \d+ clips"),
        ("column", "scorer odd returned the column 'even'; it declares odd, odd_text"),
        ("missing column", "scorer odd returned no 'odd_text', which it declares"),
        ("no mapping", "scorer odd: expected a mapping of column to value, got float"),
        ("no list", "scorer odd: expected a list with a row per clip, got dict"),
    ],
)
def test_a_scorer_that_breaks_its_contract_stops_the_run_with_a_sentence(curated: Path, way: str, error: str):
    with pytest.raises(UserError, match=error):
        score(str(curated), f"{FILE}:Odd", config=odd(way), quiet=True)
    assert column_names(Dataset(str(curated))).isdisjoint({"odd", "odd_text"})


def test_a_clip_that_cannot_be_scored_is_null_with_the_reason(curated: Path, tmp_path: Path):
    dataset = Dataset(str(shutil.copytree(curated, tmp_path / "copy")))
    for way, message in (("every clip", "ValueError: there is something wrong with this clip"), ("type", "is float")):
        result = score(dataset.url, f"{FILE}:Odd", config=odd(way), quiet=True)
        assert (result.scored_now, result.failed_now) == (0, result.clips)
        assert message in str(result.reason)
        assert set(column(dataset, "odd").values()) == {None}
        assert set(column(dataset, "odd_error_kind").values()) == {"failed"}
        assert all(message in str(error) for error in column(dataset, "odd_error").values())
    result = score(dataset.url, f"{FILE}:Odd", config=odd("some clips"), quiet=True)
    durations_s, errors = column(dataset, "duration_s"), column(dataset, "odd_error")
    assert 0 < result.failed_now < result.clips or len({d > 2.4 for d in durations_s.values() if d}) == 1
    assert {clip for clip, error in errors.items() if error} == {c for c, d in durations_s.items() if d and d > 2.4}


@pytest.mark.parametrize(
    ("scorer", "error"),
    [
        (f"{FILE}:TakesAColumn", "scorer greedy: the column 'motion' is one of the dataset's own"),
        (f"{FILE}:TakesAName", "the name 'similarity' is taken by"),
        (f"{FILE}:TakesAColumnOfAScore", "scorer greedier: the column 'luma_pictures' belongs to the score luma"),
        (f"{FILE}:NeedsSomething", "stage needy needs 'previws', which no stage before it gives"),
        (f"{FILE}:Dizzy", "expected a scorer's name of lower-case letters"),
        (f"{FILE}:NoScorer", "expected a subclass of"),
        (f"{FILE}:Lumen", r"unknown class 'Lumen'\. Did you mean 'Luma'\?"),
        ("luma", r"unknown scorer 'luma'.*Or name the class"),
        ("nowhere:Luma", "no module 'nowhere'"),
        ("nowhere.py:Luma", "cannot read"),
        (":Luma", "expected a scorer as module:Class"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_an_error_before_anything_is_written(curated: Path, scorer: str, error: str):
    before = sorted(path for path in curated.rglob("*"))
    with pytest.raises(UserError, match=error):
        score(str(curated), scorer, config=odd("nothing"), quiet=True)
    assert sorted(path for path in curated.rglob("*")) == before


def odd(way: str) -> CurateConfig:
    classes = ("Odd", "TakesAColumn", "TakesAName", "TakesAColumnOfAScore", "NeedsSomething", "Dizzy")
    scorers = {f"{FILE}:{name}": {"way": way} for name in classes}
    return CurateConfig.from_values({"scorers": scorers}, origin="test")


def column_names(dataset: Dataset) -> set[str]:
    with dataset.connect() as connection:
        return set(joined_columns(connection))
