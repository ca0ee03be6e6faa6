"""Groups, learning rates and the average of the weights, against their closed forms; the log across resumptions."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.world import tiny_model, tiny_stage
from training.ema import Ema
from training.metrics import Log, Meter, by_noise_level
from training.optimizer import build_optimizer, lr_factor, set_lr
from training.stages import STAGES, OptimizerPart, Stage, overlay, parse_setting


def test_matrices_alone_decay_and_layers_of_time_have_their_own_rate() -> None:
    unet = tiny_model(tiny_stage()).unet
    optimizer = build_optimizer(unet, OptimizerPart(lr=1e-3, spatial_lr=1e-4, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    temporal = {
        name for name in unet.state_dict() if ".temporal." in name or ".mix." in name or "ids_embedding" in name
    }
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["base_lr"] == (1e-3 if name in temporal else 1e-4)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert seen == set(names.values())
    assert any("mix" in name for name in seen)


def test_the_rate_rises_stays_and_may_fall() -> None:
    constant = OptimizerPart(warmup_steps=10)
    assert [lr_factor(step, 100, constant) for step in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = OptimizerPart(warmup_steps=10, decay="cosine")
    assert [lr_factor(step, 110, cosine) for step in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    assert lr_factor(0, 10, OptimizerPart(warmup_steps=0)) == 1.0
    optimizer = build_optimizer(tiny_model(tiny_stage()).unet, OptimizerPart(lr=2e-3))
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_the_average_follows_its_definition_and_lends_itself() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": parameter}, decay=0.5)
    expected = 0.0
    for step in range(1, 8):
        with torch.no_grad():
            parameter.fill_(float(step))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.average["w"].tolist() == pytest.approx([expected] * 3)
    with ema.swapped():
        assert parameter.tolist() == pytest.approx([expected] * 3)
    assert parameter.tolist() == [7.0] * 3


def test_losses_are_told_apart_by_noise_level() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([-2.5, -2.5, 0.5]).exp())
    assert by_noise_level(meter.sums()) == {"below -2": 2.0, "0 to 1": 10.0}


def test_what_a_killed_run_logged_beyond_its_checkpoint_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    log = Log(tmp_path, 1)
    log.write({"step": 2, "loss": 0.25, "loss_by_ln_sigma": {"below -2": 1.0}})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.25]


def test_presets_are_the_paper_s_table() -> None:
    """App. D: frames, height, width, steps, batch, P_mean, P_std of the runs for which it gives them."""
    table = {
        "video": (14, 256, 384, 150_000, 1536, -1.2, 1.0),
        "video-base": (14, 320, 576, 100_000, 768, 0.0, 1.0),
        "text-to-video": (14, 576, 1024, 50_000, 768, 0.5, 1.4),
        "image-to-video-base": (14, 320, 576, 50_000, 768, 0.7, 1.6),
        "image-to-video": (14, 576, 1024, 50_000, 768, 1.0, 1.6),
        "image-to-video-xt": (25, 576, 1024, 50_000, 768, 1.0, 1.6),
        "interpolation": (5, 576, 1024, 10_000, 256, 1.0, 1.2),
    }
    for name, row in table.items():
        stage = Stage.preset(name)
        data, run, noise = stage.data, stage.run, stage.noise
        sizes = (data.frames, data.height_px, data.width_px, run.steps, run.batch_size)
        assert (*sizes, noise.p_mean, noise.p_std) == row
    assert {stage.name for stage in STAGES if stage.optimizer.ema == 0.9999} == {
        "text-to-video", "image-to-video", "image-to-video-xt", "interpolation"
    }  # fmt: skip


@pytest.mark.parametrize("stage", [*STAGES, *(Stage.preset(f"tiny-{stage.name}") for stage in STAGES)])
def test_a_stage_survives_being_written_and_read(stage: Stage) -> None:
    assert overlay(Stage.preset(stage.name), json.loads(json.dumps(stage.to_dict()))) == stage


@pytest.mark.parametrize("trained", ["temporal", "lora"])
def test_pictures_cannot_train_layers_of_time_alone(trained: str) -> None:
    with pytest.raises(ValueError, match=r"joint training .* takes model.trained 'all'"):
        overlay(Stage.preset("video"), {"model": {"trained": trained}, "run": {"image_share": 0.3}})


def test_a_setting_is_read_as_yaml() -> None:
    assert parse_setting("optimizer.lr=1e-4") == {"optimizer": {"lr": "1e-4"}}
    stage = overlay(Stage.preset("video"), parse_setting("optimizer.lr=1e-4"))
    assert stage.optimizer.lr == 1e-4
    assert overlay(stage, parse_setting("data.fps=[4, 8]")).data.fps == (4, 8)
