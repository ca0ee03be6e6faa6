"""Key maps between the UNet's tensor names, the original release's and diffusers'. No tensor is reshaped."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from svd.config import UNetConfig

Layout = Literal["clipmill", "original", "diffusers"]

ORIGINAL_PREFIX = "model.diffusion_model."
"""Prefix of the UNet in a released checkpoint, which also contains the autoencoder and the conditioner."""


class _Names(NamedTuple):
    """Name of one module in the three layouts."""

    clipmill: str
    original: str
    diffusers: str

    def __truediv__(self, child: "_Names") -> "_Names":
        return _Names(*(f"{a}.{b}" if a and b else a or b for a, b in zip(self, child, strict=True)))


_RESIDUAL = (
    _Names("norm1", "in_layers.0", "norm1"),
    _Names("conv1", "in_layers.2", "conv1"),
    _Names("embedding", "emb_layers.1", "time_emb_proj"),
    _Names("norm2", "out_layers.0", "norm2"),
    _Names("conv2", "out_layers.3", "conv2"),
)
_SKIP = _Names("skip", "skip_connection", "conv_shortcut")
_TRANSFORMER = tuple(
    _Names(ours, theirs, theirs)
    for ours, theirs in (("norm", "norm"), ("project_in", "proj_in"), ("project_out", "proj_out"))
)
_LAYER = {
    "self_attention.norm": "norm1",
    "self_attention.q": "attn1.to_q",
    "self_attention.k": "attn1.to_k",
    "self_attention.v": "attn1.to_v",
    "self_attention.out": "attn1.to_out.0",
    "cross_attention.norm": "norm2",
    "cross_attention.q": "attn2.to_q",
    "cross_attention.k": "attn2.to_k",
    "cross_attention.v": "attn2.to_v",
    "cross_attention.out": "attn2.to_out.0",
    "feed_forward.norm": "norm3",
    "feed_forward.widen": "ff.net.0.proj",
    "feed_forward.narrow": "ff.net.2",
}
_FEED_FORWARD_IN = {
    "feed_forward_in.norm": "norm_in",
    "feed_forward_in.widen": "ff_in.net.0.proj",
    "feed_forward_in.narrow": "ff_in.net.2",
}
_FRAME_EMBEDDING = (
    _Names("temporal.frame_embedding.0", "time_pos_embed.0", "time_pos_embed.linear_1"),
    _Names("temporal.frame_embedding.2", "time_pos_embed.2", "time_pos_embed.linear_2"),
)
_MIX = _Names("mix.factor", "time_mixer.mix_factor", "time_mixer.mix_factor")


def table(config: UNetConfig, layout: Layout) -> dict[str, str]:
    """Map every tensor name of `UNet(config)` to its name in `layout`, one to one.

    "original" is the layout of the release (and of Stable Diffusion 2.1), prefix included; "diffusers" that of
    UNetSpatioTemporalConditionModel, or of UNet2DConditionModel for a network without temporal layers.
    """
    names = {
        ours: {"clipmill": ours, "original": ORIGINAL_PREFIX + original, "diffusers": diffusers}[layout]
        for ours, original, diffusers in _tensors(config)
    }
    assert len(set(names.values())) == len(names)
    return names


def diffusers_config(config: UNetConfig) -> dict[str, Any]:
    """The config.json from which diffusers builds this network. Raises ValueError if it has no such class."""
    if config.learned_mask or not config.temporal or not config.ids:
        raise ValueError("diffusers only supports video UNets with temporal layers, ids and no learned mask")
    down = ["CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in config.attention]
    up = ["CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in reversed(config.attention)]
    return {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": config.blocks_per_level,
        "cross_attention_dim": config.context_width,
        "num_attention_heads": [width // config.head_width for width in config.widths],
        "addition_time_embed_dim": config.id_width,
        "projection_class_embeddings_input_dim": config.id_width * len(config.ids),
        "transformer_layers_per_block": 1,
        "num_frames": config.frames,
        "sample_size": 96,
    }


def _tensors(config: UNetConfig) -> Iterator[_Names]:
    for module in _modules(config):
        if module.clipmill.endswith((".factor", "mask_embedding")):
            yield module
            continue
        yield module / _Names("weight", "weight", "weight")
        if not module.clipmill.endswith((".q", ".k", ".v")):
            yield module / _Names("bias", "bias", "bias")


def _modules(config: UNetConfig) -> Iterator[_Names]:
    for i in (0, 2):
        yield _Names(f"noise_embedding.{i}", f"time_embed.{i}", f"time_embedding.linear_{i // 2 + 1}")
        if config.ids:
            yield _Names(f"ids_embedding.{i}", f"label_emb.0.{i}", f"add_embedding.linear_{i // 2 + 1}")
    if config.learned_mask:
        yield _Names("mask_embedding", "mask_embedding", "mask_embedding")
    yield _Names("conv_in", "input_blocks.0.0", "conv_in")
    yield _Names("norm_out", "out.0", "conv_norm_out")
    yield _Names("conv_out", "out.2", "conv_out")
    yield from _down(config)
    yield from _middle(config)
    yield from _up(config)


def _down(config: UNetConfig) -> Iterator[_Names]:
    n, width = 1, config.widths[0]
    for i, attention in enumerate(config.attention):
        for j in range(config.blocks_per_level):
            ours, diffusers = f"down.{i}.blocks.{j}", f"down_blocks.{i}"
            residual = _Names(f"{ours}.residual", f"input_blocks.{n}.0", f"{diffusers}.resnets.{j}")
            yield from _residual(config, residual, skip=width != config.widths[i])
            if attention:
                transformer = _Names(f"{ours}.transformer", f"input_blocks.{n}.1", f"{diffusers}.attentions.{j}")
                yield from _transformer(config, transformer)
            n, width = n + 1, config.widths[i]
        if i < len(config.widths) - 1:
            yield _Names(f"down.{i}.resample", f"input_blocks.{n}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
            n += 1


def _middle(config: UNetConfig) -> Iterator[_Names]:
    for j in (0, 1):
        residual = _Names(f"middle.blocks.{j}.residual", f"middle_block.{2 * j}", f"mid_block.resnets.{j}")
        yield from _residual(config, residual, skip=False)
    yield from _transformer(config, _Names("middle.blocks.0.transformer", "middle_block.1", "mid_block.attentions.0"))


def _up(config: UNetConfig) -> Iterator[_Names]:
    n, levels = 0, len(config.widths)
    for i, attention in enumerate(reversed(config.attention)):
        for j in range(config.blocks_per_level + 1):
            ours, diffusers = f"up.{i}.blocks.{j}", f"up_blocks.{i}"
            residual = _Names(f"{ours}.residual", f"output_blocks.{n}.0", f"{diffusers}.resnets.{j}")
            yield from _residual(config, residual, skip=True)
            if attention:
                transformer = _Names(f"{ours}.transformer", f"output_blocks.{n}.1", f"{diffusers}.attentions.{j}")
                yield from _transformer(config, transformer)
            n += 1
        if i < levels - 1:
            original = f"output_blocks.{n - 1}.{2 if attention else 1}.conv"
            yield _Names(f"up.{i}.resample", original, f"up_blocks.{i}.upsamplers.0.conv")


def _residual(config: UNetConfig, block: _Names, *, skip: bool) -> Iterator[_Names]:
    spatial = block / _Names("spatial", "", "spatial_res_block" if config.temporal else "")
    yield from (spatial / part for part in (*_RESIDUAL, *([_SKIP] if skip else [])))
    if config.temporal:
        yield from (block / _Names("temporal", "time_stack", "temporal_res_block") / part for part in _RESIDUAL)
        yield block / _MIX


def _transformer(config: UNetConfig, block: _Names) -> Iterator[_Names]:
    yield from (block / part for part in _TRANSFORMER)
    spatial = block / _Names("spatial", "transformer_blocks.0", "transformer_blocks.0")
    yield from _layer(spatial, _LAYER)
    if config.temporal:
        temporal = block / _Names("temporal", "time_stack.0", "temporal_transformer_blocks.0")
        yield from _layer(temporal, _LAYER | _FEED_FORWARD_IN)
        yield from (block / part for part in _FRAME_EMBEDDING)
        yield block / _MIX


def _layer(block: _Names, parts: Mapping[str, str]) -> Iterator[_Names]:
    yield from (block / _Names(ours, theirs, theirs) for ours, theirs in parts.items())
