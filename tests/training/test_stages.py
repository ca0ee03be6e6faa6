"""Presets, and each rule by which changes are laid over them."""

import re
from typing import Any

import pytest

from clipmill.errors import UserError
from training.stages import STAGES, Stage, overlay, parse_setting


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
    assert overlay(Stage.preset(stage.name), stage.model_dump(mode="json")) == stage


@pytest.mark.parametrize("trained", ["temporal", "lora"])
def test_pictures_cannot_train_layers_of_time_alone(trained: str) -> None:
    with pytest.raises(ValueError, match=r"joint training .* requires model.trainable='all'"):
        overlay(Stage.preset("video"), {"model": {"trainable": trained}, "run": {"image_share": 0.3}})


def test_a_setting_is_read_as_yaml() -> None:
    assert parse_setting("optimizer.lr=1e-4") == {"optimizer": {"lr": 1e-4}}
    stage = overlay(Stage.preset("video"), parse_setting("optimizer.lr=1e-4"))
    assert stage.optimizer.lr == 1e-4
    assert overlay(stage, parse_setting("data.fps=[4, 8]")).data.fps == (4, 8)


def laid(**groups: Any) -> Stage:
    return overlay(Stage.preset("tiny-video"), groups)


def test_a_group_keeps_what_is_not_changed() -> None:
    before, after = Stage.preset("tiny-video"), laid(run={"steps": 7}, name="mine")
    assert (after.run.steps, after.name) == (7, "mine")
    assert overlay(after, {"run": {"steps": before.run.steps}, "name": before.name}) == before


def test_a_mapping_replaces_the_one_that_is_there() -> None:
    """As docs/training.md shows it."""
    assert laid(data={"captions": {"coca": 0.7, "merged": 0.3}}).data.captions == {"coca": 0.7, "merged": 0.3}
    assert laid(data={"captions": {}}).data.captions == {}
    one = overlay(Stage.preset("video"), parse_setting("data.captions.list=1"))
    assert one.data.captions == {"list": 1}


def test_changes_of_a_network_are_merged() -> None:
    before = Stage.preset("tiny-video").model.overrides
    after = laid(model={"overrides": {"frames": 5, "widths": [32, 64, 64, 64]}}).model.overrides
    assert after == {**before, "frames": 5, "widths": (32, 64, 64, 64)}


def test_lists_are_tuples_and_one_value_a_tuple_of_it() -> None:
    assert laid(data={"fps": [4, 8]}).data.fps == (4, 8)
    assert laid(data={"fps": 8}).data.fps == (8,)


def test_numbers_are_read_as_the_field_has_them() -> None:
    optimizer = laid(optimizer={"eps": 1}).optimizer
    assert isinstance(optimizer.eps, float)
    assert laid(optimizer={"ema": None}).optimizer.ema is None
    assert laid(run={"keep_every": 100}).run.keep_every == 100
    assert laid(model={"autoencoder": "a/path"}).model.autoencoder == "a/path"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rnu": {}}, "unknown configuration key 'rnu'. Did you mean 'run'"),
        ({5: {}}, "unknown configuration key '5'"),
        ({"run": {"stpes": 1}}, "run: unknown configuration key 'stpes'. Did you mean 'steps'"),
        ({"run": 5}, "run: Input should be a valid dictionary or instance of RunConfig, got 5"),
        ({"run": {"steps": "many"}}, "run.steps: Input should be a valid integer, got 'many'"),
        ({"run": {"steps": True}}, "run.steps: Input should be a valid integer, got True"),
        ({"run": {"steps": None}}, "run.steps: Input should be a valid integer, got None"),
        ({"run": {"steps": 0}}, "run.steps: Input should be greater than or equal to 1, got 0"),
        ({"run": {"compile": 1}}, "run.compile: Input should be a valid boolean, got 1"),
        ({"run": {"keep_every": "x"}}, "run.keep_every: Input should be a valid integer, got 'x'"),
        ({"run": {"keep_every": True}}, "run.keep_every: Input should be a valid integer, got True"),
        ({"run": {"strategy": "dpp"}}, "run.strategy: Input should be 'auto', 'none', 'ddp' or 'fsdp', got 'dpp'"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr: Input should be a valid number, got 'fast'"),
        ({"optimizer": {"lr": True}}, "optimizer.lr: Input should be a valid number, got True"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr: Input should be a"),
        ({"optimizer": {"spatial_lr": "fast"}}, "optimizer.spatial_lr: Input should be a valid number, got 'fast'"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas.1: Field required"),
        ({"optimizer": {"betas": ["a", 0.9]}}, "optimizer.betas.0: Input should be a valid number, got 'a'"),
        ({"data": {"captions": 5}}, "data.captions: Input should be a valid dictionary, got 5"),
        ({"data": {"captions": {"coca": 0}}}, "captions: expected probabilities with a sum above 0"),
        ({"data": {"fps": ["fast"]}}, "data.fps.0: Input should be a valid number, got 'fast'"),
        ({"model": {"autoencoder": 5}}, "model.autoencoder: Input should be a valid string, got 5"),
        ({"model": {"overrides": {"widht": 1}}}, "unknown configuration key 'widht'. Did you mean 'widths'"),
    ],
)
def test_what_does_not_fit_is_named(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        overlay(Stage.preset("tiny-video"), changes)


def test_a_network_of_two_ends_takes_no_pictures() -> None:
    with pytest.raises(ValueError, match=r"joint training .* does not support interpolation"):
        overlay(Stage.preset("interpolation"), {"run": {"image_share": 0.3}})


@pytest.mark.parametrize("value", ["!!timestamp x", "!!bool x", '!!int ""', "[", "[" * 5000])
def test_a_value_that_is_not_yaml_says_so(value: str):
    with pytest.raises(ValueError, match=r"the value of run\.steps is not valid YAML"):
        parse_setting(f"run.steps={value}")
