"""Key maps between the autoencoder's tensor names and other layouts, and the conversions beyond renaming.

`diffusers` is the layout of AutoencoderKLTemporalDecoder. `original` is `first_stage_model` in the released file, and
`condition` the encoder's second copy in the file's conditioner. Two conversions go beyond renaming:

- The four attention matrices are (C, C) here and in diffusers, (C, C, 1, 1) in the original.
- `original` has no `quant_conv`, the 1x1 convolution after the encoder. It is linear and follows a linear layer: on
  export it is folded into that layer, on import it is the identity.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from svd.autoencoder import AutoencoderConfig

Layout = Literal["diffusers", "original", "condition"]

PREFIX = {"diffusers": "", "original": "first_stage_model.", "condition": "conditioner.embedders.3.encoder."}
"""Prefix of the tensor names; a released checkpoint also contains other networks."""


def table(config: AutoencoderConfig, layout: Layout) -> dict[str, str]:
    """Map our names to the layout's, one to one, for every tensor the layout stores: all for `diffusers`, all but
    `quant_conv` for `original`, the encoder and `quant_conv` for `condition`.

    Middle blocks are named as if there were two blocks per level, even where diffusers cannot build the network: see
    `AutoencoderConfig.in_diffusers`. Raises ValueError for an unknown layout.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(get_args(Layout))}")
    absent = {"diffusers": (), "original": ("quant_conv.",), "condition": ("decoder.",)}[layout]
    names = _names(config, _WORDS["diffusers" if layout == "diffusers" else "original"])
    return {ours: PREFIX[layout] + theirs for ours, theirs in names if not ours.startswith(absent)}


def to_layout(weights: Mapping[str, Tensor], config: AutoencoderConfig, layout: Layout) -> dict[str, Tensor]:
    """Convert the autoencoder's state dict to the layout's names and shapes, preserving its function. Tensors are
    shared.
    """
    if layout == "original":
        weights = _without_quant_conv(weights)
    return {
        theirs: weights[ours][:, :, None, None] if _is_flattened(ours, layout) else weights[ours]
        for ours, theirs in table(config, layout).items()
    }


def from_layout(tensors: Mapping[str, Tensor], config: AutoencoderConfig, layout: Layout) -> dict[str, Tensor]:
    """Convert a layout's tensors to our state dict, the inverse of `to_layout`; for `condition`, only the encoder's
    part.

    Shapes are validated by `load_state_dict`. Raises ValueError, with counts and the first names, for missing tensors.
    """
    names = table(config, layout)
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} tensors are missing, first {', '.join(missing[:3])}")
    weights = {
        ours: tensors[theirs].flatten(1) if _is_flattened(ours, layout) else tensors[theirs]
        for ours, theirs in names.items()
    }
    return _with_quant_conv(weights) if layout == "original" else weights


def _is_flattened(name: str, layout: Layout) -> bool:
    """Whether our tensor is a 1x1 convolution weight in the layout."""
    return layout != "diffusers" and name.endswith(_MATRICES)


def _without_quant_conv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold `quant_conv` into the encoder's last convolution, in float64."""
    quant_OM, quant_bias_O = weights["quant_conv.weight"].double().flatten(1), weights["quant_conv.bias"].double()
    last_MIHW, bias_M = weights["encoder.conv_out.weight"], weights["encoder.conv_out.bias"]
    return {
        **weights,
        "encoder.conv_out.weight": torch.einsum("om,mihw->oihw", quant_OM, last_MIHW.double()).to(last_MIHW.dtype),
        "encoder.conv_out.bias": (quant_OM @ bias_M.double() + quant_bias_O).to(bias_M.dtype),
    }


def _with_quant_conv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = weights["encoder.conv_out.bias"]
    identity = torch.eye(len(bias), dtype=bias.dtype, device=bias.device)[:, :, None, None]
    return {**weights, "quant_conv.weight": identity, "quant_conv.bias": torch.zeros_like(bias)}


_MATRICES = tuple(f".middle.1.{part}.weight" for part in ("query", "key", "value", "out"))


@dataclass(frozen=True, kw_only=True)
class _Words:
    """Names of each part in a layout; {level} counts as ours does, {reversed} from the other end."""

    encoder_block: str
    down: str
    decoder_block: str
    spatial: str
    up: str
    middle: tuple[str, str, str]
    skip: str
    temporal: Mapping[str, str]
    mix: str
    attention: Mapping[str, str]
    norm_out: str
    time_conv_out: str


