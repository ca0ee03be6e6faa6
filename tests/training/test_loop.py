"""The loop: what it learns, what a kill changes (nothing), what more ranks change (nothing), and what stops it."""

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svd.unet import Block
from tests.limits import largest_file
from tests.svd.networks import DEEP, inputs, random_unet, randomise
from tests.training.worker import STOPPED, start, wait
from tests.training.world import Stream, tiny_model, tiny_stage
from training.checkpoint import CheckpointError
from training.distributed import Process
from training.loop import NonFinite, gradient_accumulation_steps, run_loop
from training.stages import Stage, overlay
from training.trainable import compile_blocks, freeze_untrained

pytestmark = pytest.mark.slow


def losses(out: Path) -> list[float]:
    """The losses of metrics.jsonl, in order; steps have to be 1, 2, 3..."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def finish(out: Path, settings: dict[str, Any], world_size: int = 1) -> list[float]:
    """Run to the end; the losses."""
    assert wait(start(out, settings, world_size)) == [0] * world_size
    return losses(out)


def test_it_learns_a_moving_pattern(tmp_path: Path, process: Process) -> None:
    stage = overlay(tiny_stage(steps=60, save_every=60), {"optimizer": {"lr": 3e-3}})
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process)
    curve = losses(tmp_path)
    assert sum(curve[-15:]) < 0.8 * sum(curve[:15])


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_killed_at_any_step_goes_on_as_if_it_had_not_been(tmp_path: Path, count: int) -> None:
    """Killed with -9 at a moment drawn by chance, then stopped by a SIGTERM to its last rank between two checkpoints;
    losses and weights are equal bit by bit."""
    settings = {"run": {"steps": 12, "batch_size": 4, "save_every": 4}}
    expected, killed = finish(tmp_path / "whole", settings, count), tmp_path / "killed"
    chance = random.Random(count)
    processes = start_and_wait_for(killed, settings, count, lines=chance.randint(5, 7))
    for process in processes:
        process.kill()
    assert wait(processes) == [-signal.SIGKILL] * count
    processes = start_and_wait_for(killed, settings, count, lines=9)
    processes[-1].terminate()
    assert wait(processes) == [STOPPED] * count
    stopped_at = max(int(path.name.removeprefix("step-")) for path in (killed / "checkpoints").iterdir())
    assert 9 <= stopped_at < 12
    assert finish(killed, settings, count) == expected
    assert json.loads((killed / "resumed.json").read_text()) == stopped_at
    weights, again = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def start_and_wait_for(out: Path, settings: dict[str, Any], count: int, lines: int) -> list[BaseProcess]:
    """Processes that have logged so many steps."""
    processes, metrics = start(out, settings, count), out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") >= lines):
        time.sleep(0.005)
    return processes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_with_batches_twice_as_large(tmp_path: Path, strategy: str) -> None:
    run = {"steps": 20, "batch_size": 4, "save_every": 20}
    alone = finish(tmp_path / "one", {"run": run, "data": {"batch_size": 4}})
    together = finish(tmp_path / "two", {"run": {**run, "strategy": strategy}, "data": {"batch_size": 2}}, world_size=2)
    assert max(abs(a - b) / a for a, b in zip(alone, together, strict=True)) <= 1e-4


def test_accumulated_batches_equal_one_large_one(tmp_path: Path, process: Process) -> None:
    curves = []
    for size in (4, 2):
        stage = overlay(tiny_stage(batch_size=4), {"data": {"batch_size": size}})
        run_loop(stage, tiny_model(stage), Stream(stage), tmp_path / str(size), process)
        curves.append(losses(tmp_path / str(size)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_run_of_two_ranks_goes_on_with_one(tmp_path: Path) -> None:
    settings = {"run": {"steps": 4, "batch_size": 4, "save_every": 2, "strategy": "fsdp"}}
    finish(tmp_path, settings, world_size=2)
    settings["run"] |= {"steps": 6, "strategy": "none"}
    assert len(finish(tmp_path, settings)) == 6
    assert json.loads((tmp_path / "resumed.json").read_text()) == 4


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_sample(
    tmp_path: Path, process: Process
) -> None:
    stage = tiny_stage()
    model = tiny_model(stage)
    with pytest.raises(NonFinite, match=r"step 3: the loss of world/5 \(loss nan"):
        run_loop(stage, model, Stream(stage, poison=5), tmp_path, process)
    assert all(parameter.isfinite().all() for parameter in model.unet.parameters())
    assert len(losses(tmp_path)) == 2


def test_a_line_of_the_log_holds_its_steps_from_before_a_resumption_too(tmp_path: Path, process: Process) -> None:
    """A checkpoint between two lines; an end between it and the next line."""

    def records(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    stage = tiny_stage(steps=4, log_every=4, save_every=2)
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path / "whole", process)
    with pytest.raises(NonFinite):
        run_loop(stage, tiny_model(stage), Stream(stage, poison=5), tmp_path / "broken", process)
    assert run_loop(stage, tiny_model(stage), Stream(stage), tmp_path / "broken", process).resumed_at == 2
    for name in ("loss", "loss_by_ln_sigma", "grad_norm"):
        assert [record[name] for record in records("whole")] == [record[name] for record in records("broken")]


def test_a_full_disk_leaves_the_last_checkpoint_and_names_it(tmp_path: Path, process: Process) -> None:
    stage = tiny_stage(steps=2)
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process)
    longer = tiny_stage(steps=4)
    with (
        largest_file(100_000),
        pytest.raises(CheckpointError, match=r"failed to write the checkpoint after step 4 \(.* MiB free.*00000002$"),
    ):
        run_loop(longer, tiny_model(longer), Stream(longer), tmp_path, process)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert run_loop(longer, tiny_model(longer), Stream(longer), tmp_path, process).resumed_at == 2


def test_checkpoints_are_thinned_out(tmp_path: Path, process: Process) -> None:
    stage = tiny_stage(steps=10, save_every=1, keep_last=2, keep_every=4)
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process)
    kept = [int(path.name.removeprefix("step-")) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert kept == [4, 8, 9, 10]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, process: Process) -> None:
    run_loop(stage := tiny_stage(steps=2), tiny_model(stage), Stream(stage), tmp_path, process)
    other = tiny_stage("tiny-image-to-video")
    with pytest.raises(CheckpointError, match="does not match the network"):
        run_loop(other, tiny_model(other), Stream(other), tmp_path, process)


@pytest.mark.parametrize(
    "name",
    ["tiny-noise-swap", "tiny-image", "tiny-video", "tiny-image-to-video", "tiny-interpolation", "tiny-multi-view",
     "tiny-camera-motion"],
)  # fmt: skip
def test_every_kind_of_stage_trains_what_it_says(name: str, tmp_path: Path, process: Process) -> None:
    stage = tiny_stage(name, steps=2)
    model = tiny_model(stage)
    if stage.model.trainable == "lora":
        randomise(model.unet)  # the last layers of a new network are zero: no gradient gets past them at first
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    run_loop(stage, model, Stream(stage), tmp_path, process)
    after = model.unet.state_dict()
    changed = {key for key in before if key in after and not torch.equal(before[key], after[key])}
    if stage.model.trainable == "noise_embedding":
        assert changed
        assert all(key.startswith("noise_embedding") for key in changed)
    elif stage.model.trainable == "lora":
        assert not changed
        assert any(after[key].any() for key in after if "lora_B" in key)
    else:
        assert len(changed) > 0.4 * len(before)


def test_blocks_of_all_shapes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a backend that only counts. Four levels have more shapes than dynamo compiles of itself."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Block, "compile", lambda block, **how: nn.Module.compile(block, backend=count, **how))
    unet = random_unet(**(DEEP | {"widths": (32, 64, 96, 96)}))
    compile_blocks(unet)
    x_BTCHW, c_noise_B, kwargs = inputs(unet, samples=1, size=(16, 16))
    with torch.no_grad():
        unet(x_BTCHW, c_noise_B, **kwargs)
    assert len(graphs) == 15


def test_temporal_layers_can_train_alone(tmp_path: Path, process: Process) -> None:
    stage = overlay(tiny_stage(steps=2), {"model": {"trainable": "temporal"}})
    model = tiny_model(stage)
    freeze_untrained(model.unet, stage)
    trains = {name for name, parameter in model.unet.named_parameters() if parameter.requires_grad}
    id_embedding = {name for name in model.unet.state_dict() if name.startswith("ids_embedding.")}
    assert id_embedding
    assert trains == id_embedding | {name for name, _ in model.unet.temporal_layer_parameters()}
    run_loop(stage, model, Stream(stage), tmp_path, process)


def test_a_step_that_does_not_divide_is_refused() -> None:
    stage = overlay(tiny_stage(), {"run": {"batch_size": 6}})
    assert gradient_accumulation_steps(stage, 3) == 1
    with pytest.raises(ValueError, match="use a multiple of 8"):
        gradient_accumulation_steps(stage, 4)


def test_tiny_presets_exist_for_all() -> None:
    names = [stage.name for stage in map(Stage.preset, ("tiny-image", "image", "tiny-image-to-video-xt"))]
    assert names == ["tiny-image", "image", "tiny-image-to-video-xt"]
