"""Key maps between the tensor names of CLIP's two encoders and other layouts.

Our names are open_clip's; `original` adds a prefix, `transformers` is the layout of CLIPVisionModelWithProjection and
CLIPTextModel, as in a diffusers folder. Two conversions go beyond renaming: open_clip stacks query, key and value into
one matrix while transformers has three, and the projections are transposes of each other.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from svd.clip import ImageEncoderConfig, TextEncoderConfig

Layout = Literal["original", "transformers"]

IMAGE_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
TEXT_PREFIX = "conditioner.embedders.0.model."
"""Prefixes of the image and text conditioners in an original file."""

_LAYER = {
    "ln_1.weight": ("layer_norm1.weight",),
    "ln_1.bias": ("layer_norm1.bias",),
    "attn.in_proj_weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "attn.in_proj_bias": tuple(f"self_attn.{part}_proj.bias" for part in "qkv"),
    "attn.out_proj.weight": ("self_attn.out_proj.weight",),
    "attn.out_proj.bias": ("self_attn.out_proj.bias",),
    "ln_2.weight": ("layer_norm2.weight",),
    "ln_2.bias": ("layer_norm2.bias",),
    "mlp.c_fc.weight": ("mlp.fc1.weight",),
    "mlp.c_fc.bias": ("mlp.fc1.bias",),
    "mlp.c_proj.weight": ("mlp.fc2.weight",),
    "mlp.c_proj.bias": ("mlp.fc2.bias",),
}
_IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = "tower.proj"

Config = ImageEncoderConfig | TextEncoderConfig


def table(config: Config, layout: Layout) -> dict[str, tuple[str, ...]]:
    """Map our names to the layout's, or to the three names of a stacked tensor. Every name occurs once.

    Raises ValueError for an unknown layout.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(get_args(Layout))}")
    image = isinstance(config, ImageEncoderConfig)
    prefix, ours_prefix = (IMAGE_PREFIX, "tower.") if image else (TEXT_PREFIX, "")
    return {
        ours_prefix + name: theirs if layout == "transformers" else (prefix + name,)
        for name, theirs in _names(config.layers, image=image)
    }


def to_layout(weights: Mapping[str, Tensor], config: Config, layout: Layout) -> dict[str, Tensor]:
    """Convert an encoder's state dict to the layout's names and shapes. Tensors are views of ours."""
    tensors: dict[str, Tensor] = {}
    for ours, theirs in table(config, layout).items():
        turned = weights[ours].T if ours == _TRANSPOSED and layout == "transformers" else weights[ours]
        tensors |= zip(theirs, turned.chunk(len(theirs)), strict=True)
    return tensors


def from_layout(tensors: Mapping[str, Tensor], config: Config, layout: Layout) -> dict[str, Tensor]:
    """Convert back, the inverse of `to_layout`. Raises KeyError for a missing tensor."""
    weights: dict[str, Tensor] = {}
    for ours, theirs in table(config, layout).items():
        joined = torch.cat([tensors[name] for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        weights[ours] = joined.T.contiguous() if ours == _TRANSPOSED and layout == "transformers" else joined
    return weights


def _names(layers: int, *, image: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of open_clip's name and transformers' name or names."""
    for name, theirs in (_IMAGE if image else _TEXT).items():
        yield name, (theirs,)
    model = "vision_model" if image else "text_model"
    for i in range(layers):
        for name, parts in _LAYER.items():
            yield (
                f"transformer.resblocks.{i}.{name}",
                tuple(f"{model}.encoder.layers.{i}.{part}" for part in parts),
            )
