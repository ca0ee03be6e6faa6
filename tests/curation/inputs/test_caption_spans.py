"""Which captions belong to a clip, by time, and how many at most."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.inputs.caption import Caption, TimedCaption
from curation.inputs.captions import (
    MAX_CHARS,
    MAX_CLIP_BYTES,
    MAX_PER_CLIP,
    MAX_SOURCE_BYTES,
    captions_between,
    captions_of_clips,
)

# Clips


def timed(start_s: float | None, end_s: float | None, text: str = "t") -> TimedCaption:
    return TimedCaption(caption=Caption(source="sidecar", text=text), start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(
    ("start_s", "end_s", "belongs"),
    [
        (None, None, True),
        (10.0, 14.0, True),
        (0.0, 100.0, True),
        (10.0, 12.0, True),
        (10.0, 11.9, False),
        (12.0, 30.0, True),
        (12.1, 30.0, False),
        (11.0, 13.0, True),
        (0.0, 10.0, False),
        (14.0, 20.0, False),
        (30.0, 40.0, False),
        (12.0, None, True),
        (13.0, None, False),
        (None, 12.0, True),
        (None, 5.0, False),
    ],
)
def test_a_caption_belongs_to_a_clip_of_which_it_covers_half(start_s: float, end_s: float, belongs: bool):
    assert bool(captions_between([timed(start_s, end_s)], 10.0, 14.0)) == belongs


def test_a_clip_has_each_caption_once_in_order_and_not_endlessly_many():
    captions = [timed(None, None, "b"), timed(0, 5, "a"), timed(1, 6, "a"), timed(9, 12, "c")]
    assert [c.text for c in captions_between(captions, 0, 6)] == ["b", "a"]
    many = captions_between([timed(None, None, str(i)) for i in range(1000)], 0, 6)
    assert [c.text for c in many] == [*map(str, range(MAX_PER_CLIP)), None]
    assert many[-1].error == "1000 captions for one clip; only the first 32 were kept"


@given(
    cuts=st.lists(st.floats(0, 100), min_size=2, max_size=6, unique=True).map(sorted),
    start_s=st.floats(0, 100),
    length_s=st.floats(0.1, 100),
)
def test_of_clips_in_a_row_those_get_a_caption_that_it_mostly_covers(
    cuts: list[float], start_s: float, length_s: float
):
    caption = timed(start_s, start_s + length_s)
    for first_s, last_s in itertools.pairwise(cuts):
        covered_s = max(0.0, min(last_s, start_s + length_s) - max(first_s, start_s))
        share = covered_s / (last_s - first_s)
        if not math.isclose(share, 0.5, rel_tol=1e-6):
            assert bool(captions_between([caption], first_s, last_s)) == (share > 0.5)


_BOUND = st.none() | st.integers(0, 12).map(float)


@given(
    captions=st.lists(st.tuples(_BOUND, _BOUND, st.sampled_from("abc")), max_size=12),
    clips=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=6),
)
def test_all_clips_at_once_get_what_each_gets_by_the_rule(captions: list[Any], clips: list[tuple[int, int]]):
    chosen = [timed(*caption) for caption in captions]
    spans = [(float(start), float(start + length)) for start, length in clips]

    def covers(caption: TimedCaption, start_s: float, end_s: float) -> bool:
        first_s = start_s if caption.start_s is None else max(start_s, caption.start_s)
        last_s = end_s if caption.end_s is None else min(end_s, caption.end_s)
        return last_s - first_s >= (end_s - start_s) / 2

    expected = [list(dict.fromkeys(c.caption for c in chosen if covers(c, *span))) for span in spans]
    assert captions_of_clips(chosen, spans) == expected
    assert [captions_between(chosen, *span) for span in spans] == expected


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, MAX_CHARS), max_size=MAX_PER_CLIP + 2),
    clips=st.integers(1, 3000),
    letter=st.sampled_from(["x", "\u00e9", "\u732b", "\U0001f431"]),
)
def test_captions_times_clips_are_bounded(sizes: list[int], clips: int, letter: str):
    captions = [timed(None, None, letter * size) for size in sizes]
    rows = captions_of_clips(captions, [(float(i), i + 1.0) for i in range(clips)])
    note_bytes = 200
    assert len(rows) == clips
    for row in rows:
        assert sum(len((c.text or "").encode()) for c in row) <= MAX_CLIP_BYTES
        assert len(row) <= MAX_PER_CLIP + 1
    assert sum(len((c.text or "").encode()) for row in rows for c in row) <= MAX_SOURCE_BYTES + note_bytes * clips


def test_captions_are_left_out_only_when_there_are_too_many_and_it_is_said():
    clips_s = [(float(i), i + 1.0) for i in range(3840)]
    assert (
        captions_of_clips([timed(None, None, "a cat")], clips_s) == [[Caption(source="sidecar", text="a cat")]] * 3840
    )
    for row in captions_of_clips([timed(None, None, "a cat"), timed(None, None, "x" * MAX_CHARS)], clips_s):
        assert [c.text for c in row] == ["a cat", None]
        assert "captions dropped" in row[1].error
