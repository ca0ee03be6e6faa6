"""Image-to-video training loop in the style of diffusers' scripts, with its UNet, EMA and LR schedule, and accelerate.
Baseline of `benchmarks.train_step`."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from svd.conditioning import encode_picture
from svd.unet import UNet
from tests.svd.networks import diffusers_twin
from training.batch import Batch
from training.objective import Draws
from training.stages import Stage

Step = Callable[..., tuple[Tensor, Tensor]]
"""Maps optional draws to the loss and its gradient norm."""


def diffusers_loop(stage: Stage, unet: UNet, autoencoder: Any, batch: Batch, device: str) -> Step:
    """A training step on a copy of `unet`, always on the same batch; `autoencoder` must be on the device."""
    AcceleratorState._reset_state(reset_partial_state=True)  # else a process has one device and precision for good
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if stage.run.precision == "bf16" else "no")
    network: Any = diffusers_twin(copy.deepcopy(unet))
    network.train().to(accelerator.device)
    if stage.model.checkpointing:
        network.enable_gradient_checkpointing()
    config, weights = stage.optimizer, list(network.parameters())
    adamw = torch.optim.AdamW(weights, config.lr, config.betas, config.eps, config.weight_decay, fused=device == "cuda")
    average = EMAModel(weights, decay=config.ema or 0.0, foreach=True)
    warm_up = get_scheduler("constant_with_warmup", adamw, num_warmup_steps=config.warmup_steps)
    network, optimizer, scheduler = accelerator.prepare(network, adamw, warm_up)

    def step(draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        with accelerator.accumulate(network):
            noisy = _noisy(stage, batch.to(accelerator.device), autoencoder, draws)
            x, sigma = noisy.x, noisy.sigma
            x_in = torch.cat([x / (sigma**2 + 1).sqrt(), noisy.concat], dim=2)
            prediction = network(x_in, 0.25 * sigma.flatten().log(), noisy.context, noisy.ids).sample
            denoised = x / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * prediction
            loss = ((1 + sigma**2) / sigma**2 * (denoised - noisy.x0) ** 2).mean()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        average.step(network.parameters())
        return loss.detach(), norm

    return step


class _Noisy(NamedTuple):
    x0: Tensor
    x: Tensor
    sigma: Tensor
    """One per video, broadcastable to `x`."""
    concat: Tensor
    context: Tensor
    ids: Tensor


@torch.no_grad()
def _noisy(stage: Stage, batch: Batch, autoencoder: Any, draws: Draws | None) -> _Noisy:
    """Add noise to a batch; without `draws` they are drawn for all samples at once on their device."""
    given = (batch.mean_BTCHW, batch.logvar_BTCHW, batch.ends_BECHW, batch.image_embeddings_BEC)
    mean, logvar, ends, embeddings = cast("tuple[Tensor, Tensor, Tensor, Tensor]", given)
    if draws is None:
        normal, share = torch.randn(2, len(batch), device=mean.device), torch.rand(len(batch), device=mean.device)
        sigma, augmentation = (stage.noise.p_mean + stage.noise.p_std * normal[0]).exp(), (0.5 * normal[1] - 3).exp()
        noise: Callable[[Tensor], Tensor] = torch.randn_like
    else:
        sigma, augmentation, share = (draw.to(mean) for draw in (draws.sigma_B, draws.augmentation_B, draws.share_B))
        noise = draws.noise
    sigma = sigma[:, None, None, None, None]
    x0 = autoencoder.config.scale_factor * (mean + (0.5 * logvar).exp() * noise(mean))
    x = x0 + sigma * noise(x0)
    picture = ends[:, 0].float() / 127.5 - 1
    latent = encode_picture(autoencoder, picture, noise(picture), augmentation)
    keep_mask = (share >= stage.conditioning_dropout.context).float()[:, None]
    concat = (keep_mask[..., None, None] * latent)[:, None].expand(-1, x0.shape[1], -1, -1, -1)
    ids = torch.stack([batch.fps - 1, batch.motion_bucket, augmentation], dim=1)
    return _Noisy(x0, x, sigma, concat, (keep_mask * embeddings[:, 0])[:, None], ids)
