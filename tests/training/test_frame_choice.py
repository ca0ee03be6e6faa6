"""Which frames are sampled, by their times alone."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.frame_choice import Distinct, choose_frames


@given(st.integers(2, 60), st.integers(1, 10), st.sampled_from([4.0, 7.0, 24.0, 60.0]), st.integers(0, 99))
def test_chosen_frames_rise_and_lie_in_the_clip(count: int, length: int, rate: float, seed: int) -> None:
    times_s = [0.5 + i / 24 for i in range(count)]
    choose = partial(choose_frames, times_s, lengths=(length,), rates=(rate,), rng=random.Random(seed))
    if (length - 1) / min(rate, 24) > (count - 0.5) / 24 + 1e-6:
        assert choose() is None
        return
    choice = choose()
    assert choice is not None
    assert len(choice.frame_indices) == length
    assert list(choice.frame_indices) == sorted(choice.frame_indices)
    assert choice.frame_indices[0] >= 0
    assert choice.frame_indices[-1] < count
    assert choice.fps == pytest.approx(min(rate, 24), rel=0.35)


@pytest.mark.parametrize("first", range(20))
@pytest.mark.parametrize(("pictures_per_s", "fps"), [(10, 25), (24, 60), (12, 24)])
def test_repeats_are_not_sampled(pictures_per_s: int, fps: int, first: int) -> None:
    times_s = [i / fps for i in range(4 * fps)]
    picture = [i * pictures_per_s // fps for i in range(4 * fps)]
    distinct = Distinct(fps=pictures_per_s, frames=tuple(picture.index(k) for k in range(4 * pictures_per_s)))
    choice = choose_frames(times_s, lengths=(8,), rates=(30.0,), rng=random.Random(first), distinct=distinct)
    assert choice is not None
    pictures = [picture[index] for index in choice.frame_indices]
    assert pictures == list(range(pictures[0], pictures[0] + 8))
    assert choice.fps == pytest.approx(pictures_per_s, rel=0.05)


def test_a_clip_too_short_without_repeats_is_sampled_with_them_and_says_so() -> None:
    times_s = [i / 30 for i in range(60)]
    choice = choose_frames(
        times_s, lengths=(14,), rates=(7.0,), rng=random.Random(0), distinct=Distinct(fps=0.5, frames=(0, 59))
    )
    assert choice is not None
    assert len(choice.frame_indices) == 14
    assert choice.frame_indices[-1] - choice.frame_indices[0] == pytest.approx(13 / 7 * 30, abs=1)
    assert choice.fps == 0.5
