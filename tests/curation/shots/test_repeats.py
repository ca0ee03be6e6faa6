"""Repeated pictures by the changes between frames, and in encoded videos."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.inputs.sources import list_sources
from curation.scan.one_pass import scan
from curation.shots.repeats import new_pictures
from tests.media import panning, write_video


def share(changes: list[float] | np.ndarray, fps: float = 25.0) -> float:
    return new_pictures(np.full(len(changes), 1 / fps), np.asarray(changes, np.float64))[1]


def cadence(new: int, period: int, frames: int, *, changed: float = 6.0, repeated: float = 0.3) -> np.ndarray:
    """Changes of footage in which `new` of every `period` frames are new, with the noise of an encoder."""
    rng = np.random.default_rng(new * period)
    is_new = np.diff(np.arange(frames + 1) * new // period) > 0
    return np.where(is_new, changed, repeated) * rng.lognormal(sigma=0.3, size=frames)


@pytest.mark.parametrize(("new", "period"), [(1, 2), (2, 5), (1, 3), (1, 4), (4, 5), (5, 6), (3, 4), (1, 5)])
@pytest.mark.parametrize("repeated", [0.0, 0.3, 2.0])
def test_a_cadence_of_repeats_is_seen_through_noise(new: int, period: int, repeated: float):
    changes = cadence(new, period, 250, repeated=repeated)
    assert share(changes) == pytest.approx(new / period, rel=0.03)


@pytest.mark.parametrize("seed", range(10))
def test_footage_that_speeds_up_and_slows_down_has_no_repeats(seed: int):
    rng = np.random.default_rng(seed)
    speed = 4 * np.exp(np.convolve(rng.normal(size=300), np.ones(12) / 6, "same"))
    groups = np.tile([1.0, 0.75, 0.9, 0.75], 75)  # frames that an encoder treats alike
    assert share(speed * groups * rng.lognormal(sigma=0.15, size=300)) == 1


@pytest.mark.parametrize("level", [0.0, 0.1, 0.6])
def test_where_nothing_moves_nothing_is_said(level: float):
    assert share(np.full(200, level)) == 1
    assert share(level * np.random.default_rng(0).random(200)) == 1


def test_pictures_that_change_rarely_count_as_often_as_they_change():
    changes = np.full(300, 0.05)
    changes[9::10] = 3.0
    assert share(changes, fps=30) == pytest.approx(0.1, rel=0.1)


def test_stillness_between_bursts_does_not_count():
    moving, still = cadence(1, 2, 100), np.full(400, 0.05)
    assert share(np.concatenate([moving, still, moving])) == pytest.approx(0.5, rel=0.1)


@settings(deadline=None)
@given(st.lists(st.floats(0, 255), min_size=1, max_size=80), st.floats(0.001, 10))
def test_a_share_is_a_share(changes: list[float], interval_s: float):
    new, share_of_new = new_pictures(np.full(len(changes), interval_s), np.array(changes))
    assert len(new) == len(changes)
    assert 0 < share_of_new <= 1
    assert new.all() == (share_of_new == 1)


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"crf": "20", "preset": "veryfast"}), ("mpeg4", {"b": "4M"})]
)
@pytest.mark.parametrize(("pictures_per_s", "fps"), [(24, 60), (10, 25), (25, 25)])
def test_repeats_in_a_file_are_told_to_the_model(
    tmp_path: Path, codec: str, options: dict[str, str], pictures_per_s: int, fps: int
):
    pictures = panning(height=90, pixels_per_frame=2, frames=3 * pictures_per_s)
    frames = [pictures[i * pictures_per_s // fps] for i in range(3 * fps)]
    (source,) = list_sources([str(write_video(tmp_path / "a.mp4", frames, fps=fps, codec=codec, options=options))])
    found = scan(source)
    (clip,) = found.clips
    assert (round(found.source["fps"]), round(clip["fps"])) == (fps, fps)
    assert found.source["distinct_fps"] == pytest.approx(pictures_per_s, rel=0.02)
    assert clip["distinct_fps"] == pytest.approx(pictures_per_s, rel=0.02)
    assert clip["fps_id"] == pictures_per_s - 1
    new = [0, *(i for i in range(1, 3 * fps) if i * pictures_per_s // fps > (i - 1) * pictures_per_s // fps)]
    assert clip["distinct_frames"] == (None if pictures_per_s == fps else new)
