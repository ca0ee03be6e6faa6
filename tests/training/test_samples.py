"""One sample: what is wrong with its JSON is a reason to leave it out, never a crash."""

import json
import math
from typing import Any

import pytest
import torch

from tests.training.shards import about
from training.data_config import DataConfig
from training.frames import SampleError
from training.latents import latent_members
from training.samples import read_sample

CONFIG = DataConfig(frames=2, height_px=32, width_px=48)


def members(**changes: Any) -> dict[str, bytes]:
    """The files of a latent sample, its JSON changed."""
    latent = torch.zeros(2, 4, 4, 6)
    ends = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    files = latent_members(about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=ends, fps=8.0, picture=False)
    return files | {"json": json.dumps(json.loads(files["json"]) | changes).encode()}


def test_the_sample_itself_can_be_read() -> None:
    assert read_sample("a", members(), CONFIG, seed=0).fps == 8.0


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
        read_sample("a", members(**changes), CONFIG, seed=0)
