"""The check of inputs from the command line to the trainer finds what is wrong with a clip, and only that."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import Clip, Outcome, check_clip, compare, difference, listed, run
from tests.media import panning, write_video

FRAMES, FPS = 50, 25
TIMES_S = [i / FPS for i in range(FRAMES)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Outcome:
    """Of a video that is right."""
    folder = tmp_path_factory.mktemp("inputs")
    path = write_video(folder / "a.mp4", panning(height=72, pixels_per_frame=2, frames=FRAMES), fps=FPS)
    (found,) = run([str(path)], folder, 0.5).values()
    return found


def problems(clip: Clip, times_s: list[float], members: Mapping[str, bytes] | None) -> list[str]:
    found = Outcome()
    check_clip(Clip(clip.row, members), times_s, found)
    return found.problems


@pytest.mark.slow
def test_a_video_that_is_right(outcome: Outcome) -> None:
    assert outcome.problems == []
    assert {clip.row["extraction"] for clip in outcome.clips} == {"remux", "transcode"}
    assert len(outcome.levels) == 2
    assert max(outcome.levels) < 3


@pytest.mark.slow
def test_what_is_wrong_is_found(outcome: Outcome) -> None:
    for clip in outcome.clips:
        extraction, members = clip.row["extraction"], clip.members
        assert members is not None
        assert problems(clip, TIMES_S, members) == []
        assert problems(clip, TIMES_S, None) == [f"{extraction}: not in the shards"]
        assert problems(clip, [1.01 * time_s for time_s in TIMES_S], members) == [
            f"{extraction}: other times than in the source"
        ]
        shorter = Clip(clip.row | {"frames": FRAMES - 1}, members)
        assert problems(shorter, TIMES_S, members) == [f"{extraction}: {FRAMES} frames of {FRAMES - 1}"]
        (unreadable,) = problems(clip, TIMES_S, {**members, "mp4": members["mp4"][:200]})
        assert unreadable.startswith(f"{extraction}: training cannot read it")


@pytest.mark.slow
def test_remuxed_frames_are_those_of_the_source(outcome: Outcome) -> None:
    shifted = [
        Clip(clip.row | {"start_frame": 5}, clip.members) if clip.row["extraction"] == "remux" else clip
        for clip in outcome.clips
    ]
    found = replace(outcome, clips=shifted, problems=[])
    compare(found)
    assert found.problems
    assert all("remuxed and transcoded differ" in problem for problem in found.problems)


def test_an_odd_row_may_be_missing_at_either_end() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    assert difference(picture, picture) == difference(picture, picture[1:]) == difference(picture[:-1], picture) == 0
    assert difference(picture, picture[2:]) == float("inf")
    assert difference(picture, picture[::-1]) > 50


def test_an_input_that_is_refused_as_a_whole(tmp_path: Path) -> None:
    workbook, other = str(tmp_path / "book.xlsx"), str(tmp_path / "a.mp4")
    for path in (workbook, other):
        Path(path).write_bytes(b"PK\x03\x04")
    taken, refused = listed([workbook, other])
    assert taken == [other]
    assert "export it as CSV" in refused[workbook]
