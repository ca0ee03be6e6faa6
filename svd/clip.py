"""CLIP encoders for conditioning: text (section 4.1) and image embeddings (section 4.3).

The image token is the *projected, unnormalized* embedding of OpenCLIP ViT-H-14: one token of width 1024. The 77 text
tokens are the penultimate layer's output of its text encoder after the final norm, as in Stable Diffusion 2.1.
`CachedImages` and `CachedTexts` return precomputed embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from svd.shape import Shape, Size

Layers = Annotated[int, Field(ge=1, le=128)]
Heads = Annotated[int, Field(ge=1, le=1024)]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel statistics of CLIP's training images in [0, 1]."""


class ImageEmbedder(Protocol):
    """Encodes clean frames (B, 3, H, W), RGB in [-1, 1], any size, to embeddings (B, C)."""

    def __call__(self, frames_BCHW: Tensor) -> Tensor: ...


class TextEmbedder(Protocol):
    """Encodes texts to tokens (B, N, C). The empty text is the unconditional input for guidance."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


class CachedImages:
    """An `ImageEmbedder` that returns precomputed embeddings and ignores the images."""

    def __init__(self, embeddings_BC: Tensor) -> None:
        self.embeddings_BC = embeddings_BC

    def __call__(self, frames_BCHW: Tensor) -> Tensor:
        if len(frames_BCHW) != len(self.embeddings_BC):
            raise ValueError(f"{len(self.embeddings_BC)} embeddings are cached, got {len(frames_BCHW)} images")
        return self.embeddings_BC


class CachedTexts:
    """A `TextEmbedder` for texts with precomputed tokens (N, C); include the empty text."""

    def __init__(self, tokens: Mapping[str, Tensor]) -> None:
        self.tokens = tokens

    def __call__(self, texts: Sequence[str]) -> Tensor:
        lost = [text for text in texts if text not in self.tokens]
        if lost:
            raise ValueError(f"{len(lost)} of {len(texts)} texts have no cached tokens, first: {lost[0]!r}")
        return torch.stack([self.tokens[text] for text in texts])


class ImageEncoderConfig(Shape):
    """Architecture of CLIP's vision encoder. Defaults to ViT-H-14, as in the release."""

    size_px: Annotated[int, Field(ge=1, le=2048)] = 224
    patch_px: Size = 14
    width: Size = 1280
    layers: Layers = 32
    heads: Heads = 16
    mlp_width: Size = 5120
    embedding_width: Size = 1024

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_heads(self.width, self.heads)
        return self

    @classmethod
    def tiny(cls, embedding_width: int) -> "ImageEncoderConfig":
        """An encoder with 0.4 M parameters, for tests and demos."""
        return cls(patch_px=56, width=64, layers=2, heads=2, mlp_width=128, embedding_width=embedding_width)


class TextEncoderConfig(Shape):
    """Architecture of CLIP's text encoder. Defaults to ViT-H-14 as in Stable Diffusion 2.1: 23 of its 24 layers."""

    tokens: Annotated[int, Field(ge=1, le=4096)] = 77
    vocabulary: Annotated[int, Field(ge=1, le=2_000_000)] = 49408
    width: Size = 1024
    layers: Layers = 23
    heads: Heads = 16
    mlp_width: Size = 4096

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_heads(self.width, self.heads)
        return self

    @classmethod
    def tiny(cls, width: int) -> "TextEncoderConfig":
        """An encoder with two layers, for tests and demos; most of its parameters are the vocabulary."""
        return cls(width=width, layers=2, heads=2, mlp_width=2 * width)


class ImageEncoder(nn.Module):
    """CLIP's vision encoder, an `ImageEmbedder`: the release's preprocessing, then open_clip's network."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        self.config = config
        self.tower = VisionTransformer(
            image_size=config.size_px,
            patch_size=config.patch_px,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_ratio=config.mlp_width / config.width,
            output_dim=config.embedding_width,
        )

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        """Return embeddings (B, C), projected but not normalized, in the dtype of the weights."""
        if frames_BCHW.ndim != 4 or frames_BCHW.shape[1] != 3:
            raise ValueError(f"frames must have shape (B, 3, H, W), got {tuple(frames_BCHW.shape)}")
        pixels_BCHW = clip_pixels(frames_BCHW, self.config.size_px)
        return cast("Tensor", self.tower(pixels_BCHW.to(self.tower.proj)))


class TextEncoder(nn.Module):
    """CLIP's text encoder without its last layer and projection, a `TextEmbedder`."""

    def __init__(self, config: TextEncoderConfig) -> None:
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import LayerNorm, Transformer

        super().__init__()
        self.config = config
        self.tokenizer = SimpleTokenizer(context_length=config.tokens)
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.tokens, config.width))
        self.transformer = Transformer(
            config.width, config.layers, config.heads, mlp_ratio=config.mlp_width / config.width
        )
        self.ln_final = LayerNorm(config.width)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return tokens (B, N, C) in the dtype of the weights. Longer texts are truncated to N tokens."""
        position_NC = self.positional_embedding
        ids_BN = self.tokenizer(list(texts)).to(position_NC.device)
        n = self.config.tokens
        causal_NN = torch.full((n, n), -torch.inf, device=position_NC.device, dtype=position_NC.dtype).triu(1)
        x_BNC = self.transformer(self.token_embedding(ids_BN) + position_NC, attn_mask=causal_NN)
        return cast("Tensor", self.ln_final(x_BNC))


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of its {heads} heads")


def clip_pixels(frames_BCHW: Tensor, size_px: int = 224) -> Tensor:
    """Preprocess frames in [-1, 1] for CLIP: resize to a `size_px` square, normalize with CLIP's mean and std; float32.

    As in the release, the aspect ratio is not preserved, resizing happens in [-1, 1], and bicubic overshoot is not
    clamped.
    """
    x_BCHW = frames_BCHW.float()
    for dim in (-2, -1):
        x_BCHW = _blur(x_BCHW, x_BCHW.shape[dim] / size_px, dim)
    x_BCHW = F.interpolate(x_BCHW, size=(size_px, size_px), mode="bicubic", align_corners=True)
    mean_CHW = x_BCHW.new_tensor(CLIP_MEAN)[:, None, None]
    std_CHW = x_BCHW.new_tensor(CLIP_STD)[:, None, None]
    return ((x_BCHW + 1) / 2 - mean_CHW) / std_CHW


def _blur(x_BCHW: Tensor, factor: float, dim: int) -> Tensor:
    """Gaussian blur along one axis before downsampling by `factor`; the kernel extends two standard deviations each
    way.
    """
    if factor <= 1:
        return x_BCHW
    std = (factor - 1) / 2
    radius = int(max(4 * std, 3)) // 2
    offsets = torch.arange(-radius, radius + 1, device=x_BCHW.device)
    kernel = torch.exp(-(offsets**2) / (2 * std**2))
    kernel = (kernel / kernel.sum()).reshape((-1, 1) if dim == -2 else (1, -1))
    padding = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
    planes = F.pad(x_BCHW, padding, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(planes, kernel[None, None]).reshape(x_BCHW.shape)
