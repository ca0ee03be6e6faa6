"""Pieces of small parts are scored together, and every clip keeps its own footage."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import SourceError
from clipmill.pipeline import Frames
from curation.shards.frames import ClipFrames
from pipelines.clip_batch import ClipBatch
from pipelines.score_stages import Piece, grouped

FRAMES = Frames(count=1, long_side_px=2)


def pieces_of(sizes: list[int]) -> list[Piece]:
    return [Piece(part=f"p{i}", rows=np.arange(size, dtype=np.int32)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 30), st.integers(0, 30))
def test_groups_hold_all_pieces_in_order_and_enough_clips(sizes: list[int], at_least: int, more: int) -> None:
    at_most = at_least + more
    pieces = pieces_of(sizes)
    groups = grouped(pieces, at_least=at_least, at_most=at_most)
    assert [piece for group in groups for piece in group] == pieces
    clips = [sum(len(piece.rows) for piece in group) for group in groups]
    for i, group in enumerate(groups):
        assert clips[i] <= at_most or len(group) == 1
        if clips[i] < at_least and i + 1 < len(groups):
            assert clips[i] + len(groups[i + 1][0].rows) > at_most
        assert clips[i] - len(group[-1].rows) < at_least


def test_scorers_that_take_any_number_of_clips_get_one_piece_at_a_time() -> None:
    pieces = pieces_of([1, 2, 3])
    assert grouped(pieces, at_least=1, at_most=256) == [(piece,) for piece in pieces]


def batch_of(part: str, levels: list[int | None]) -> ClipBatch:
    """Clips with one frame each, of this level; None: it cannot be read."""
    batch = ClipBatch([{"clip_id": f"{part}-{level}", "captions": []} for level in levels], part=part)
    pixels = [None if level is None else [bytes([level] * 3)] for level in levels]
    batch.footage[FRAMES] = [p and ClipFrames(times_s=[0.0], height=1, width=1, pixels=p) for p in pixels]
    batch.unread = {(i, FRAMES): SourceError("missing", part) for i, level in enumerate(levels) if level is None}
    return batch


def test_joined_batches_share_rows_and_keep_footage_with_its_clip() -> None:
    batches = [batch_of("a", [1, None]), batch_of("b", [None, 4, 5]), batch_of("c", [6])]
    joined = ClipBatch.joined(batches)
    for row, view in zip(joined.rows, joined.views([FRAMES]), strict=True):
        row["seen"] = view.message if isinstance(view, SourceError) else f"{row['clip_id'][0]}-{view.frames[0].max()}"
    assert [[row["seen"] for row in batch.rows] for batch in batches] == [["a-1", "a"], ["b", "b-4", "b-5"], ["c-6"]]
    assert ClipBatch.joined(batches[:1]) is batches[0]
