"""What a stage starts from."""

from pathlib import Path

import pytest

from svd.checkpoint import save_model
from tests.training.world import tiny_model, tiny_stage
from training.init_model import init_model
from training.stages import overlay


def test_new_input_channels_that_would_stay_zero_are_refused(tmp_path: Path) -> None:
    stage = tiny_stage()
    save_model(tiny_model(stage), tmp_path)
    temporal = overlay(tiny_stage("tiny-image-to-video"), {"model": {"trainable": "temporal"}})
    with pytest.raises(ValueError, match=r"has 4 input channels, stage .* expects 8; .* model.trainable=all"):
        init_model(temporal, tmp_path)
