"""A network of one stage grown into the next stage's, without changing what it computes (section 3.2, section 4).

An image UNet becomes a video UNet; more input channels, ids or a learned mask are added on the way.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from svd.blocks import TemporalLayer
from svd.config import UNetConfig
from svd.unet import UNet

TemporalInit = Literal["identity", "released"]

_WIDENED = ("conv_in.weight", "ids_embedding.0.weight")
"""Tensors that may gain input columns; the new ones are zero."""


def inflate(unet: UNet, config: UNetConfig, *, temporal_init: TemporalInit = "identity") -> UNet:
    """A UNet of `config` that holds the weights of `unet`; what `unet` has not is new.

    New are, where missing: temporal layers, input channels and ids (behind the existing ones, with zero columns), the
    vector conditioning (its last layer zero, so that it adds nothing at the start), the mask embedding. Of samples
    marked image-only the result is the image network's, bit by bit unless input channels were added.

    temporal_init: "released" draws new temporal layers as the release does; its temporal transformers then change a
    video from the first step on. "identity" also zeroes the last projection of each of their branches, so
    that every frame of a video comes out as from the image network; all of these projections receive gradients at once.

    The new network has device and dtype of the old. Raises ValueError where `config` is no such extension of
    `unet.config`.
    """
    if config.ids[: len(unet.config.ids)] != unet.config.ids:
        raise ValueError(f"new ids must follow the existing ones {unet.config.ids}, got {config.ids}")
    old = unet.state_dict()
    reference = next(unet.parameters())
    with torch.device(reference.device):
        new = UNet(config, checkpointing=unet.checkpointing).to(reference.dtype)
    if unet.config.temporal is False and config.temporal and temporal_init == "identity":
        init_as_identity(new)
    if config.ids and not unet.config.ids:
        _zero(new.ids_embedding[-1])
    state = new.state_dict()
    _check(old, state)
    with torch.no_grad():
        for name, tensor in old.items():
            target = state[name]
            if name in _WIDENED:
                target.zero_()
                target = target[:, : tensor.shape[1]]
            target.copy_(tensor)
    return new


def init_as_identity(unet: UNet) -> None:
    """Make every temporal layer return its input, whatever its mixing factor: the last projection of each branch of
    the temporal transformers becomes zero, as those of the temporal residual blocks are from the start."""
    for module in unet.modules():
        if isinstance(module, TemporalLayer):
            _zero(module.frame_embedding[-1])
            for last in (
                module.feed_forward_in.narrow,
                module.self_attention.out,
                module.cross_attention.out,
                module.feed_forward.narrow,
            ):
                _zero(last)


def _check(old: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    lost = [name for name in old if name not in new]
    if lost:
        raise ValueError(f"the larger network has no place for {len(lost)} tensors, first {lost[0]}")
    for name, tensor in old.items():
        was, becomes = tuple(tensor.shape), tuple(new[name].shape)
        grows = name in _WIDENED and was[0] == becomes[0] and was[1] <= becomes[1] and was[2:] == becomes[2:]
        if was != becomes and not grows:
            raise ValueError(f"{name} is {was} and would have to become {becomes}: only inputs and ids can be added")


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
