"""A scan that a child gave back: what fits the tables passes, everything else is a crash of that source alone."""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clipmill.errors import SourceError
from curation.inputs.sources import Source, list_sources
from curation.scan.one_pass import Scan, scan
from curation.scan.validate import check_scan, fits
from tests.media import panning, write_video


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Scan]:
    path: Path = tmp_path_factory.mktemp("check") / "a.mp4"
    write_video(path, panning(height=96, pixels_per_frame=1, frames=60))
    (source,) = list_sources([str(path)])
    return source, scan(source)


def test_a_scan_passes(scanned: tuple[Source, Scan]):
    check_scan(scanned[1], scanned[0])


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "/other.mp4"},
        {"source_id": "0" * 16},
        {"status": "rejected"},
        {"frames": "60"},
        {"frames": 1 << 63},
        {"audio": 1},
        {"unknown": 1},
        {"note": b"bytes"},
        {"transitions": [{"kind": "hard", "more": 1}]},
    ],
)
def test_a_source_row_that_is_not_its_own_is_refused(scanned: tuple[Source, Scan], change: dict[str, Any]):
    source, good = scanned
    bad = dataclasses.replace(good, source=good.source | change)
    with pytest.raises(SourceError, match="invalid rows") as caught:
        check_scan(bad, source)
    assert caught.value.kind == "crashed"


@pytest.mark.parametrize(
    "change",
    [
        {"source_id": "0" * 16},
        {"clip_id": "../../x"},
        {"motion": "fast"},
        {"captions": [{"source": "list", "text": ["x"], "error": None}]},
        {"thumbnail_pts": [0]},
        {"width": True},
    ],
)
def test_a_clip_row_that_does_not_fit_is_refused(scanned: tuple[Source, Scan], change: dict[str, Any]):
    source, good = scanned
    with pytest.raises(SourceError, match="invalid rows"):
        check_scan(dataclasses.replace(good, clips=[good.clips[0] | change]), source)


def test_thumbnails_are_jpegs_of_a_sane_size(scanned: tuple[Source, Scan]):
    source, good = scanned
    _, giant = cv2.imencode(".jpg", np.zeros((8, 5000, 3), np.uint8))
    for jpeg in (b"", b"\xff\xd8 and nothing", giant.tobytes()):
        with pytest.raises(SourceError, match="thumbnails"):
            check_scan(dataclasses.replace(good, thumbnails=[(jpeg,) * 3]), source)
    with pytest.raises(SourceError, match="thumbnails"):
        check_scan(dataclasses.replace(good, thumbnails=[]), source)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)
TYPES = (
    *(pa.bool_(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()),
    *(pa.list_(pa.int64()), pa.list_(pa.list_(pa.float32())), pa.struct([("a", pa.string()), ("b", pa.int32())])),
)


@given(value=VALUES, kind=st.sampled_from(TYPES))
@example(value=0, kind=pa.bool_())
@example(value=0, kind=pa.string())
@example(value=2**24 + 1, kind=pa.float32())
@example(value=2**53 + 1, kind=pa.float64())
def test_what_fits_can_be_written(value: object, kind: pa.DataType):
    if fits(value, kind):
        pa.array([value], kind)
