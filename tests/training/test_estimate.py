"""Costs before they arise: what counts as work, and what as doing it twice."""

import pytest

from tests.training.world import tiny_stage
from training.estimate import Estimate, estimate
from training.stages import overlay


def costs(**model: object) -> Estimate:
    return estimate(overlay(tiny_stage(batch_size=2), {"model": model}))


@pytest.mark.slow
def test_work_is_counted_once_and_by_what_trains() -> None:
    whole, again, temporal = costs(), costs(checkpointing=True), costs(trainable="temporal")
    assert whole.model_flops == pytest.approx(2 * 3 * whole.forward_flops)
    assert again.model_flops == whole.model_flops
    assert again.step_flops == pytest.approx(whole.step_flops + 2 * whole.forward_flops)
    assert whole.step_flops == pytest.approx(whole.model_flops + 2 * whole.encode_flops)
    assert 2 * 2 * whole.forward_flops < temporal.model_flops < 0.9 * whole.model_flops
