"""One sample of a shard: whatever its JSON holds, it becomes a sample or says why not."""

import json
import math
from typing import Any

import cv2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.shards import about, numbered
from training.data_config import DataConfig
from training.frames import SampleError
from training.latents import latent_members
from training.samples import Sample, read_sample

CONFIG = DataConfig(frames=1, height_px=32, width_px=48)
PICTURE = cv2.imencode(".jpg", numbered(77))[1].tobytes()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CAPTIONS = st.lists(st.fixed_dictionaries({}, optional={"source": VALUES, "text": VALUES}) | VALUES, max_size=3)
CONDITIONING = st.fixed_dictionaries({}, optional={"motion_bucket": VALUES, "elevation": VALUES})


def read(content: Any) -> Sample:
    return read_sample("a", {"json": json.dumps(content).encode(), "jpg": PICTURE}, CONFIG, seed=0)


@given(VALUES | st.fixed_dictionaries({}, optional={"captions": CAPTIONS, "conditioning": CONDITIONING}))
def test_any_json_gives_a_sample_that_can_be_trained_on_or_a_reason(content: Any) -> None:
    try:
        sample = read(content)
    except SampleError:
        return
    assert isinstance(sample.caption, str)
    assert 0 <= sample.motion_bucket <= 255
    assert -90 <= sample.elevation <= 90


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conditioning": None}, "missing_field: its JSON has no 'conditioning', or not as dict: None"),
        ({"captions": {}}, "missing_field: its JSON has no 'captions', or not as list"),
        ({"captions": ["a text"]}, "bad_field: a caption has a text"),
        ({"conditioning": {"motion_bucket": float("nan")}}, "its motion_bucket should be a number from 0 to 255"),
        ({"conditioning": {"elevation": 100}}, "its elevation should be a number from -90 to 90, came 100"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        read(about(**changes))


def test_what_is_no_json_is_told() -> None:
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(SampleError, match="bad_json"):
            read_sample("a", {"json": content, "jpg": PICTURE}, CONFIG, seed=0)


@pytest.mark.parametrize("latent", [None, {}, {"fps": 0, "picture": False}, {"fps": "8", "picture": False}, {"fps": 8}])
def test_latents_whose_rate_is_not_known_are_told(latent: Any) -> None:
    mean = torch.zeros(1, 4, 4, 6)
    members = latent_members(
        about(), mean_TCHW=mean, logvar_TCHW=mean, ends_ECHW=torch.zeros(2, 3, 32, 48), fps=8.0, picture=False
    )
    assert read_sample("a", members, CONFIG, seed=0).fps == 8
    with pytest.raises(SampleError, match="_field"):
        read_sample("a", members | {"json": json.dumps(about(latent=latent)).encode()}, CONFIG, seed=0)


def latent_files(**changes: Any) -> dict[str, bytes]:
    """The files of a latent sample, its JSON changed."""
    latent = torch.zeros(2, 4, 4, 6)
    ends = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    files = latent_members(about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=ends, fps=8.0, picture=False)
    return files | {"json": json.dumps(json.loads(files["json"]) | changes).encode()}


@pytest.mark.parametrize(
    "changes",
    [
        {"captions": ["text"]},
        {"captions": [{"source": "coca", "text": 3}]},
        *({"conditioning": {"motion_bucket": value}} for value in ("high", [1], math.nan, 300, -1)),
        *({"conditioning": {"motion_bucket": 1, "elevation": value}} for value in (91, "up", [])),
        *({"latent": value} for value in (None, {}, [], {"fps": "8", "picture": False}, {"fps": 8, "picture": 1})),
        {"latent": {"fps": math.nan, "picture": False}},
    ],
)  # fmt: skip
def test_a_malformed_field_is_a_reason(changes: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match=r"bad_field|missing_field"):
        read_sample("a", latent_files(**changes), CONFIG, seed=0)
