"""Noise levels and the denoiser: EDM (Karras et al., arXiv 2206.00364, table 1) as in appendix D of the paper, and the
discrete schedule of Stable Diffusion 2.1, the starting point of stage I.

A noisy latent is always x = x0 + sigma * n, with x0 of unit variance (sigma_data = 1) and n standard normal. A network
F defines a denoiser D, which estimates x0:

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma)).

Stable Diffusion's x_t is sqrt(alpha_bar_t) x, at sigma^2 = (1 - alpha_bar_t) / alpha_bar_t. Since sqrt(alpha_bar_t) is
c_in, its v-prediction *is* an EDM denoiser with sigma_data = 1: the two schedules share c_skip, c_out and c_in.
Switching schedules in stage I changes only the distribution of sigma and the input of the time embedding, so stage I
starts by training the time embedding alone.

sigma_B is one noise level per video, float32: all frames of a video share it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Network = Callable[..., Tensor]
"""F(x_BTCHW, c_noise_B, **conditioning), such as `svd.unet.UNet`."""


class Schedule(Protocol):
    """Interface of a noise schedule. All methods are elementwise functions of sigma."""

    def c_skip(self, sigma: Tensor) -> Tensor: ...
    def c_out(self, sigma: Tensor) -> Tensor: ...
    def c_in(self, sigma: Tensor) -> Tensor: ...
    def c_noise(self, sigma: Tensor) -> Tensor: ...
    def loss_weight(self, sigma: Tensor) -> Tensor: ...
    def sample_sigma(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor: ...


class VPrediction:
    """Preconditioning with sigma_data = 1. The sign of c_out is Stable Diffusion's; in EDM it is positive."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma**2 + 1)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma / (sigma**2 + 1).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma**2 + 1).sqrt()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of |D - x0|^2: 1 / c_out^2, which equalizes the loss on F across noise levels."""
        return (1 + sigma**2) / sigma**2


