"""Checkpoints: when they get their names, and what an end before its time leaves."""

import resource
import time
from pathlib import Path

import pytest
import torch

from tests.training.world import Stream, tiny_model, tiny_stage
from training.checkpoint import CheckpointError, Checkpoints, State
from training.distributed import Ranks
from training.loop import NonFinite, choose_trained, train
from training.optimizer import build_optimizer


@pytest.fixture
def state() -> State:
    """Of a network with little that trains."""
    stage = tiny_stage("tiny-noise-swap")
    unet = tiny_model(stage).unet
    choose_trained(unet, stage)
    trained = {name: each for name, each in unet.named_parameters() if each.requires_grad}
    return State(network=unet, trained=trained, optimizer=build_optimizer(unet, stage.optimizer), ema=None)


def test_the_first_of_several_ranks_names_a_checkpoint_as_soon_as_it_is_whole(
    state: State, tmp_path: Path, ranks: Ranks
) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks(rank=0, count=2, device=ranks.device))
    checkpoints.save(3, state, {}, {})
    deadline = time.monotonic() + 60
    while not checkpoints.latest() and time.monotonic() < deadline:
        checkpoints.finish_if_done()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_what_ends_a_run_does_not_lose_the_checkpoint_being_written(tmp_path: Path, ranks: Ranks) -> None:
    stage = tiny_stage()
    with pytest.raises(NonFinite, match="step 3"):
        train(stage, tiny_model(stage), Stream(stage, poison=5), tmp_path, ranks)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_disk_that_is_full_already_for_the_place_in_the_data_is_told(
    state: State, tmp_path: Path, ranks: Ranks
) -> None:
    checkpoints = Checkpoints(tmp_path, ranks)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(CheckpointError, match="there is no whole one yet"):
            checkpoints.save(3, state, {"place": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_another_number_of_ranks_goes_on_after_the_samples_that_were_seen(tmp_path: Path, ranks: Ranks) -> None:
    stage = tiny_stage(steps=2)
    train(stage, tiny_model(stage), Stream(stage), tmp_path, ranks)
    about = tmp_path / "checkpoints" / "step-00000002" / "checkpoint.json"
    about.write_text(about.read_text().replace('"ranks": 1', '"ranks": 7'))
    longer, stream = tiny_stage(steps=3), Stream(stage)
    train(longer, tiny_model(longer), stream, tmp_path, ranks)
    assert stream.batches == 3


@pytest.mark.parametrize("name", ["checkpoint.json", ".metadata", "rank-0.pt", "__0_0.distcp"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04once upon a time"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    state: State, tmp_path: Path, ranks: Ranks, name: str, content: bytes
) -> None:
    checkpoints = Checkpoints(tmp_path, ranks)
    checkpoints.save(3, state, {"place": 1}, {})
    checkpoints.wait()
    (tmp_path / "step-00000003" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000003 is damaged: .*Remove it to continue from the one before"):
        checkpoints.load(tmp_path / "step-00000003", state)
