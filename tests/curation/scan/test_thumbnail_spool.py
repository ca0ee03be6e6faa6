"""Candidate thumbnails: the right three of a clip, also after room was made; bounded bytes; a full disk: no verdict."""

import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import RunStopped
from clipmill.spool import Spool
from curation.scan.thumbnail_spool import ThumbnailSpool
from tests.limits import largest_file

IMAGE = np.zeros((8, 8, 3), np.uint8)


def noise(side_px: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)


def filled(pts: list[int], max_bytes: int = 1 << 30, side_px: int = 8) -> ThumbnailSpool:
    spool = ThumbnailSpool(max_bytes)
    for i, at in enumerate(pts):
        spool.add(at, float(at), noise(side_px, i))
    return spool


@given(
    pts=st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True).map(sorted),
    start=st.integers(-60, 60),
    length=st.integers(1, 60),
)
def test_the_thumbnails_nearest_to_start_middle_and_end(pts: list[int], start: int, length: int):
    inside = [at for at in pts if start <= at < start + length]
    with filled(pts) as spool:
        chosen, jpegs = spool.first_middle_last(start, start + length)
    assert len(jpegs) == len(chosen)
    if inside:
        middle = min(inside, key=lambda at: abs(2 * at - 2 * start - length))
        assert chosen == [inside[0], middle, inside[-1]]
    else:
        assert chosen == []


@given(pts=st.integers(2**62, 2**62 + 2**61))
def test_the_middle_is_exact_at_the_end_of_64_bits(pts: int):
    with filled([pts, pts + 1, pts + 2, pts + 3, pts + 4]) as spool:
        assert spool.first_middle_last(pts, pts + 5)[0] == [pts, pts + 2, pts + 4]


@given(cuts=st.lists(st.integers(1, 59), min_size=1, max_size=6, unique=True).map(sorted))
def test_dropping_what_is_decided_changes_no_choice(cuts: list[int]):
    bounds = [0, *cuts, 60]
    spans = list(itertools.pairwise(bounds))
    with filled(list(range(60))) as whole, filled(list(range(60))) as spool:
        spool.drop_decided(spans[:-1], cuts[-1])
        assert spool.size_bytes < whole.size_bytes or len(cuts) > 3 or cuts[-1] < 12
        assert [spool.first_middle_last(*span) for span in spans] == [whole.first_middle_last(*span) for span in spans]


def test_a_shot_without_end_and_thumbnails_of_noise_stay_within_the_limit():
    limit = 200_000
    with ThumbnailSpool(limit) as spool:
        decided: list[tuple[int, int]] = []
        for i in range(300):
            if spool.due(i + 1.0, 0.5):
                spool.add(i, float(i), noise(64, i))
            if spool.crowded:
                spool.drop_decided(decided, 0)
            assert spool.size_bytes <= limit * 1.1
        first, middle, last = spool.first_middle_last(0, 300)[0]
        assert (first, 140 <= middle <= 160, last >= 250) == (0, True, True)
        assert all(spool.first_middle_last(i, i + 40)[0] for i in range(0, 260, 5)), "thinned out evenly"
        assert "s apart" in (spool.note or "")
        spool.drop_decided([(0, 300)], 299)
        assert spool.due(300.0, 0.5)


def test_thumbnails_of_decided_clips_get_smaller_where_there_are_too_many():
    with ThumbnailSpool(300_000) as spool:
        for i in range(12):
            spool.add(i, float(i), noise(256, i))
        spool.drop_decided([(i, i + 1) for i in range(12)], 12)
        assert spool.size_bytes <= 150_000
        _, (first, *_) = spool.first_middle_last(3, 4)
        image = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape[0] < 256
        assert "downscaled" in (spool.note or "")


def test_a_file_that_cannot_grow_stops_the_run():
    with Spool(in_memory_bytes=100) as spool, largest_file(50_000), pytest.raises(RunStopped, match=r"TMPDIR"):
        spool.put(bytes(100_000))


def test_a_temporary_folder_that_is_not_there_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with Spool(in_memory_bytes=10) as spool, pytest.raises(RunStopped, match="gone: No such file or directory"):
        spool.put(bytes(100))
    with ThumbnailSpool(1 << 20, in_memory_bytes=10) as spool, pytest.raises(RunStopped):
        spool.add(0, 0.0, IMAGE)


def test_pieces_are_found_again_after_others_were_dropped():
    with Spool(in_memory_bytes=64) as spool:
        pieces = [(spool.put(bytes([i]) * (i + 1)), i + 1) for i in range(30)]
        kept = pieces[::3]
        starts = spool.keep(kept)
        assert spool.size_bytes == sum(size for _, size in kept)
        assert [spool.get(start, size)[0] for start, (_, size) in zip(starts, kept, strict=True)] == list(
            range(0, 30, 3)
        )
        assert spool.get(spool.put(b"more"), 4) == b"more"
