"""The motion bucket at its reference points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.motion_bucket import motion_bucket


@pytest.mark.parametrize(
    ("motion", "bucket"),
    [
        (0.0, 0),
        (1.0, 36),
        (10.0, 127),
        (30.0, 182),
        (120.0, 255),
        (1e6, 255),
        (-0.1, 0),
        (None, None),
    ],
)
def test_motion_buckets_at_reference_points(motion: float | None, bucket: int | None):
    assert motion_bucket(motion) == bucket


@given(st.floats(0, 500), st.floats(0, 500))
def test_more_motion_is_never_a_lower_bucket(one: float, other: float):
    low, high = sorted((one, other))
    assert 0 <= motion_bucket(low) <= motion_bucket(high) <= 255
