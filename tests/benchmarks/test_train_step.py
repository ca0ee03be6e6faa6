"""The training step that is timed does the same work as the one with diffusers and accelerate."""

import pytest


@pytest.mark.slow
def test_both_loops_take_the_same_step() -> None:
    # Every process of the tests imports this file, and diffusers takes seconds.
    from benchmarks.train_step import CPU_STAGE, difference, random_network, stage_of, time_ours

    stage = stage_of(*CPU_STAGE, compiled=False)
    unet = random_network(stage)
    assert difference(stage, unet, "cpu") == pytest.approx({"loss_difference": 0, "norm_difference": 0}, abs=1e-5)
    assert len(time_ours(stage, unet, "cpu", steps=1)) == 1
