"""Networks for the tests: small, with every parameter drawn at random, so that nothing agrees because it is zero."""

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from svd.config import UNetConfig
from svd.keymap_unet import diffusers_config, table
from svd.unet import UNet

SMALL = {"widths": (32, 64), "attention": (True, False), "blocks_per_level": 1}
DEEP = {"widths": (32, 32, 64, 64), "attention": (True, True, True, False), "blocks_per_level": 2}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw all parameters: those that start at zero, norms and mixing factors as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)


def random_unet(name: str = "tiny", **changes: object) -> UNet:
    """A UNet of two levels with random weights, in evaluation mode."""
    unet = UNet(UNetConfig.preset(name, **(SMALL | changes))).eval()
    randomise(unet)
    return unet


def inputs(
    unet: UNet, samples: int = 2, frames: int = 3, size: tuple[int, int] = (8, 8), tokens: int = 1, seed: int = 1
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x_BTCHW, c_noise_B and the keyword arguments of `UNet.forward`."""
    generator = torch.Generator().manual_seed(seed)
    config = unet.config
    kwargs = {"context_BNC": torch.randn(samples, tokens, config.context_width, generator=generator)}
    if config.ids:
        kwargs["ids_BK"] = 100 * torch.rand(samples, len(config.ids), generator=generator)
    x_BTCHW = torch.randn(samples, frames, config.in_channels, *size, generator=generator)
    return x_BTCHW, torch.randn(samples, generator=generator), kwargs


def diffusers_twin(unet: UNet, *, equal_eps: bool = True) -> UNetSpatioTemporalConditionModel:
    """The same network in diffusers with the very same tensors; `equal_eps` puts its residual blocks' eps right."""
    with torch.device("meta"):
        twin = UNetSpatioTemporalConditionModel.from_config(diffusers_config(unet.config))
    names = table(unet.config, "diffusers")
    twin.load_state_dict({names[name]: tensor for name, tensor in unet.state_dict().items()}, assign=True)
    if equal_eps:
        for name, module in twin.named_modules():
            if isinstance(module, nn.GroupNorm) and "res_block" in name:
                module.eps = unet.config.norm_eps
    return twin.eval()
