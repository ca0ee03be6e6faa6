"""Ranks: FSDP2 around the network, collectives, and what a run leaves behind in its process."""

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.training.world import Stream, tiny_model, tiny_stage
from training.distributed import Process, all_reduce, barrier, distribute, gather, leave, once
from training.loop import Hooks, run_loop
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


@pytest.mark.parametrize("in_group", [False, True])
def test_what_one_rank_computes_or_raises_is_everybody_s(in_group: bool, process: Process) -> None:
    if in_group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert once(lambda: {"a": 1}) == {"a": 1}
    assert once(lambda: None) is None
    with pytest.raises(ValueError, match="no shards"):
        once(lambda: (_ for _ in ()).throw(ValueError("no shards")))
    assert gather("mine") == ["mine"]
    sums = torch.tensor([3.0])
    all_reduce(sums)
    assert sums.tolist() == [3.0]
    barrier()


@pytest.mark.parametrize("strategy", ["none", "ddp"])
def test_a_run_leaves_no_threads_of_gloo(strategy: str, tmp_path: Path, process: Process) -> None:
    """They would start OpenMP threads of their own, and with more of those than cores all of them run slowly."""
    before = threads_of_gloo()
    stage = tiny_stage(strategy=strategy)
    alive: list[int] = []
    hooks = Hooks(on_log=lambda _: alive.append(threads_of_gloo(collect=False)))
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process, hooks=hooks)
    assert len(alive) == stage.run.steps
    # Those of the checkpoints' group are gone after the run, the others with the process.
    assert min(alive) > threads_of_gloo() > before if strategy == "ddp" else set(alive) == {before}
    leave()
    assert threads_of_gloo() == before


def threads_of_gloo(*, collect: bool = True) -> int:
    """Counted after freeing what is no longer used: a group's threads end with the last reference to it."""
    if collect:
        gc.collect()
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)
