"""The groups of a stage's settings: which network trains, on which noise, how, for how long."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from clipmill.config import StrictConfig
from svd.config import UNetConfig
from svd.inflate import TemporalInit
from svd.noise import Discrete, Edm, Schedule
from training.data_config import Count, Positive, Share

Trainable = Literal["all", "temporal", "noise_embedding", "lora"]
Strategy = Literal["auto", "none", "ddp", "fsdp"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class StageModelConfig(StrictConfig):
    """Which network trains, and which of its layers."""

    unet: str = "svd"
    """Preset of the network: sd21, svd, svd_xt, t2v, interpolation, multiview or tiny (`svd.config.PRESETS`)."""
    overrides: Mapping[str, Any] = {}
    """Fields of the preset that differ."""
    trainable: Trainable = "all"
    """`all`: every weight. `temporal`: what a video network has beyond its image network, ids and mask embedding
    included. `noise_embedding`: the embedding of the noise level alone. `lora`: adapters on the attention over time."""
    temporal_init: TemporalInit = "identity"
    """How new temporal layers are initialised. `identity`: the network computes what it did before. `released`: as in
    the released model; see `svd.inflate`."""
    lora_rank: Count = 16
    """Rank of the adapters, with `trainable: lora`."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more compute."""
    autoencoder: str | None = None
    """Model folder or file to take the autoencoder from, where the initial checkpoint has none or another."""
    image_encoder: str | None = None
    """Model folder or file to take CLIP's image encoder from, likewise."""
    text_encoder: str | None = None
    """Model folder or file to take CLIP's text encoder from, likewise."""

    @field_validator("overrides")
    @classmethod
    def _with_tuples(cls, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
        """JSON and YAML have lists; a network's shape has tuples."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.config()
        return self

    def config(self) -> UNetConfig:
        """The network's shape."""
        return UNetConfig.preset(self.unet, **self.overrides)


class NoiseConfig(StrictConfig):
    """Noise levels that are trained on: ln sigma ~ N(p_mean, p_std^2), or Stable Diffusion 2.1's discrete ones."""

    schedule: Literal["edm", "sd21"] = "edm"
    """`edm`: continuous levels, log-normal. `sd21`: the 1,000 discrete levels of Stable Diffusion 2.1."""
    p_mean: float = -1.2
    """With `edm`: mean of ln sigma. Raise it for larger frames, which need more noise to hide the same content."""
    p_std: Positive = 1.0
    """With `edm`: standard deviation of ln sigma."""

    def build(self) -> Schedule:
        return Edm(p_mean=self.p_mean, p_std=self.p_std) if self.schedule == "edm" else Discrete()


class ConditioningDropout(StrictConfig):
    """Shares of samples that are shown without a condition, so that guidance can lead away from its absence.

    One draw decides both: with equal shares they are dropped together, as sampling does.
    """

    context: Share = 0.1
    """Share of samples without their text or CLIP embedding, 0 to 1."""
    concat: Share = 0.1
    """Share of samples without their concatenated latents, 0 to 1."""


class OptimizerConfig(StrictConfig):
    """AdamW: `lr` after `warmup_steps` of linear rise, then constant, or down to 0 along a cosine."""

    lr: Positive = 1e-4
    """Learning rate after warm-up."""
    spatial_lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of the layers that the image network has too; null: `lr`."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """AdamW's decay rates of the averages of the gradient and of its square."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay; not on norms, biases, mixing factors and learned embeddings."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """Optimiser steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After warm-up: `constant`, or `cosine` down to 0 at the last step."""
    clip_norm: Positive = 1.0
    """Greatest norm of the gradient of all trained weights together; larger gradients are scaled down to it."""
    ema: Share | None = 0.9999
    """Decay of the running average of the weights, which is what is sampled and exported; null keeps none."""


class RunConfig(StrictConfig):
    """Length, precision, distribution, and what is written how often. Counts are of optimiser steps."""

    steps: Count = 1000
    """Optimiser steps. A finished run goes on when it is started again with more."""
    batch_size: Count = 8
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
    image_share: Share = 0.0
    """Share of batches that come from image shards (`--images`), for joint training."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Newest checkpoints that are kept."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this stay for good; null: none."""
    sample_every: Count | None = 1000
    """Steps between sample sheets; null: none."""
    sample_count: Count = 2
    """Videos per sample sheet, at most as many as one batch holds."""
    sample_steps: Count = 25
    """Sampler steps of those videos."""
