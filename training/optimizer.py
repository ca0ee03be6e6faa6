"""AdamW with the paper's learning rates (App. D): groups for temporal and spatial layers, decay on matrices alone."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from svd.unet import UNet
from training.stage_config import OptimizerConfig


def temporal_parameters(unet: UNet) -> dict[str, nn.Parameter]:
    """All that a video network has beyond its image network: temporal layers, the embedding of the ids, and that of the
    mask of given frames."""
    layers = dict(unet.temporal_layer_parameters())
    embeddings = ("ids_embedding.", "mask_embedding")
    return layers | {name: value for name, value in unet.named_parameters() if name.startswith(embeddings)}


def build_optimizer(unet: UNet, config: OptimizerConfig) -> AdamW:
    """AdamW over the parameters that train. Raises ValueError where none does."""
    temporal = temporal_parameters(unet)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in temporal, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of this network trains")
    spatial_lr = config.lr if config.spatial_lr is None else config.spatial_lr
    return AdamW(
        [
            {
                "params": parameters,
                "base_lr": config.lr if of_time else spatial_lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (of_time, decays), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=next(unet.parameters()).is_cuda,
    )


def lr_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the learning rates are multiplied by in step `step` of `steps`, from 0: a linear rise, then constant, or
    down to 0 along half a cosine."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Give every group its own learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
