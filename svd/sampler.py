"""From noise to video: Karras et al. (arXiv 2206.00364), algorithms 1 and 2, and guidance over frames (section 4.3).

A denoiser here is any D(x, sigma_B) -> x0, of any layout whose first axis is the batch: `svd.noise.denoise` with the
rest filled in. Sampling keeps no gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma_B), the estimate of the clean x."""
OnStep = Callable[[int, Tensor], None]
"""Called after each step with its number, from 0, and the x that it made."""


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """The noise levels of `steps` steps, descending, then 0 (equation 5): shape (steps + 1,), float64 on the CPU."""
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sampling takes at least 1 step and 0 < sigma_min < sigma_max, got {steps} steps, sigma_min {sigma_min}, "
            f"sigma_max {sigma_max}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


class SeededNoise:
    """Standard normal noise, one stream per sample of the batch.

    A sample's noise depends on its seed alone: not on the batch it is in, nor on the device. Each call goes on with the
    streams.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Noise of the shape, dtype and device of `like`, whose first axis is the batch."""
        if len(like) != len(self._generators):
            raise ValueError(f"there should be a seed per sample, got {len(self._generators)} seeds for {len(like)}")
        samples = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return torch.stack(samples).to(like)


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise put back in before each step (algorithm 2): S_churn, S_min, S_max, S_noise."""

    amount: float
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """By which share sigma is raised before its step."""
        if not self.sigma_min <= sigma <= self.sigma_max:
            return 0.0
        return min(self.amount / steps, math.sqrt(2) - 1)


def initial_noise(like: Tensor, noise: SeededNoise, sigmas: Tensor) -> Tensor:
    """Where sampling starts: normal with variance 1 + sigma_max^2, that of unit data at the highest noise level."""
    return noise(like) * math.sqrt(1 + float(sigmas[0]) ** 2)


def sample_euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: Churn | None = None,
    noise: SeededNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Algorithm 2 without its correction: first order, one evaluation per step. What SVD was released with."""
    return _sample(denoiser, x, sigmas, churn, noise, on_step, correct=False)


def sample_heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: Churn | None = None,
    noise: SeededNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Algorithm 2, or 1 without churn: second order, two evaluations per step but for the last."""
    return _sample(denoiser, x, sigmas, churn, noise, on_step, correct=True)


@torch.no_grad()
def _sample(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    churn: Churn | None,
    noise: SeededNoise | None,
    on_step: OnStep | None,
    *,
    correct: bool,
) -> Tensor:
    if churn is not None and noise is None:
        raise ValueError("churn adds noise: give its source as well (noise=SeededNoise(seeds))")

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoiser(x, x.new_full((len(x),), sigma))) / sigma

    levels = sigmas.tolist()
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        sigma_hat = sigma
        if churn is not None and noise is not None and (gamma := churn.gamma(sigma, len(levels) - 1)) > 0:
            sigma_hat = sigma * (1 + gamma)
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * churn.noise * noise(x)
        d = slope(x, sigma_hat)
        x_next = x + (sigma_next - sigma_hat) * d
        if correct and sigma_next > 0:
            x_next = x + (sigma_next - sigma_hat) * 0.5 * (d + slope(x_next, sigma_next))
        x = x_next
        if on_step is not None:
            on_step(step, x)
    return x


def linear_guidance(frames: int, first: float, last: float) -> Tensor:
    """Guidance that rises evenly from the first frame to the last: (T, 1, 1, 1), to weight (B, T, C, H, W)."""
    return torch.linspace(first, last, frames).reshape(frames, 1, 1, 1)


def guided(denoisers: Sequence[Denoiser], scales: Sequence[float | Tensor]) -> Denoiser:
    """Classifier-free guidance along a chain of denoisers, each with one condition more than the one before:

        D = D_0 + sum_i scale_i (D_i - D_{i-1}).

    Two denoisers are the usual guidance (Ho and Salimans, arXiv 2207.12598); three, with nothing, the image, and image
    and text, are guidance by both (Brooks et al., arXiv 2211.09800, equation 3). A scale is a number, or a tensor that
    broadcasts against x (`linear_guidance`). A scale of 1 throughout leaves out the denoisers it does not need.
    Each denoiser is called by itself, so memory is that of a single one.
    Raises ValueError for a number of scales that does not fit.
    """
    if len(scales) != len(denoisers) - 1:
        raise ValueError(f"{len(denoisers)} denoisers take {len(denoisers) - 1} scales, got {len(scales)}")

    def weight(i: int) -> float | Tensor:
        before = 1.0 if i == 0 else scales[i - 1]
        after = scales[i] if i < len(scales) else 0.0
        return before - after

    weighted = [(denoiser, weight(i)) for i, denoiser in enumerate(denoisers)]
    needed = [(d, w) for d, w in weighted if bool(torch.as_tensor(w).count_nonzero())]

    def denoise(x: Tensor, sigma_B: Tensor) -> Tensor:
        return sum((torch.as_tensor(w).to(x) * d(x, sigma_B) for d, w in needed), start=torch.zeros_like(x))

    return denoise
