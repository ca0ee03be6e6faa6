"""A whole model: UNet, autoencoder and the encoders of its conditions, and the task that it is for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import nn

from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.clip import ImageEmbedder, ImageEncoder, ImageEncoderConfig, TextEmbedder, TextEncoder, TextEncoderConfig
from svd.config import UNetConfig
from svd.unet import UNet

Task = Literal["image", "text-to-video", "image-to-video", "interpolation", "multi-view"]

NEEDS: Mapping[Task, Literal["image_encoder", "text_encoder"]] = {
    "image": "text_encoder",
    "text-to-video": "text_encoder",
    "image-to-video": "image_encoder",
    "interpolation": "image_encoder",
    "multi-view": "image_encoder",
}
"""Which encoder makes the context of a task."""


def task_of(config: UNetConfig) -> Task:
    """What a UNet is for, which its inputs tell: `image` for one without temporal layers."""
    if not config.temporal:
        return "image"
    if config.learned_mask:
        return "interpolation"
    if config.in_channels == config.out_channels:
        return "text-to-video"
    return "multi-view" if "elevation" in config.ids else "image-to-video"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of all networks of a model. Raises ValueError where they do not fit together."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    image_encoder: ImageEncoderConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    width_px: int = 1024
    height_px: int = 576
    """Size of the frames that the model was trained on, and makes if not told otherwise."""

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 16:
                raise ValueError(f"{name}: expected a whole number from 1 to 65,536, got {value!r}")
        if self.autoencoder.latent_channels != self.unet.out_channels:
            raise ValueError(
                f"the UNet makes latents of {self.unet.out_channels} channels, the autoencoder takes "
                f"{self.autoencoder.latent_channels}"
            )
        for encoder, width in (
            (self.image_encoder, getattr(self.image_encoder, "embedding_width", None)),
            (self.text_encoder, getattr(self.text_encoder, "width", None)),
        ):
            if encoder is not None and width != self.unet.context_width:
                raise ValueError(
                    f"the UNet's context is {self.unet.context_width} wide, {type(encoder).__name__} says {width}"
                )
        if self.width_px % self.autoencoder.factor or self.height_px % self.autoencoder.factor:
            raise ValueError(
                f"{self.width_px}x{self.height_px} pixels do not divide by the autoencoder's {self.autoencoder.factor}"
            )

    @property
    def task(self) -> Task:
        return task_of(self.unet)

    @classmethod
    def preset(cls, unet: UNetConfig) -> Self:
        """The released autoencoder and encoders (ViT-H-14) for a UNet of the released width, at the released size."""
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
        """A small autoencoder (factor 8) and small encoders for a small UNet: for tests and demos on a CPU."""
        needs = NEEDS[task_of(unet)]
        return cls(
            unet=unet,
            autoencoder=AutoencoderConfig.preset("tiny", widths=(32, 32, 32, 32)),
            image_encoder=ImageEncoderConfig.tiny(unet.context_width) if needs == "image_encoder" else None,
            text_encoder=TextEncoderConfig.tiny(unet.context_width) if needs == "text_encoder" else None,
            width_px=width_px,
            height_px=height_px,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote. Raises ValueError for unknown or missing fields."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        missing = [name for name in ("unet", "autoencoder") if name not in values]
        if unknown or missing:
            raise ValueError(f"a model has {', '.join(known)}; unknown: {unknown}, missing: {missing}")
        parts: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "unet": UNetConfig.from_dict,
            "autoencoder": AutoencoderConfig.from_dict,
            "image_encoder": ImageEncoderConfig.from_dict,
            "text_encoder": TextEncoderConfig.from_dict,
        }
        for name in parts:
            if not isinstance(values.get(name), Mapping | None):
                raise ValueError(f"{name}: expected an object with its settings, got {type(values[name]).__name__}")
        made = {name: parts[name](values[name]) for name in parts if values.get(name) is not None}
        return cls(**{**values, **made})

    def to_dict(self) -> dict[str, Any]:
        """All fields, fit for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in values.items()}


@dataclass(kw_only=True)
class Model:
    """The networks of a model, on one device. An encoder may be any callable that keeps its protocol."""

    config: ModelConfig
    unet: UNet
    autoencoder: Autoencoder
    image_encoder: ImageEmbedder | None = None
    text_encoder: TextEmbedder | None = None

    @classmethod
    def build(cls, config: ModelConfig) -> Self:
        """New networks, with the weights that training starts from; on the meta device, without any."""
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
        """The networks by name, without encoders that are no network."""
        parts = {
            "unet": self.unet,
            "autoencoder": self.autoencoder,
            "image_encoder": self.image_encoder,
            "text_encoder": self.text_encoder,
        }
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
