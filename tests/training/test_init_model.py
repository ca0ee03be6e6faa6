"""What a stage starts from."""

from pathlib import Path

import pytest

from clipmill.errors import UserError
from pipelines.train import resolve_stage
from svd.checkpoint import save_model
from tests.pipelines.test_train import SETTINGS, model_at
from tests.training.world import tiny_model, tiny_stage
from training.init_model import init_model
from training.stages import overlay


def test_new_input_channels_that_would_stay_zero_are_refused(tmp_path: Path) -> None:
    stage = tiny_stage()
    save_model(tiny_model(stage), tmp_path)
    temporal = overlay(tiny_stage("tiny-image-to-video"), {"model": {"trainable": "temporal"}})
    with pytest.raises(ValueError, match=r"has 4 input channels, stage .* expects 8; .* model.trainable=all"):
        init_model(temporal, tmp_path)


def test_a_size_that_the_networks_cannot_have_is_refused_in_one_sentence(tmp_path: Path) -> None:
    stage = resolve_stage("tiny-image-to-video", None, [*SETTINGS, "data.width_px=100"])
    with pytest.raises(UserError, match="100") as caught:
        init_model(stage, model_at(tmp_path, "svd"))
    assert "\n" not in str(caught.value)
    assert "validation error" not in str(caught.value)
