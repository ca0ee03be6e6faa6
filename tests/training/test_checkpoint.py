"""Checkpoints: when they get their names, and what an end before its time leaves."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from traceback import StackSummary

import pytest
import torch
from torch.distributed import checkpoint as dcp

from clipmill.errors import UserError
from tests.limits import largest_file
from tests.training.world import Stream, tiny_model, tiny_stage
from training.checkpoint import (
    CheckpointError,
    Checkpoints,
    State,
    complete_checkpoints,
    describe_latest,
    read_metadata,
)
from training.distributed import Process
from training.ema import Ema
from training.loop import NonFinite, run_loop
from training.optimizer import build_optimizer
from training.trainable import freeze_untrained


@pytest.fixture
def state() -> State:
    """Of a network with little that trains."""
    stage = tiny_stage("tiny-noise-swap")
    unet = tiny_model(stage).unet
    freeze_untrained(unet, stage)
    trained = {name: each for name, each in unet.named_parameters() if each.requires_grad}
    return State(network=unet, trained=trained, optimizer=build_optimizer(unet, stage.optimizer), ema=None)


def test_the_first_of_several_ranks_names_a_checkpoint_as_soon_as_it_is_whole(
    state: State, tmp_path: Path, process: Process
) -> None:
    checkpoints = Checkpoints(tmp_path, Process(rank=0, world_size=2, device=process.device))
    checkpoints.save(3, state, {}, {})
    deadline = time.monotonic() + 60
    while not checkpoints.latest() and time.monotonic() < deadline:
        checkpoints.finish_if_done()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.slow
def test_what_ends_a_run_does_not_lose_the_checkpoint_being_written(tmp_path: Path, process: Process) -> None:
    stage = tiny_stage()
    with pytest.raises(NonFinite, match="step 3"):
        run_loop(stage, tiny_model(stage), Stream(stage, poison=5), tmp_path, process)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_disk_that_is_full_already_for_the_place_in_the_data_is_told(
    state: State, tmp_path: Path, process: Process
) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    with largest_file(500), pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        checkpoints.save(3, state, {"place": torch.zeros(1000)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_after_the_samples_that_were_seen(tmp_path: Path, process: Process) -> None:
    stage = tiny_stage(steps=2)
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process)
    metadata_file = tmp_path / "checkpoints" / "step-00000002" / "checkpoint.json"
    metadata_file.write_text(metadata_file.read_text().replace('"world_size": 1', '"world_size": 7'))
    longer, stream = tiny_stage(steps=3), Stream(stage)
    run_loop(longer, tiny_model(longer), stream, tmp_path, process)
    assert stream.batches == 3


@pytest.mark.parametrize("name", ["checkpoint.json", ".metadata", "rank-0.pt", "__0_0.distcp"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04once upon a time"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    state: State, tmp_path: Path, process: Process, name: str, content: bytes
) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(3, state, {"place": 1}, {})
    checkpoints.wait()
    (tmp_path / "step-00000003" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000003 is damaged: .*Remove it to resume from the previous one"):
        checkpoints.load(tmp_path / "step-00000003", state)


def state_of(unet: torch.nn.Module, ema: Ema | None = None) -> State:
    """Of a small network, all of which trains."""
    trained = dict(unet.named_parameters())
    return State(network=unet, trained=trained, optimizer=torch.optim.AdamW(trained.values(), lr=0.1), ema=ema)


def layer(seed: int, width: int = 3) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(width, 2)


def stepped(seed: int) -> State:
    """After a step, so that moments and average are not what they begin with."""
    network = layer(seed)
    state = state_of(network, Ema(dict(network.named_parameters()), 0.5))
    network(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    assert state.ema is not None
    state.ema.update(1)
    return state


def flat(state: State) -> dict[str, torch.Tensor]:
    tensors = state.tensors()
    moments = {f"{name}.{key}": value for name, each in tensors["optimizer"].items() for key, value in each.items()}
    return {name: value.clone() for name, value in (tensors["weights"] | moments).items()} | {
        f"average.{name}": value.clone() for name, value in tensors["average"].items()
    }


def test_all_of_a_state_comes_back(tmp_path: Path, process: Process) -> None:
    """Weights, both moments and the step of AdamW, the average, what was said of it, and the rank's own."""
    checkpoints, before = Checkpoints(tmp_path, process), stepped(0)
    checkpoints.save(7, before, {"place": 5}, {"stage": "mine"})
    checkpoints.wait()
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step-00000007"
    after = stepped(1)
    expected = flat(before)
    assert not all(torch.equal(value, expected[name]) for name, value in flat(after).items())
    metadata, rank_state = checkpoints.load(latest, after)
    assert metadata == {"step": 7, "world_size": 1, "stage": "mine"}
    assert rank_state == {"place": 5}
    loaded = flat(after)
    assert loaded.keys() == expected.keys()
    assert {"weight", "bias.exp_avg", "weight.exp_avg_sq", "bias.step", "average.weight"} <= loaded.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    # The tensors that were read are those that train on.
    after.optimizer.step()
    assert after.optimizer.state[after.trained["weight"]]["step"] == 2


