"""Initialize the next stage's UNet from the previous one's without changing its output (section 3.2, section 4).

An image UNet becomes a video UNet; input channels, ids or a learned mask can be added.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from svd.blocks import TemporalLayer
from svd.config import UNetConfig
from svd.unet import UNet

TemporalInit = Literal["identity", "released"]

_WIDENED = ("conv_in.weight", "ids_embedding.0.weight")
"""Tensors that may gain input columns, initialized to zero."""


def inflate(unet: UNet, config: UNetConfig, *, temporal_init: TemporalInit = "identity") -> UNet:
    """Build a UNet of `config` with the weights of `unet`; parameters that `unet` lacks are initialized.

    Initialized if missing: temporal layers, input channels and ids (appended, with zero columns), the vector
    conditioning (zero last layer, so it initially adds nothing), and the mask embedding. For image-only samples the
    output is bit-identical to the image network's unless input channels were added.

    temporal_init: "released" initializes temporal layers as the release does; its temporal transformers then change the
    output for videos immediately. "identity" also zeroes the last projection of each of their branches, so every frame
    of a video initially matches the image network's output; all of these projections receive gradients from the first
    step.

    The new network keeps the device and dtype of `unet`. Raises ValueError if `config` does not extend `unet.config`.
    """
    if config.ids[: len(unet.config.ids)] != unet.config.ids:
        raise ValueError(f"ids must start with the existing {unet.config.ids}, got {config.ids}")
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
    """Make every temporal layer return its input for any blend factor, by zeroing the last projection of each branch of
    the temporal transformers; temporal residual blocks are already initialized that way.
    """
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
        raise ValueError(f"the target network lacks {len(lost)} tensors of the source, first: {lost[0]}")
    for name, tensor in old.items():
        was, becomes = tuple(tensor.shape), tuple(new[name].shape)
        grows = name in _WIDENED and was[0] == becomes[0] and was[1] <= becomes[1] and was[2:] == becomes[2:]
        if was != becomes and not grows:
            raise ValueError(f"cannot grow {name} from {was} to {becomes}: only input channels and ids can be added")


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
