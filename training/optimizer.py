"""AdamW with the paper's learning rates (App. D): temporal and spatial groups, weight decay on matrices only."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from clipmill.errors import UserError
from svd.unet import UNet
from training.stage_config import OptimizerConfig
from training.trainable import temporal_parameters


def build_optimizer(unet: UNet, config: OptimizerConfig) -> AdamW:
    """AdamW over the trainable parameters. Raises UserError if there are none."""
    temporal = temporal_parameters(unet)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in temporal, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise UserError("the network has no trainable parameters; check model.trainable")
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
    """Learning rate factor at `step` of `steps`, from 0: linear warm-up, then constant or cosine decay to 0."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