def test_the_moments_of_a_new_optimizer_are_zeros(tmp_path: Path) -> None:
    tensors = state_of(layer(0)).tensors()
    assert set(tensors) == {"weights", "optimizer"}
    assert {key: value.abs().sum().item() for key, value in tensors["optimizer"]["bias"].items()} == {
        "step": 0, "exp_avg": 0, "exp_avg_sq": 0
    }  # fmt: skip
    assert tensors["optimizer"]["weight"]["step"].shape == ()
    assert tensors["optimizer"]["weight"]["exp_avg"].shape == (2, 3)


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_optimizer_counts_its_steps_on_the_device_of_the_parameters(fused: bool) -> None:
    """The meta device stands for a GPU."""
    network = torch.nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.defaults["fused"] = fused
    state = State(network=network, trained=dict(network.named_parameters()), optimizer=optimizer, ema=None)
    steps = {each["step"].device.type for each in state.tensors()["optimizer"].values()}
    assert steps == {"meta" if fused else "cpu"}


def test_what_is_a_rank_s_own_is_read_where_there_are_as_many_ranks(tmp_path: Path, process: Process) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(1, stepped(0), {"place": 5}, {})
    checkpoints.wait()
    folder = tmp_path / "step-00000001"
    metadata = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(metadata | {"world_size": "2"}))
    assert checkpoints.load(folder, stepped(1)) == ({"step": 1, "world_size": 2}, None)


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def test_what_is_a_rank_s_own_runs_no_code(tmp_path: Path, process: Process) -> None:
    checkpoints = Checkpoints(tmp_path / "run", process)
    checkpoints.save(1, stepped(0), {"place": 5}, {})
    checkpoints.wait()
    torch.save({"place": _Code(tmp_path / "ran")}, tmp_path / "run" / "step-00000001" / "rank-0.pt")
    with pytest.raises(CheckpointError, match="step-00000001 is damaged: Weights only load failed"):
        checkpoints.load(tmp_path / "run" / "step-00000001", stepped(1))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (
            lambda: state_of(layer(0)),
            "0 tensors are missing, 2 unexpected, 0 with the wrong shape, first: average.weight",
        ),
        (
            lambda: stepped_like(width=4),
            "0 tensors are missing, 0 unexpected, 4 with the wrong shape, first: weights.weight",
        ),
        (
            lambda: stepped_like(bias=False),
            "0 tensors are missing, 5 unexpected, 0 with the wrong shape, first: weights.bias",
        ),
        (
            lambda: stepped_like(more=True),
            "5 tensors are missing, 0 unexpected, 0 with the wrong shape, first: weights.more",
        ),
    ],
)
def test_another_network_is_refused_with_counts_and_the_first_name(
    other: Callable[[], State], counts: str, tmp_path: Path, process: Process
) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(1, stepped(0), {}, {})
    checkpoints.wait()
    path = tmp_path / "step-00000001"
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path, other())
    assert str(caught.value) == (
        f"{path} does not match the network or model.trainable: {counts}. Resume with the original "
        "settings, or start a new run in another folder"
    )


