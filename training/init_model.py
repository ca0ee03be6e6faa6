"""Initialize a stage's model from the previous stage's (sections 3.2 and 4)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from clipmill.errors import UserError
from svd.autoencoder import Autoencoder
from svd.checkpoint import CONFIG, FOLDERS, load_encoder, load_model, read_config
from svd.config import UNetConfig
from svd.inflate import inflate, init_as_identity
from svd.model import NEEDS, Model, ModelConfig, task_of
from svd.unet import UNet
from svd.weights_autoencoder import load_autoencoder
from training.stage_config import StageModelConfig
from training.stages import Stage

MODEL = "model"
"""Model subfolder of a finished run."""


def init_model(stage: Stage, init: Path | None) -> Model:
    """Build the model for `stage` on the CPU: the network of `init` (a model folder, file or finished run) inflated to
    the stage's, or a new one if `init` is None. Encoders and autoencoder come from `init` or the stage's settings,
    frozen.

    Raises FileNotFoundError; WeightsError; ValueError for an incompatible `init` or a missing part.
    """
    target = stage.model.config()
    if init is None:
        unet = UNet(target)
        if target.temporal and stage.model.temporal_init == "identity":
            init_as_identity(unet)
        return assemble(stage, unet)
    old = load_model(_model_of(init))
    return assemble(stage, _grown(old.unet, target, stage, init), old)


def assemble(stage: Stage, unet: UNet, others: Model | None = None) -> Model:
    """Combine `unet` with the parts the stage needs: those in its settings, else those of `others`."""
    part, needed = stage.model, NEEDS[task_of(unet.config)]
    autoencoder = _autoencoder(part) if part.autoencoder else (others.autoencoder if others else None)
    encoder = _encoder(part, needed) if getattr(part, needed) else getattr(others, needed, None)
    for name, network in (("autoencoder", autoencoder), (needed, encoder)):
        if network is None:
            raise UserError(
                f"missing {name.replace('_', ' ')}: initialize from a model that has one (--init) or set "
                f"--set model.{name}=MODEL"
            )
    assert autoencoder is not None
    for network in (autoencoder, encoder):
        if isinstance(network, nn.Module):
            network.requires_grad_(False).eval()
    values = {
        "unet": unet.config,
        "autoencoder": autoencoder.config,
        "width_px": stage.data.width_px,
        "height_px": stage.data.height_px,
        needed: getattr(encoder, "config", None),
    }
    config = ModelConfig.from_values(values, origin=f"stage {stage.name}")
    encoders: dict[str, Any] = {needed: encoder}
    return Model(config=config, unet=unet, autoencoder=autoencoder, **encoders)


def _grown(unet: UNet, target: UNetConfig, stage: Stage, init: Path) -> UNet:
    if unet.config == target:
        return unet
    if stage.model.trainable == "temporal" and target.in_channels > unet.config.in_channels:
        raise UserError(
            f"{init} has {unet.config.in_channels} input channels, stage {stage.name!r} expects {target.in_channels}; "
            "model.trainable='temporal' would leave the new ones at zero. Set model.trainable=all"
        )
    try:
        return inflate(unet, target, temporal_init=stage.model.temporal_init)
    except ValueError as error:
        raise UserError(
            f"cannot initialize stage {stage.name!r} ({stage.task}) from {init}, a model for "
            f"{task_of(unet.config)}: {error}"
        ) from error


def _model_of(init: Path) -> Path:
    """Resolve a finished run to its model."""
    return init / MODEL if (init / MODEL / CONFIG).is_file() else init


def _autoencoder(config: StageModelConfig) -> Autoencoder:
    path = _model_of(Path(cast("str", config.autoencoder)))
    shape = read_config(path).autoencoder
    if path.is_dir():
        return load_autoencoder(path / FOLDERS["autoencoder"], shape, layout="diffusers")
    return load_autoencoder(path, shape, layout="original")


def _encoder(config: StageModelConfig, name: str) -> nn.Module:
    path = _model_of(Path(getattr(config, name)))
    shape = getattr(read_config(path), name)
    if shape is None:
        raise UserError(f"model.{name}: {path} has no {name.replace('_', ' ')}")
    return load_encoder(path / FOLDERS[name] if path.is_dir() else path, shape)


def with_unet(model: Model, unet: UNet) -> Model:
    """The same parts around another network of the same architecture."""
    return replace(model, unet=unet)
