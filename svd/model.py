"""A complete model: UNet, autoencoder, conditioning encoders, and the task they define."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from clipmill.config import Config
from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.clip import ImageEmbedder, ImageEncoder, ImageEncoderConfig, TextEmbedder, TextEncoder, TextEncoderConfig
from svd.config import UNetConfig
from svd.shape import MAX_SIZE
from svd.unet import UNet

Task = Literal["image", "text-to-video", "image-to-video", "interpolation", "multi-view"]

NEEDS: Mapping[Task, Literal["image_encoder", "text_encoder"]] = {
    "image": "text_encoder",
    "text-to-video": "text_encoder",
    "image-to-video": "image_encoder",
    "interpolation": "image_encoder",
    "multi-view": "image_encoder",
}
"""Encoder that produces the context of each task."""
Pixels = Annotated[int, Field(strict=True, ge=1, le=MAX_SIZE)]


def task_of(config: UNetConfig) -> Task:
    """Infer the task of a UNet from its inputs: `image` for one without temporal layers."""
    if not config.temporal:
        return "image"
    if config.learned_mask:
        return "interpolation"
    if config.in_channels == config.out_channels:
        return "text-to-video"
    return "multi-view" if "elevation" in config.ids else "image-to-video"


class ModelConfig(Config):
    """Configuration of all networks of a model. Raises ValueError for incompatible networks."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    image_encoder: ImageEncoderConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    width_px: Pixels = 1024
    height_px: Pixels = 576
    """Training frame size, the default for sampling."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.autoencoder.latent_channels != self.unet.out_channels:
            raise ValueError(
                f"the UNet outputs latents with {self.unet.out_channels} channels, but the autoencoder expects "
                f"{self.autoencoder.latent_channels}"
            )
        for encoder, width in (
            (self.image_encoder, getattr(self.image_encoder, "embedding_width", None)),
            (self.text_encoder, getattr(self.text_encoder, "width", None)),
        ):
            if encoder is not None and width != self.unet.context_width:
                raise ValueError(
                    f"the UNet expects context width {self.unet.context_width}, {type(encoder).__name__} has {width}"
                )
        if self.width_px % self.autoencoder.factor or self.height_px % self.autoencoder.factor:
            raise ValueError(
                f"expected a frame size divisible by {self.autoencoder.factor}, got {self.width_px}x{self.height_px}"
            )
        return self

    @property
    def task(self) -> Task:
        return task_of(self.unet)

    @classmethod
    def preset(cls, unet: UNetConfig) -> Self:
        """The released autoencoder and encoders (ViT-H-14) for a UNet of the released width, at the released frame
        size.
        """
        task = task_of(unet)
        multi_view = {"width_px": 576, "height_px": 576} if task == "multi-view" else {}
        return cls(
            unet=unet,
            autoencoder=AutoencoderConfig.preset("svd"),
            image_encoder=ImageEncoderConfig() if NEEDS[task] == "image_encoder" else None,
            text_encoder=TextEncoderConfig() if NEEDS[task] == "text_encoder" else None,
            **multi_view,
        )

    @classmethod
    def tiny(cls, unet: UNetConfig, *, width_px: int = 64, height_px: int = 64) -> Self:
        """A small autoencoder (factor 8) and small encoders for a small UNet: for tests and demos on CPUs."""
        needs = NEEDS[task_of(unet)]
        return cls(
            unet=unet,
            autoencoder=AutoencoderConfig.preset("tiny", widths=(32, 32, 32, 32)),
            image_encoder=ImageEncoderConfig.tiny(unet.context_width) if needs == "image_encoder" else None,
            text_encoder=TextEncoderConfig.tiny(unet.context_width) if needs == "text_encoder" else None,
            width_px=width_px,
            height_px=height_px,
        )


@dataclass(kw_only=True)
class Model:
    """The networks of a model, on one device. Encoders can be any callable that implements the protocol."""

    config: ModelConfig
    unet: UNet
    autoencoder: Autoencoder
    image_encoder: ImageEmbedder | None = None
    text_encoder: TextEmbedder | None = None

    @classmethod
    def build(cls, config: ModelConfig) -> Self:
        """Build new networks with initialized weights, or without weights on the meta device."""
        return cls(
            config=config,
            unet=UNet(config.unet),
            autoencoder=Autoencoder(config.autoencoder),
            image_encoder=ImageEncoder(config.image_encoder) if config.image_encoder else None,
            text_encoder=TextEncoder(config.text_encoder) if config.text_encoder else None,
        )

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def networks(self) -> dict[str, nn.Module]:
        """The networks by name, excluding encoders that are not modules."""
        parts = {
            "unet": self.unet,
            "autoencoder": self.autoencoder,
            "image_encoder": self.image_encoder,
            "text_encoder": self.text_encoder,
        }
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
