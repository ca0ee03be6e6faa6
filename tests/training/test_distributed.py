"""FSDP2 around the network."""

import warnings
from typing import Any

import pytest
import torch

from tests.training.world import Stream, tiny_model, tiny_stage
from training.distributed import Process, distribute, once
from training.objective import Objective


def test_sharded_bf16_weights_leave_noise_level_and_ids_in_float32(process: Process) -> None:
    stage = tiny_stage("tiny-image-to-video")
    model = tiny_model(stage)
    network, seen = distribute(model.unet, "fsdp", bf16=True, unused=False), []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.extend((args[1].dtype, kwargs["ids_BK"].dtype))

    network.register_forward_pre_hook(look, with_kwargs=True)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*view.*")  # FSDP2's, of a root that returns one
        losses = Objective(model, stage)(network, Stream(stage).batch([0, 1]), [1, 2])
    assert seen == [torch.float32, torch.float32]
    losses.loss_B.mean().backward()
    assert losses.loss_B.isfinite().all()


def test_what_one_rank_computes_or_raises_is_everybody_s(process: Process) -> None:
    assert once(lambda: {"a": 1}) == {"a": 1}
    assert once(lambda: None) is None
    with pytest.raises(ValueError, match="no shards"):
        once(lambda: (_ for _ in ()).throw(ValueError("no shards")))
