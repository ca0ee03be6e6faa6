"""The paper's runs as presets (section 4, appendix D): what trains, on what, for how long; and how to change one.

A stage is one frozen configuration. A YAML file or `--set group.key=value` lays changes over a preset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from svd.config import PRESETS as UNETS
from svd.config import UNetConfig
from svd.fields import Fields, nearest
from svd.inflate import TemporalInit
from svd.model import Task, task_of
from svd.noise import Discrete, Edm, Schedule
from training.data_config import DataConfig

Trainable = Literal["all", "temporal", "noise_embedding", "lora"]
Strategy = Literal["auto", "none", "ddp", "fsdp"]

_F = TypeVar("_F", bound=Fields)


@dataclass(frozen=True, kw_only=True)
class StageModelConfig(Fields):
    """Which network trains, and which of its layers."""

    unet: str = "svd"
    """Preset of the network: sd21, svd, svd_xt, t2v, interpolation, multiview or tiny (`svd.config.PRESETS`)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the preset that differ."""
    trainable: Trainable = "all"
    """`all`: every weight. `temporal`: what a video network has beyond its image network, ids and mask embedding
    included. `noise_embedding`: the embedding of the noise level alone. `lora`: adapters on the attention over time."""
    temporal_init: TemporalInit = "identity"
    """How new temporal layers are initialised. `identity`: the network computes what it did before. `released`: as in
    the released model; see `svd.inflate`."""
    lora_rank: int = 16
    """Rank of the adapters, with `trainable: lora`."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more compute."""
    autoencoder: str | None = None
    """Model folder or file to take the autoencoder from, where the initial checkpoint has none or another."""
    image_encoder: str | None = None
    """Model folder or file to take CLIP's image encoder from, likewise."""
    text_encoder: str | None = None
    """Model folder or file to take CLIP's text encoder from, likewise."""

    def __post_init__(self) -> None:
        _one_of("model.unet", self.unet, UNETS)
        _one_of("model.trainable", self.trainable, ("all", "temporal", "noise_embedding", "lora"))
        _one_of("model.temporal_init", self.temporal_init, ("identity", "released"))
        self.config()

    def config(self) -> UNetConfig:
        """The network's shape."""
        return UNetConfig.preset(self.unet, **self.overrides)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Fields):
    """Noise levels that are trained on: ln sigma ~ N(p_mean, p_std^2), or Stable Diffusion 2.1's discrete ones."""

    schedule: Literal["edm", "sd21"] = "edm"
    """`edm`: continuous levels, log-normal. `sd21`: the 1,000 discrete levels of Stable Diffusion 2.1."""
    p_mean: float = -1.2
    """With `edm`: mean of ln sigma. Raise it for larger frames, which need more noise to hide the same content."""
    p_std: float = 1.0
    """With `edm`: standard deviation of ln sigma."""

    def __post_init__(self) -> None:
        _one_of("noise.schedule", self.schedule, ("edm", "sd21"))
        self.build()

    def build(self) -> Schedule:
        return Edm(p_mean=self.p_mean, p_std=self.p_std) if self.schedule == "edm" else Discrete()


