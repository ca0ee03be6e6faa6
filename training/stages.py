"""Presets for the paper's training runs (section 4, appendix D), and settings that override them.

A stage is one frozen configuration. A YAML file or `--set group.key=value` overrides parts of a preset.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from clipmill.config import Config, parse_yaml_value, unknown_name
from clipmill.errors import UserError
from svd.config import PRESETS as UNETS
from svd.model import Task, task_of
from training.data_config import DataConfig
from training.stage_config import ConditioningDropout, NoiseConfig, OptimizerConfig, RunConfig, StageModelConfig


class Stage(Config):
    """Configuration of one training run."""

    name: str
    """Stage name; the preset's by default."""
    description: str = ""
    """One-line description."""
    model: StageModelConfig = StageModelConfig()
    """Network to train."""
    data: DataConfig = DataConfig()
    """How samples are made."""
    noise: NoiseConfig = NoiseConfig()
    """Distribution of noise levels."""
    conditioning_dropout: ConditioningDropout = ConditioningDropout()
    """Conditioning dropout rates."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rate schedule."""
    run: RunConfig = RunConfig()
    """Length, precision, distribution, logging and checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet = self.model.config()
        if unet.temporal != (self.data.frames > 1):
            kind = "a video" if unet.temporal else "an image"
            raise ValueError(f"model.unet={self.model.unet!r} is {kind} network, got data.frames={self.data.frames}")
        if not unet.temporal and (self.model.trainable in ("temporal", "lora") or self.run.image_share):
            raise ValueError(
                f"temporal, LoRA and joint training require a video network, got model.unet={self.model.unet!r}"
            )
        if self.run.image_share and self.task == "interpolation":
            raise ValueError(
                f"joint training (run.image_share={self.run.image_share:g}) does not support interpolation, which "
                "needs the first and last frame of a video; set run.image_share=0"
            )
        if self.run.image_share and self.model.trainable in ("temporal", "lora"):
            raise ValueError(
                f"joint training (run.image_share={self.run.image_share:g}) requires model.trainable='all', got "
                f"{self.model.trainable!r}, whose layers images skip"
            )
        return self

    @property
    def task(self) -> Task:
        """Task of the stage's network."""
        return task_of(self.model.config())

    @classmethod
    def preset(cls, name: str) -> "Stage":
        """Return the preset `name`; `tiny-NAME` is scaled down to two CPU cores.

        Raises UserError, suggesting the nearest name, for an unknown one.
        """
        known = {stage.name: stage for stage in (*STAGES, *map(_tiny, STAGES))}
        if name not in known:
            raise UserError(unknown_name("stage", name, list(known)))
        return known[name]


def overlay(stage: Stage, settings: Mapping[str, Any], *, origin: str = "settings") -> Stage:
    """Override parts of `stage` with `settings`, group by group. Mappings replace the existing one, so that caption
    probabilities can be removed; `model.overrides`, the fields of a network, are merged key by key.

    Raises UserError, prefixed with `origin` and the group, for an unknown key or an invalid value.
    """
    return Stage.from_values(_merged(stage, settings), origin=origin)


def parse_setting(text: str) -> dict[str, Any]:
    """Parse `group.key=value`, with a YAML value, to nested settings for `overlay`. Raises UserError without `=`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"expected a setting such as group.key=value, got {text!r}")
    settings = parse_yaml_value(value, origin=f"the value of {name}")
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return settings


def _merged(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `config` with `settings` merged in; not validated yet."""
    values = dict(config)
    for name, value in settings.items():
        current = values.get(name)
        if isinstance(value, Mapping) and isinstance(current, Config):
            values[name] = _merged(current, value)
        elif isinstance(value, Mapping) and isinstance(config, StageModelConfig) and name == "overrides":
            values[name] = {**config.overrides, **value}
        else:
            values[name] = value
    return values


_CAPTIONS = {"coca": 0.5, "video": 0.25, "merged": 0.25}
"""Section 3.1; a sample without any of these uses its first caption."""

