"""AdamW with the paper's learning rates (App. D): groups for temporal and spatial layers, decay on matrices alone."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from clipmill.errors import UserError
from svd.unet import UNet
from training.stage_config import OptimizerConfig
from training.trainable import temporal_parameters


def build_optimizer(unet: UNet, config: OptimizerConfig) -> AdamW:
    """AdamW over the parameters that train. Raises UserError where none does."""
    temporal = temporal_parameters(unet)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in temporal, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise UserError("no parameter of this network trains")
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