@dataclass(frozen=True, kw_only=True)
class ConditioningDropout(Fields):
    """Shares of samples that are shown without a condition, so that guidance can lead away from its absence.

    One draw decides both: with equal shares they are dropped together, as sampling does.
    """

    context: float = 0.1
    """Share of samples without their text or CLIP embedding, 0 to 1."""
    concat: float = 0.1
    """Share of samples without their concatenated latents, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("context", "concat"):
            _within(f"conditioning_dropout.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Fields):
    """AdamW: `lr` after `warmup_steps` of linear rise, then constant, or down to 0 along a cosine."""

    lr: float = 1e-4
    """Learning rate after warm-up."""
    spatial_lr: float | None = None
    """Learning rate of the layers that the image network has too; null: `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the averages of the gradient and of its square."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's weight decay; not on norms, biases, mixing factors and learned embeddings."""
    warmup_steps: int = 1000
    """Optimiser steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After warm-up: `constant`, or `cosine` down to 0 at the last step."""
    clip_norm: float = 1.0
    """Greatest norm of the gradient of all trained weights together; larger gradients are scaled down to it."""
    ema: float | None = 0.9999
    """Decay of the running average of the weights, which is what is sampled and exported; null keeps none."""

    def __post_init__(self) -> None:
        _one_of("optimizer.decay", self.decay, ("constant", "cosine"))
        for name in ("lr", "eps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} should be above 0, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas should be two numbers from 0 to below 1, got {self.betas}")
        if self.ema is not None:
            _within("optimizer.ema", self.ema, 0, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Fields):
    """Length, precision, distribution, and what is written how often. Counts are of optimiser steps."""

    steps: int = 1000
    """Optimiser steps. A finished run goes on when it is started again with more."""
    batch_size: int = 8
    """Samples per optimiser step, over all ranks. Each rank takes batches of `data.batch_size` and accumulates
    gradients over as many as that needs."""
    seed: int = 0
    """Seed of new layers' weights, noise, noise levels and dropped conditions."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: autocast; weights, optimiser state and average stay float32. `fp32`: no autocast."""
    compile: bool = False
    """Compile the network block by block with torch.compile."""
    strategy: Strategy = "auto"
    """`auto`: `none` for one process, `ddp` for several, `fsdp` (FSDP2) for several if the network has over 1 B
    parameters."""
    image_share: float = 0.0
    """Share of batches that come from image shards (`--images`), for joint training."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Checkpoints at multiples of this stay for good; null: none."""
    sample_every: int | None = 1000
    """Steps between sample sheets; null: none."""
    sample_count: int = 2
    """Videos per sample sheet, at most as many as one batch holds."""
    sample_steps: int = 25
    """Sampler steps of those videos."""

    def __post_init__(self) -> None:
        _one_of("run.precision", self.precision, ("bf16", "fp32"))
        _one_of("run.strategy", self.strategy, ("auto", "none", "ddp", "fsdp"))
        _within("run.image_share", self.image_share, 0, 1)
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "sample_count", "sample_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} should be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Stage(Fields):
    """One run. Raises ValueError for parts that do not fit together."""

    name: str
    """Name of the stage; the preset's."""
    description: str = ""
    """What the stage is for, in one line."""
    model: StageModelConfig = field(default_factory=StageModelConfig)
    """Which network trains."""
    data: DataConfig = field(default_factory=DataConfig)
    """What a sample is."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Which noise levels are trained on."""
    conditioning_dropout: ConditioningDropout = field(default_factory=ConditioningDropout)
    """How often conditions are dropped."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""
    run: RunConfig = field(default_factory=RunConfig)
    """How long, how large, how distributed."""

    def __post_init__(self) -> None:
        unet = self.model.config()
        if unet.temporal != (self.data.frames > 1):
            kind = "a video" if unet.temporal else "an image"
            raise ValueError(f"model.unet {self.model.unet!r} is {kind} network, data.frames is {self.data.frames}")
        if not unet.temporal and (self.model.trainable in ("temporal", "lora") or self.run.image_share):
            raise ValueError(
                f"an image network has no temporal layers to train: model.trainable {self.model.trainable!r}"
            )
        if self.run.image_share and self.task == "interpolation":
            raise ValueError(
                "an interpolation network takes the first and the last frame of a video, and a picture has one frame: "
                f"joint training (run.image_share {self.run.image_share:g}) is not possible for it"
            )
        if self.run.image_share and self.model.trainable in ("temporal", "lora"):
            raise ValueError(
                f"model.trainable {self.model.trainable!r} trains layers that pictures do not pass through: joint "
                f"training (run.image_share {self.run.image_share:g}) takes model.trainable 'all'"
            )

    @property
    def task(self) -> Task:
        """What the network of this stage is for."""
        return task_of(self.model.config())

    def to_dict(self) -> dict[str, Any]:
        """All fields, nested, fit for JSON and YAML."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.to_dict() if isinstance(value, Fields) else value for name, value in values.items()}

    @classmethod
    def preset(cls, name: str) -> "Stage":
        """The preset `name`; `tiny-NAME` is the same at a size for two CPU cores.

        Raises ValueError, with the nearest name, for an unknown one.
        """
        known = {stage.name: stage for stage in (*STAGES, *map(_tiny, STAGES))}
        if name not in known:
            raise ValueError(f"unknown stage {name!r}{nearest(name, known)}")
        return known[name]


def overlay(config: _F, changes: Mapping[str, Any], *, path: str = "") -> _F:
    """`config` with `changes` laid over it, group by group. A mapping replaces the one that is there, so that shares
    of captions can be taken away; `model.overrides`, which are fields of a network, are merged key by key.

    Raises ValueError with the dotted name, and the nearest one that exists, for a key that is unknown, and for a
    value that is not of the kind that is there.
    """
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    made: dict[str, Any] = {}
    for name, value in changes.items():
        dotted = f"{path}{name}"
        if name not in known:
            raise ValueError(f"unknown setting {dotted!r}{nearest(str(name), known)}")
        current = getattr(config, name)
        if isinstance(current, Fields):
            if not isinstance(value, Mapping):
                raise ValueError(f"{dotted} is a group of settings, got {value!r:.200}")
            made[name] = overlay(current, value, path=f"{dotted}.")
        else:
            made[name] = _fitted(dotted, current, value, hints[name])
    try:
        return replace(config, **made)  # type: ignore[type-var]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"settings {path or 'of the stage'} do not fit: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """`group.key=value`, the value in YAML, as nested changes for `overlay`. Raises ValueError without `=`."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"a setting is written group.key=value, got {text!r}")
    try:
        changes: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        # the last three: PyYAML on `!!timestamp x`, `!!bool x`, `!!int ""`
        raise ValueError(f"the value of {name} is not YAML: {error or type(error).__name__}") from error
    for part in reversed(name.split(".")):
        changes = {part: changes}
    return changes


_MERGED = "model.overrides"
"""The one mapping whose keys are merged into those that are there."""


def _fitted(name: str, current: Any, value: Any, hint: Any) -> Any:
    """`value` as the kind that the field has; YAML reads 1e-4 as a text and (1, 2) as a list."""
    if isinstance(value, list):
        value = tuple(value)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return value
    if isinstance(current, Mapping) and isinstance(value, Mapping):
        tuples = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
        return {**current, **tuples} if name == _MERGED else tuples
    if float in kinds and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} is a number, got {value!r:.200}") from None
    kind = next(kind for kind in kinds if kind is not NoneType) if current is None else type(current)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if isinstance(current, tuple) and isinstance(value, int | float | str):
        return (value,)
    was = "" if current is None else f" ({current!r})"
    raise ValueError(f"{name} is {kind.__name__}{was}, got {type(value).__name__} ({value!r:.200})")


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} cannot be {value!r}{nearest(str(value), known)}")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} should be from {least} to {most}, got {value}")


def _stage(
    name: str,
    description: str,
    *,
    unet: str,
    size: tuple[int, int, int],
    steps: int,
    batch: int,
    noise: tuple[float, float],
    lr: float = 1e-4,
    ema: float | None = None,
    drop: float = 0.1,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Stage:
    frames, height_px, width_px = size
    return Stage(
        name=name,
        description=description,
        model=StageModelConfig(unet=unet, **(model or {})),
        data=DataConfig(frames=frames, height_px=height_px, width_px=width_px, captions=_CAPTIONS, **(data or {})),
        noise=NoiseConfig(p_mean=noise[0], p_std=noise[1]),
        conditioning_dropout=ConditioningDropout(context=drop, concat=drop),
        optimizer=OptimizerConfig(lr=lr, ema=ema),
        run=RunConfig(steps=steps, batch_size=batch),
    )


_FREQUENT = {"checkpointing": True}
_CAPTIONS = {"coca": 0.5, "video": 0.25, "merged": 0.25}
"""Section 3.1; a sample without any of these gives its first caption."""
_BEFORE = (-1.2, 1.0)

STAGES: tuple[Stage, ...] = (
    _stage(
        "noise-swap", "I a: Stable Diffusion 2.1 learns EDM's noise levels; the noise embedding alone trains",
        unet="sd21", size=(1, 512, 512), steps=1_000, batch=64, noise=_BEFORE, drop=0.15,
        model={"trainable": "noise_embedding"},
    ),
    _stage(
        "image", "I b: image pretraining at the size of stage II", unet="sd21", size=(1, 256, 384), steps=30_000,
        batch=512, noise=_BEFORE, drop=0.15,
    ),
    _stage(
        "video", "II a: video pretraining, temporal layers inserted", unet="t2v", size=(14, 256, 384), steps=150_000,
        batch=1536, noise=_BEFORE, drop=0.15, model=_FREQUENT,
    ),
    _stage(
        "video-base", "II b: the base model, larger frames and more noise", unet="t2v", size=(14, 320, 576),
        steps=100_000, batch=768, noise=(0.0, 1.0), drop=0.15, model=_FREQUENT,
    ),
    _stage(
        "text-to-video", "III: finetuning on the best clips", unet="t2v", size=(14, 576, 1024), steps=50_000,
        batch=768, noise=(0.5, 1.4), lr=3e-5, ema=0.9999, drop=0.15, model=_FREQUENT,
    ),
    _stage(
        "image-to-video-base", "image to video at the base model's size", unet="svd", size=(14, 320, 576),
        steps=50_000, batch=768, noise=(0.7, 1.6), lr=3e-5, model=_FREQUENT,
    ),
    _stage(
        "image-to-video", "image to video, 14 frames", unet="svd", size=(14, 576, 1024), steps=50_000, batch=768,
        noise=(1.0, 1.6), lr=3e-5, ema=0.9999, model=_FREQUENT,
    ),
    _stage(
        "image-to-video-xt", "image to video, 25 frames", unet="svd_xt", size=(25, 576, 1024), steps=50_000, batch=768,
        noise=(1.0, 1.6), lr=3e-5, ema=0.9999, model=_FREQUENT,
    ),
    _stage(
        "interpolation", "five frames from first and last", unet="interpolation", size=(5, 576, 1024), steps=10_000,
        batch=256, noise=(1.0, 1.2), ema=0.9999, model=_FREQUENT,
    ),
    _stage(
        "multi-view", "views around an object from one picture", unet="multiview", size=(21, 576, 576), steps=12_000,
        batch=16, noise=(1.0, 1.6), lr=1e-5, model=_FREQUENT, data={"elevation": True},
    ),
    _stage(
        "camera-motion", "an adapter for one kind of camera motion", unet="svd", size=(14, 576, 1024), steps=5_000,
        batch=16, noise=(1.0, 1.6), model={"trainable": "lora", **_FREQUENT},
    ),
    _stage(
        "ablation", "the small text-to-video model of the paper's ablations", unet="t2v", size=(8, 256, 256),
        steps=40_000, batch=256, noise=_BEFORE, drop=0.10, model={"overrides": {"frames": 8}, **_FREQUENT},
    ),
)  # fmt: skip
"""The paper's table of runs. It gives no batch for the stage I runs and no learning rate for some: those are ours."""


def _tiny(stage: Stage) -> Stage:
    """The same run with a few million parameters, small frames and a few steps."""
    frames = min(stage.data.frames, 8)
    preset, tiny = stage.model.config(), UNETS["tiny"]
    shape = {
        name: getattr(tiny, name) for name in ("widths", "blocks_per_level", "head_width", "context_width", "id_width")
    }
    return replace(
        stage,
        name=f"tiny-{stage.name}",
        model=replace(stage.model, overrides=shape | {"frames": frames if preset.temporal else 1}, checkpointing=False),
        data=replace(stage.data, frames=frames, height_px=64, width_px=96, batch_size=4, fps=(8.0,), workers=1),
        optimizer=replace(stage.optimizer, lr=max(stage.optimizer.lr, 1e-4), warmup_steps=20, ema=0.99),
        run=replace(
            stage.run, steps=200, batch_size=4, precision="fp32", save_every=50, sample_every=100, sample_steps=15
        ),
    )