STAGES: tuple[Stage, ...] = (
    Stage(
        name="noise-swap",
        description="Stage I a: adapt Stable Diffusion 2.1 to EDM noise levels by training the noise embedding only",
        model=StageModelConfig(unet="sd21", trainable="noise_embedding"),
        data=DataConfig(frames=1, height_px=512, width_px=512, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=-1.2, p_std=1.0),
        conditioning_dropout=ConditioningDropout(context=0.15, concat=0.15),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=1_000, batch_size=64),
    ),
    Stage(
        name="image",
        description="Stage I b: image pretraining at the frame size of stage II",
        model=StageModelConfig(unet="sd21"),
        data=DataConfig(frames=1, height_px=256, width_px=384, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=-1.2, p_std=1.0),
        conditioning_dropout=ConditioningDropout(context=0.15, concat=0.15),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=30_000, batch_size=512),
    ),
    Stage(
        name="video",
        description="Stage II a: video pretraining with new temporal layers",
        model=StageModelConfig(unet="t2v", checkpointing=True),
        data=DataConfig(frames=14, height_px=256, width_px=384, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=-1.2, p_std=1.0),
        conditioning_dropout=ConditioningDropout(context=0.15, concat=0.15),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=150_000, batch_size=1536),
    ),
    Stage(
        name="video-base",
        description="Stage II b: the base model, with larger frames and more noise",
        model=StageModelConfig(unet="t2v", checkpointing=True),
        data=DataConfig(frames=14, height_px=320, width_px=576, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=0.0, p_std=1.0),
        conditioning_dropout=ConditioningDropout(context=0.15, concat=0.15),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=100_000, batch_size=768),
    ),
    Stage(
        name="text-to-video",
        description="Stage III: text-to-video finetuning on high-quality clips",
        model=StageModelConfig(unet="t2v", checkpointing=True),
        data=DataConfig(frames=14, height_px=576, width_px=1024, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=0.5, p_std=1.4),
        conditioning_dropout=ConditioningDropout(context=0.15, concat=0.15),
        optimizer=OptimizerConfig(lr=3e-5, ema=0.9999),
        run=RunConfig(steps=50_000, batch_size=768),
    ),
    Stage(
        name="image-to-video-base",
        description="Image to video at the base model's frame size",
        model=StageModelConfig(unet="svd", checkpointing=True),
        data=DataConfig(frames=14, height_px=320, width_px=576, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=0.7, p_std=1.6),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(lr=3e-5, ema=None),
        run=RunConfig(steps=50_000, batch_size=768),
    ),
    Stage(
        name="image-to-video",
        description="Image to video, 14 frames",
        model=StageModelConfig(unet="svd", checkpointing=True),
        data=DataConfig(frames=14, height_px=576, width_px=1024, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=1.0, p_std=1.6),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(lr=3e-5, ema=0.9999),
        run=RunConfig(steps=50_000, batch_size=768),
    ),
    Stage(
        name="image-to-video-xt",
        description="Image to video, 25 frames",
        model=StageModelConfig(unet="svd_xt", checkpointing=True),
        data=DataConfig(frames=25, height_px=576, width_px=1024, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=1.0, p_std=1.6),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(lr=3e-5, ema=0.9999),
        run=RunConfig(steps=50_000, batch_size=768),
    ),
    Stage(
        name="interpolation",
        description="Frame interpolation: five frames, given the first and the last",
        model=StageModelConfig(unet="interpolation", checkpointing=True),
        data=DataConfig(frames=5, height_px=576, width_px=1024, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=1.0, p_std=1.2),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(ema=0.9999),
        run=RunConfig(steps=10_000, batch_size=256),
    ),
    Stage(
        name="multi-view",
        description="Multi-view: orbit an object, given one image",
        model=StageModelConfig(unet="multiview", checkpointing=True),
        data=DataConfig(frames=21, height_px=576, width_px=576, elevation=True, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=1.0, p_std=1.6),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(lr=1e-5, ema=None),
        run=RunConfig(steps=12_000, batch_size=16),
    ),
    Stage(
        name="camera-motion",
        description="Camera-motion LoRA",
        model=StageModelConfig(unet="svd", trainable="lora", checkpointing=True),
        data=DataConfig(frames=14, height_px=576, width_px=1024, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=1.0, p_std=1.6),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=5_000, batch_size=16),
    ),
    Stage(
        name="ablation",
        description="Small text-to-video model of the paper's ablations",
        model=StageModelConfig(unet="t2v", overrides={"frames": 8}, checkpointing=True),
        data=DataConfig(frames=8, height_px=256, width_px=256, captions=_CAPTIONS),
        noise=NoiseConfig(p_mean=-1.2, p_std=1.0),
        conditioning_dropout=ConditioningDropout(context=0.1, concat=0.1),
        optimizer=OptimizerConfig(ema=None),
        run=RunConfig(steps=40_000, batch_size=256),
    ),
)
"""Runs of the paper. It lists no batch size for stage I and no learning rate for some runs; those are ours."""


def _tiny(stage: Stage) -> Stage:
    """The same run with a few million parameters, small frames and a few steps."""
    frames = min(stage.data.frames, 8)
    preset, tiny = stage.model.config(), UNETS["tiny"]
    sizes = ("widths", "blocks_per_level", "head_width", "context_width", "id_width")
    overrides = {name: getattr(tiny, name) for name in sizes} | {"frames": frames if preset.temporal else 1}
    return stage.replace(
        name=f"tiny-{stage.name}",
        model=stage.model.replace(overrides=overrides, checkpointing=False),
        data=stage.data.replace(frames=frames, height_px=64, width_px=96, batch_size=4, fps=(8.0,), workers=1),
        optimizer=stage.optimizer.replace(lr=max(stage.optimizer.lr, 1e-4), warmup_steps=20, ema=0.99),
        run=stage.run.replace(
            steps=200, batch_size=4, precision="fp32", save_every=50, sample_every=100, sample_steps=15
        ),
    )
