"""Setting groups of a stage: network, noise levels, conditioning dropout, optimizer and run."""

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
    """Network to train, and which of its layers."""

    unet: str = "svd"
    """Network preset: sd21, svd, svd_xt, t2v, interpolation, multiview or tiny (`svd.config.PRESETS`)."""
    overrides: Mapping[str, Any] = {}
    """Overrides of the preset's fields."""
    trainable: Trainable = "all"
    """`all`: every weight. `temporal`: everything a video network adds to its image network, id and mask embeddings
    included. `noise_embedding`: the noise level embedding only. `lora`: adapters on temporal attention.
    """
    temporal_init: TemporalInit = "identity"
    """Initialization of new temporal layers. `identity`: the network's output is unchanged. `released`: as in the
    released model; see `svd.inflate`.
    """
    lora_rank: Count = 16
    """Rank of the adapters with `trainable: lora`."""
    checkpointing: bool = False
    """Activation checkpointing: recompute activations in the backward pass. Less memory, about a third more compute."""
    autoencoder: str | None = None
    """Model folder or file with the autoencoder; required if the initial model has none, otherwise replaces it."""
    image_encoder: str | None = None
    """Model folder or file with CLIP's image encoder, likewise."""
    text_encoder: str | None = None
    """Model folder or file with CLIP's text encoder, likewise."""

    @field_validator("overrides")
    @classmethod
    def _with_tuples(cls, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert lists from JSON and YAML to tuples."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.config()
        return self

    def config(self) -> UNetConfig:
        """Architecture of the network."""
        return UNetConfig.preset(self.unet, **self.overrides)


class NoiseConfig(StrictConfig):
    """Training noise levels: ln sigma ~ N(p_mean, p_std^2), or Stable Diffusion 2.1's discrete levels."""

    schedule: Literal["edm", "sd21"] = "edm"
    """`edm`: continuous, log-normal levels. `sd21`: the 1,000 discrete levels of Stable Diffusion 2.1."""
    p_mean: float = -1.2
    """With `edm`: mean of ln sigma. Increase it for larger frames, which need more noise to hide the same content."""
    p_std: Positive = 1.0
    """With `edm`: standard deviation of ln sigma."""

    def build(self) -> Schedule:
        return Edm(p_mean=self.p_mean, p_std=self.p_std) if self.schedule == "edm" else Discrete()


class ConditioningDropout(StrictConfig):
    """Conditioning dropout rates for classifier-free guidance.

    Both conditions share one draw: at equal rates they are dropped together, as in sampling.
    """

    context: Share = 0.1
    """Share of samples trained without text or CLIP embedding, 0 to 1."""
    concat: Share = 0.1
    """Share of samples trained without concatenated latents, 0 to 1."""


class OptimizerConfig(StrictConfig):
    """AdamW with linear warm-up of `lr` over `warmup_steps`, then constant or cosine decay to 0."""

    lr: Positive = 1e-4
    """Learning rate after warm-up."""
    spatial_lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of the layers shared with the image network; null: `lr`."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """AdamW betas."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW weight decay; not applied to norms, biases, blend factors and learned embeddings."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """Optimizer steps of linear learning rate warm-up."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: `constant`, or `cosine` decay to 0 at the last step."""
    clip_norm: Positive = 1.0
    """Maximum gradient norm over all trainable weights; larger gradients are clipped."""
    ema: Share | None = 0.9999
    """Decay of the exponential moving average of the weights, used for previews and export; null: no average."""


class RunConfig(StrictConfig):
    """Length, precision, distribution, logging and checkpoints. Intervals are in optimizer steps."""

    steps: Count = 1000
    """Optimizer steps. To extend a finished run, start it again with more."""
    batch_size: Count = 8
    """Global batch size: samples per optimizer step over all ranks. Each rank accumulates gradients over as many
    batches of `data.batch_size` as needed.
    """
    seed: int = 0
    """Seed for initialization, noise, noise levels and conditioning dropout."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: autocast; weights, optimizer state and average stay float32. `fp32`: no autocast."""
    compile: bool = False
    """Compile each block of the network with torch.compile."""
    strategy: Strategy = "auto"
    """`auto`: `none` for one process, otherwise `fsdp` (FSDP2) for networks over 1 B parameters and `ddp` for smaller
    ones.
    """
    image_share: Share = 0.0
    """Share of batches from image shards (`--images`), for joint training."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Number of recent checkpoints to keep."""
    keep_every: Count | None = None
    """Keep checkpoints at multiples of this many steps permanently; null: none."""
    sample_every: Count | None = 1000
    """Steps between contact sheets of generated videos; null: none."""
    sample_count: Count = 2
    """Videos per contact sheet, at most the batch size."""
    sample_steps: Count = 25
    """Sampler steps for those videos."""
