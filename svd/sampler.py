"""EDM samplers: Karras et al. (arXiv 2206.00364), algorithms 1 and 2, and guidance that varies over frames (section
4.3).

A denoiser is any D(x, sigma_B) -> x0 for any layout with the batch as first axis: `svd.noise.denoise` with its other
arguments bound. Sampling runs without gradients.
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
"""Called after each step with the step index, from 0, and the resulting x."""


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Noise levels of `steps` steps, descending, followed by 0 (equation 5): shape (steps + 1,), float64 on the CPU."""
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"expected steps >= 1 and 0 < sigma_min < sigma_max, got {steps} steps, sigma_min {sigma_min}, "
            f"sigma_max {sigma_max}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


class SeededNoise:
    """Standard normal noise from one random stream per sample of the batch.

    A sample's noise depends only on its seed, not on the batch or the device. Successive calls continue the streams.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Draw noise with the shape, dtype and device of `like`; its first axis is the batch."""
        if len(like) != len(self._generators):
            raise ValueError(f"expected one seed per sample, got {len(self._generators)} seeds for {len(like)} samples")
        samples = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return torch.stack(samples).to(like)


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Stochasticity of algorithm 2, which adds noise before each step: S_churn, S_min, S_max, S_noise."""

    amount: float
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative increase of sigma before the step."""
        if not self.sigma_min <= sigma <= self.sigma_max:
            return 0.0
        return min(self.amount / steps, math.sqrt(2) - 1)


def initial_noise(like: Tensor, noise: SeededNoise, sigmas: Tensor) -> Tensor:
    """Initial sample: normal with variance 1 + sigma_max^2, that of unit-variance data at the highest noise level."""
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
    """Algorithm 2 without its correction: first order, one evaluation per step. The sampler SVD was released with."""
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
    """Algorithm 2, or 1 without churn: second order, two evaluations per step except the last."""
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
        raise ValueError("churn requires a noise source; pass noise=SeededNoise(seeds)")

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
    """Guidance scale that increases linearly over the frames: (T, 1, 1, 1), broadcast against (B, T, C, H, W)."""
    return torch.linspace(first, last, frames).reshape(frames, 1, 1, 1)


def guided(denoisers: Sequence[Denoiser], scales: Sequence[float | Tensor]) -> Denoiser:
    """Classifier-free guidance over a chain of denoisers, each with one more condition than the previous one:

        D = D_0 + sum_i scale_i (D_i - D_{i-1}).

    Two denoisers give standard guidance (Ho and Salimans, arXiv 2207.12598); three (unconditional, image, image and
    text) give guidance by both (Brooks et al., arXiv 2211.09800, equation 3). A scale is a number or a tensor that
    broadcasts against x (`linear_guidance`). If every scale is 1, unneeded denoisers are skipped. Denoisers are called
    one at a time, so peak memory is that of one. Raises ValueError for a wrong number of scales.
    """
    if len(scales) != len(denoisers) - 1:
        raise ValueError(f"{len(denoisers)} denoisers require {len(denoisers) - 1} scales, got {len(scales)}")

    def weight(i: int) -> float | Tensor:
        before = 1.0 if i == 0 else scales[i - 1]
        after = scales[i] if i < len(scales) else 0.0
        return before - after

    weighted = [(denoiser, weight(i)) for i, denoiser in enumerate(denoisers)]
    needed = [(d, w) for d, w in weighted if bool(torch.as_tensor(w).count_nonzero())]

    def denoise(x: Tensor, sigma_B: Tensor) -> Tensor:
        return sum((torch.as_tensor(w).to(x) * d(x, sigma_B) for d, w in needed), start=torch.zeros_like(x))

    return denoise