_WORDS = {
    "diffusers": _Words(
        encoder_block="encoder.down_blocks.{level}.resnets.{block}",
        down="encoder.down_blocks.{level}.downsamplers.0.conv",
        decoder_block="decoder.up_blocks.{level}.resnets.{block}",
        spatial=".spatial_res_block",
        up="decoder.up_blocks.{level}.upsamplers.0.conv",
        middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
        skip="conv_shortcut",
        temporal={part: f"temporal_res_block.{part}" for part in ("norm1", "conv1", "norm2", "conv2")},
        mix="time_mixer.mix_factor",
        attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
        norm_out="conv_norm_out",
        time_conv_out="decoder.time_conv_out",
    ),
    "original": _Words(
        encoder_block="encoder.down.{level}.block.{block}",
        down="encoder.down.{level}.downsample.conv",
        decoder_block="decoder.up.{reversed}.block.{block}",
        spatial="",
        up="decoder.up.{reversed}.upsample.conv",
        middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
        skip="nin_shortcut",
        temporal={
            "norm1": "time_stack.in_layers.0",
            "conv1": "time_stack.in_layers.2",
            "norm2": "time_stack.out_layers.0",
            "conv2": "time_stack.out_layers.3",
        },
        mix="mix_factor",
        attention={"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"},
        norm_out="norm_out",
        time_conv_out="decoder.conv_out.time_mix_conv",
    ),
}


def _names(config: AutoencoderConfig, words: _Words) -> Iterator[tuple[str, str]]:
    """Pairs (our name, their name) of every tensor."""
    levels, blocks = len(config.widths), config.blocks_per_level
    for side in ("encoder", "decoder"):
        yield from _layer(f"{side}.conv_in", f"{side}.conv_in")
        yield from _layer(f"{side}.norm_out", f"{side}.{words.norm_out}")
        yield from _layer(f"{side}.conv_out", f"{side}.conv_out")
    yield from _layer("decoder.time_conv_out", words.time_conv_out)
    yield from _layer("quant_conv", "quant_conv")

    before, attention, after = words.middle
    for index, theirs in ((0, before), (2, after)):
        yield from _block(f"encoder.middle.{index}", f"encoder.{theirs}", words, skip=False)
        yield from _video_block(f"decoder.middle.{index}", f"decoder.{theirs}", words, skip=False)
    for side in ("encoder", "decoder"):
        for ours, theirs in words.attention.items():
            yield from _layer(f"{side}.middle.1.{ours}", f"{side}.{attention}.{theirs}")

    for level in range(levels):
        place = {"level": level, "reversed": levels - 1 - level}
        wider = level > 0 and config.widths[level] != config.widths[level - 1]
        narrower = level > 0 and config.widths[-1 - level] != config.widths[-level]
        for block in range(blocks):
            theirs = words.encoder_block.format(**place, block=block)
            yield from _block(f"encoder.levels.{level}.{block}", theirs, words, skip=wider and block == 0)
        for block in range(blocks + 1):
            theirs = words.decoder_block.format(**place, block=block)
            yield from _video_block(f"decoder.levels.{level}.{block}", theirs, words, skip=narrower and block == 0)
        if level < levels - 1:
            yield from _layer(f"encoder.levels.{level}.{blocks}", words.down.format(**place))
            yield from _layer(f"decoder.levels.{level}.{blocks + 1}", words.up.format(**place))


def _video_block(ours: str, theirs: str, words: _Words, *, skip: bool) -> Iterator[tuple[str, str]]:
    yield from _block(f"{ours}.spatial", theirs + words.spatial, words, skip=skip)
    for part, their_part in words.temporal.items():
        yield from _layer(f"{ours}.temporal.{part}", f"{theirs}.{their_part}")
    yield f"{ours}.mix", f"{theirs}.{words.mix}"


def _block(ours: str, theirs: str, words: _Words, *, skip: bool) -> Iterator[tuple[str, str]]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from _layer(f"{ours}.{part}", f"{theirs}.{part}")
    if skip:
        yield from _layer(f"{ours}.skip", f"{theirs}.{words.skip}")


def _layer(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{theirs}.{part}"
