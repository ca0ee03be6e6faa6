"""Previews: what they show, and that a run is the same with them as without."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.training.world import Stream, tiny_model, tiny_stage
from training.batch import Batch
from training.distributed import Process
from training.loop import Hooks, run_loop
from training.metrics import Log
from training.preview import make, preview
from training.stages import Stage, overlay


def run(stage: Stage, out: Path, process: Process, hooks: Hooks | None = None) -> list[float]:
    """Train a new model; the losses."""
    run_loop(stage, tiny_model(stage), Stream(stage), out, process, hooks=hooks)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def looking(model: Any, stage: Stage, batch: Batch, *_: Any) -> None:
    """A preview that throws away what it sees."""
    make(model, stage, batch, 0)


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """AdamW's of a checkpoint, by name."""
    stored = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(meta.size) for name, meta in stored.items() if name.endswith("exp_avg")}
    dcp.load(tensors, checkpoint_id=checkpoint)
    return tensors


@pytest.mark.slow
def test_a_preview_changes_neither_the_run_nor_its_checkpoint(tmp_path: Path, process: Process) -> None:
    """With FSDP2, which keeps some weights gathered after a pass without a backward pass."""
    stage = tiny_stage(steps=3, save_every=2, sample_every=1, sample_steps=1, strategy="fsdp")
    expected = run(stage, tmp_path / "without", process)
    assert run(stage, tmp_path / "with", process, Hooks(preview=looking)) == expected
    without, seen = (moments(tmp_path / name / "checkpoints" / "step-00000002") for name in ("without", "with"))
    assert all(torch.equal(without[name], seen[name]) for name in without)
    assert seen["optimizer.conv_out.weight.exp_avg"].any()


@pytest.mark.slow
def test_a_preview_that_fails_leaves_the_checkpoint_of_its_step(tmp_path: Path, process: Process) -> None:
    """So that a run whose preview does not fit into memory gets past it."""

    def failing(*_: Any) -> None:
        assert torch.is_autocast_enabled("cpu")
        raise MemoryError

    stage = tiny_stage(steps=2, sample_every=2, precision="bf16")
    with pytest.raises(MemoryError):
        run(stage, tmp_path, process, Hooks(preview=failing))
    assert run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process).resumed_at == 2


@pytest.mark.slow
def test_samples_come_one_by_one_and_a_few_frames_at_a_time(tmp_path: Path) -> None:
    stage = overlay(tiny_stage(sample_steps=1), {"data": {"frames": 5}})
    model, decoded = tiny_model(stage), []
    model.autoencoder.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    log = Log(tmp_path, 0)
    preview(tmp_path, model, stage, Stream(stage).batch([0, 1]), 7, log)
    log.close()
    assert decoded == [4, 1, 4, 1]
    assert (tmp_path / "step-00000007.png").is_file()


@pytest.mark.slow
def test_in_joint_training_a_video_is_shown_also_after_a_picture(tmp_path: Path, process: Process) -> None:
    class Joint(Stream):
        def batch(self, samples: list[int]) -> Batch:
            batch = super().batch(samples)
            if samples[0] % 4 == 0:
                return batch
            assert batch.mean_BTCHW is not None
            mean_BTCHW = batch.mean_BTCHW[:, :1]
            return replace(batch, image_only=True, mean_BTCHW=mean_BTCHW, logvar_BTCHW=torch.zeros_like(mean_BTCHW))

    shown: list[Batch] = []
    stage = tiny_stage(steps=2, sample_every=2, image_share=0.5)
    hooks = Hooks(preview=lambda model, stage, batch, *_: shown.append(batch))
    run_loop(stage, tiny_model(stage), Joint(stage), tmp_path, process, hooks=hooks)
    assert [batch.keys for batch in shown] == [["world/0", "world/1"]]