def stepped_like(*, width: int = 3, bias: bool = True, more: bool = False) -> State:
    network = torch.nn.Linear(width, 2, bias=bias)
    if more:
        network.more = torch.nn.Parameter(torch.zeros(2))
    return state_of(network, Ema(dict(network.named_parameters()), 0.5))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "Expecting value: line 1 column 2 (char 1)"),
        ("[]", "list indices must be integers or slices, not str"),
        ('{"step": 1}', "'world_size'"),
        ('{"step": "x", "world_size": 1}', "invalid literal for int() with base 10: 'x'"),
        (None, "[Errno 2] No such file or directory: 'ABOUT'"),
    ],
)
def test_what_is_known_of_a_checkpoint_may_be_damaged(content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        read_metadata(tmp_path)
    reason = reason.replace("ABOUT", str(tmp_path / "checkpoint.json"))
    assert str(caught.value) == (
        f"checkpoint {tmp_path} is damaged: {reason}. Remove it to resume from the previous one"
    )


def test_numbers_of_a_checkpoint_are_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"step": 3.0, "world_size": "2", "seed": 5}')
    metadata = read_metadata(tmp_path)
    assert metadata == {"step": 3, "world_size": 2, "seed": 5}
    assert type(metadata["step"]) is int


def test_a_checkpoint_holds_nothing_of_an_earlier_attempt(state: State, tmp_path: Path, process: Process) -> None:
    for name in ("step-00000003.tmp", "step-00000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "older").touch()
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(3, state, {}, {})
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert not (tmp_path / "step-00000003" / "older").exists()


def test_the_whole_checkpoints_are_told_oldest_first(tmp_path: Path) -> None:
    assert describe_latest(tmp_path) == "no complete checkpoint yet"
    for name in ("step-00000010", "step-00000005", "step-00000002", "step-00000011.tmp", "step-00000012", "other"):
        (tmp_path / name).mkdir()
        if name != "step-00000012":
            (tmp_path / name / ".metadata").touch()
    whole = [path.name for path in complete_checkpoints(tmp_path)]
    assert whole == ["step-00000002", "step-00000005", "step-00000010"]
    assert describe_latest(tmp_path) == f"last complete checkpoint: {tmp_path / 'step-00000010'}"


def test_a_checkpoint_that_cannot_be_written_says_how_much_room_there_was(tmp_path: Path, process: Process) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path / "file", process).save(3, stepped(0), {}, {})
    assert re.fullmatch(
        r"failed to write the checkpoint after step 3 \(0 MiB free\): .*Not a directory.*; "
        "no complete checkpoint yet",
        str(caught.value),
    )
    checkpoints = Checkpoints(tmp_path, process)
    with largest_file(500), pytest.raises(CheckpointError) as caught:
        checkpoints.save(3, stepped(0), {"place": torch.zeros(1000)}, {})
    free = re.search(r"\(([\d,]+) MiB free\)", str(caught.value))
    assert free is not None
    assert int(free[1].replace(",", "")) == pytest.approx(shutil.disk_usage(tmp_path).free / 2**20, rel=0.2)
    assert not list(tmp_path.glob("step-*"))