@dataclass(frozen=True, kw_only=True)
class Edm(VPrediction):
    """ln sigma ~ N(p_mean, p_std^2): training distribution of noise levels. Appendix D lists the values per run."""

    p_mean: float = -1.2
    p_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.p_std > 0:
            raise ValueError(f"p_std must be above 0, got {self.p_std}")

    def c_noise(self, sigma: Tensor) -> Tensor:
        return 0.25 * sigma.log()

    def sample_sigma(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw sigma_B, one per video, on the CPU."""
        return (self.p_mean + self.p_std * torch.randn(batch, generator=generator)).exp()


@dataclass(frozen=True, kw_only=True)
class Discrete(VPrediction):
    """Stable Diffusion 2.1's `steps` noise levels: square roots of beta are evenly spaced. c_noise is the timestep.

    `prediction` is the network's training target: v (the 768 px model) or the noise n (the 512 px base model).
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["v", "noise"] = "v"

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"expected steps >= 2 and 0 < beta_start <= beta_end < 1, got {self.steps} steps, "
                f"beta_start {self.beta_start}, beta_end {self.beta_end}"
            )
        if self.prediction not in ("v", "noise"):
            raise ValueError(f"prediction must be 'v' or 'noise', got {self.prediction!r}")

    @cached_property
    def sigmas(self) -> Tensor:
        """sigma of each timestep, ascending, shape (steps,), on the CPU."""
        root_betas = torch.linspace(
            math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps, dtype=torch.float64
        )
        alpha_bar = (1 - root_betas**2).cumprod(0)
        return ((1 - alpha_bar) / alpha_bar).sqrt().float()

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise level of timesteps 0 to steps - 1; ln sigma is interpolated between timesteps."""
        return _interpolate(timestep, torch.arange(self.steps), self.sigmas.log()).exp()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Timestep of a noise level, the inverse of `sigma`, clamped to the schedule's range."""
        return _interpolate(sigma.log(), self.sigmas.log(), torch.arange(self.steps))

    def c_skip(self, sigma: Tensor) -> Tensor:
        return super().c_skip(sigma) if self.prediction == "v" else torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return super().c_out(sigma) if self.prediction == "v" else -sigma

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2: the unweighted error of the network's prediction, as Stable Diffusion was trained."""
        return self.c_out(sigma) ** -2

    def sample_sigma(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw sigma_B for uniformly distributed timesteps, one per video, on the CPU."""
        return self.sigmas[torch.randint(self.steps, (batch,), generator=generator)]


def add_noise(x0_BTCHW: Tensor, noise_BTCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x = x0 + sigma n."""
    return x0_BTCHW + _per_video(sigma_B, x0_BTCHW) * noise_BTCHW


def denoise(
    network: Network,
    x_BTCHW: Tensor,
    sigma_B: Tensor,
    schedule: Schedule,
    *,
    concat_BTCHW: Tensor | None = None,
    **conditioning: Any,
) -> Tensor:
    """D(x; sigma), the estimate of x0.

    `concat_BTCHW` is concatenated to the input channels after c_in (image to video: the first frame's latent,
    unscaled). `conditioning` is passed to the network unchanged. The sum of c_skip x and c_out F is computed in x's
    dtype; use float32 or wider, since lower precision destroys the image at large sigmas. Raises ValueError unless
    sigma is one number per video.
    """
    sigma_B = _checked(sigma_B, x_BTCHW)
    x_in_BTCHW = _per_video(schedule.c_in(sigma_B), x_BTCHW) * x_BTCHW
    if concat_BTCHW is not None:
        x_in_BTCHW = torch.cat([x_in_BTCHW, concat_BTCHW.to(x_in_BTCHW.dtype)], dim=2)
    F_BTCHW = network(x_in_BTCHW, schedule.c_noise(sigma_B), **conditioning).to(x_BTCHW.dtype)
    c_skip, c_out = schedule.c_skip(sigma_B), schedule.c_out(sigma_B)
    return _per_video(c_skip, x_BTCHW) * x_BTCHW + _per_video(c_out, x_BTCHW) * F_BTCHW


def denoising_loss(
    network: Network,
    x0_BTCHW: Tensor,
    noise_BTCHW: Tensor,
    sigma_B: Tensor,
    schedule: Schedule,
    *,
    concat_BTCHW: Tensor | None = None,
    **conditioning: Any,
) -> Tensor:
    """loss_weight(sigma) * |D(x0 + sigma n; sigma) - x0|^2, averaged over each video's elements: shape (B,)."""
    x_BTCHW = add_noise(x0_BTCHW, noise_BTCHW, sigma_B)
    D_BTCHW = denoise(network, x_BTCHW, sigma_B, schedule, concat_BTCHW=concat_BTCHW, **conditioning)
    weight_B = schedule.loss_weight(_checked(sigma_B, x_BTCHW))
    return weight_B * (D_BTCHW - x0_BTCHW).square().flatten(1).mean(1)


def _checked(sigma_B: Tensor, x_BTCHW: Tensor) -> Tensor:
    """Reshape sigma_B to broadcast against x. Raises ValueError unless it is one number per video."""
    if sigma_B.shape != x_BTCHW.shape[:1]:
        raise ValueError(
            f"sigma must have one noise level per video, shape ({len(x_BTCHW)},), got shape {tuple(sigma_B.shape)}"
        )
    return sigma_B.to(x_BTCHW.device)


def _per_video(value_B: Tensor, x_BTCHW: Tensor) -> Tensor:
    return value_B.to(x_BTCHW).reshape(-1, *[1] * (x_BTCHW.ndim - 1))


def _interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear interpolation y(x), x ascending, clamped at both ends."""
    known_x, known_y = known_x.to(x.device, torch.float64), known_y.to(x.device, torch.float64)
    position = x.double().clamp(known_x[0], known_x[-1])
    right = torch.searchsorted(known_x, position).clamp(min=1)
    left_x, right_x = known_x[right - 1], known_x[right]
    share = (position - left_x) / (right_x - left_x)
    return torch.lerp(known_y[right - 1], known_y[right], share).to(torch.float32)