def test_the_first_error_beneath_dcp_s_is_the_reason(tmp_path: Path, process: Process) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(1, stepped(0), {}, {})
    checkpoints.wait()
    (tmp_path / "step-00000001" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: \[Errno 2\] No such file or directory: '.*distcp'\. Re"):
        checkpoints.load(tmp_path / "step-00000001", stepped(1))


@pytest.mark.parametrize("beneath", [UserError("s3://bucket does not answer"), EOFError()])
def test_a_store_that_fails_while_a_checkpoint_is_read_is_no_damage(
    beneath: Exception, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints.save(1, stepped(0), {}, {})
    checkpoints.wait()

    def fails(*_: object, **__: object) -> None:
        raise dcp.api.CheckpointException("", {0: (beneath, StackSummary())})

    monkeypatch.setattr(dcp, "load", fails)
    with pytest.raises(UserError) as caught:
        checkpoints.load(tmp_path / "step-00000001", stepped(1))
    if isinstance(beneath, UserError):
        assert caught.value is beneath
    else:
        assert str(caught.value).endswith("damaged: EOFError. Remove it to resume from the previous one")


def test_one_that_is_being_written_gets_its_name_once_it_is_whole(tmp_path: Path, process: Process) -> None:
    """Until then nothing waits for it; on one rank, an error in the background is raised as soon as it is there."""
    checkpoints, written = Checkpoints(tmp_path, process), Future[None]()
    (tmp_path / "step-00000004.tmp").mkdir()
    checkpoints._pending = 4, written
    checkpoints.finish_if_done()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.tmp"]
    written.set_result(None)
    checkpoints.finish_if_done()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    checkpoints.finish_if_done()
    checkpoints._pending = 5, Future()
    checkpoints._pending[1].set_exception(OSError("the disk is gone"))
    with pytest.raises(CheckpointError, match=r"failed to write the checkpoint after step 5 .* the disk is gone"):
        checkpoints.finish_if_done()


def test_of_several_ranks_none_waits_for_one_that_failed(tmp_path: Path, process: Process) -> None:
    checkpoints = Checkpoints(tmp_path, Process(rank=0, world_size=2, device=process.device))
    checkpoints._pending = 5, Future()
    checkpoints._pending[1].set_exception(OSError("the disk is gone"))
    checkpoints.finish_if_done()
    with pytest.raises(CheckpointError, match="the disk is gone"):
        checkpoints.wait()


def test_of_a_run_that_ends_by_an_error_the_lost_checkpoint_is_told(
    tmp_path: Path, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, process)
    checkpoints._pending = 5, Future()
    checkpoints._pending[1].set_exception(OSError("the disk is gone"))
    with pytest.raises(KeyError, match="mine"), checkpoints.settled():
        raise KeyError("mine")
    assert caplog.messages == ["failed to write the last checkpoint: the disk is gone"]


def test_checkpoints_are_thinned_out_but_for_the_last_and_multiples(tmp_path: Path, process: Process) -> None:
    """And what killed runs have left is removed."""
    for step in range(1, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / ".metadata").touch()
    (tmp_path / "step-00000099.tmp").mkdir()
    (tmp_path / "step-00000010.tmp").mkdir()
    (tmp_path / "step-00000010.tmp" / ".metadata").touch()
    checkpoints = Checkpoints(tmp_path, process, keep_last=3, keep_every=4)
    checkpoints._pending = 10, Future()
    checkpoints._pending[1].set_result(None)
    checkpoints.wait()
    assert sorted(int(path.name.removeprefix("step-")) for path in tmp_path.iterdir()) == [4, 7, 8, 10]
    assert Checkpoints(tmp_path, process).keep_every is None


def test_old_checkpoints_that_cannot_be_removed_stay(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system, for example, with a file of theirs open elsewhere."""
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / ".metadata").touch()
    (tmp_path / "step-00000099.tmp").mkdir()
    checkpoints = Checkpoints(tmp_path, process, keep_last=1)
    checkpoints.save(2, stepped(0), {}, {})

    def refuses(*_: object, **__: object) -> None:
        raise PermissionError("in use")

    monkeypatch.setattr(os, "rmdir", refuses)
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002", "step-00000099.tmp"]
