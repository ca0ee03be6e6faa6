"""Samplers against closed-form trajectories and diffusers' EulerDiscreteScheduler; guidance; seeds."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from svd.noise import Edm, denoise
from svd.sampler import (
    Churn,
    SeededNoise,
    guided,
    initial_noise,
    karras_sigmas,
    linear_guidance,
    sample_euler,
    sample_heun,
)

MEAN, STD = 0.7, 0.5


def gaussian(x, sigma_B):
    """The ideal denoiser where the data is normal: E[x0 | x] has a closed form."""
    sigma = sigma_B.reshape(-1, *[1] * (x.ndim - 1))
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def gaussian_end(x, sigma_max):
    """Where the probability flow leads x from sigma_max to 0: quantiles stay quantiles."""
    return MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + sigma_max**2)


@pytest.fixture(scope="module")
def network():
    """A nonlinear F(x; c_noise) with neighbours in space and time."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(8, 4, 3, padding=1).requires_grad_(False)

    def F(x_BTCHW, c_noise_B):
        c_noise = c_noise_B.reshape(-1, 1, 1, 1, 1).expand_as(x_BTCHW)
        return conv(torch.cat([x_BTCHW, c_noise.sin()], dim=2).transpose(1, 2)).transpose(1, 2).tanh()

    return F


def test_sigmas_are_those_of_the_paper():
    sigmas = karras_sigmas(25)
    assert sigmas.shape == (26,)
    assert sigmas[[0, 24, 25]].tolist() == pytest.approx([700, 0.002, 0])
    assert (sigmas.diff() < 0).all()
    assert (sigmas[:-1] ** (1 / 7)).diff().std() < 1e-12
    assert sigmas.dtype == torch.float64
    assert karras_sigmas(1, sigma_max=5.0).tolist() == pytest.approx([5, 0])
    for steps, least, most in ((0, 0.002, 700.0), (10, 1.0, 0.5), (10, 0.0, 0.5), (10, 0.5, 0.5)):
        with pytest.raises(ValueError, match=f"got {steps} steps, sigma_min {least}, sigma_max {most}$"):
            karras_sigmas(steps, sigma_min=least, sigma_max=most)


def test_churn_raises_sigma_within_its_bounds():
    """Algorithm 2: gamma is the smaller of S_churn / N and sqrt(2) - 1, from S_min to S_max."""
    churn = Churn(amount=2.0, sigma_min=1.0, sigma_max=3.0)
    assert [churn.gamma(sigma, 10) for sigma in (0.9, 1.0, 2.0, 3.0, 3.1)] == [0.0, 0.2, 0.2, 0.2, 0.0]
    assert Churn(amount=1000.0).gamma(2.0, 10) == pytest.approx(math.sqrt(2) - 1)


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_every_step_is_told_of(sampler):
    calls = []
    start, sigmas = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), karras_sigmas(4)
    end = sampler(gaussian, start, sigmas, on_step=lambda step, x: calls.append((step, x)))
    assert [step for step, _ in calls] == [0, 1, 2, 3]
    assert torch.equal(calls[-1][1], end)


def test_denoisers_are_told_of_the_noise_level():
    x, sigma_B, levels = torch.ones(2, 3, dtype=torch.float64), torch.tensor([1.0, 2.0]), []
    guide = guided([lambda x, s: levels.append(s) or 0 * x, lambda x, s: levels.append(s) or x], [torch.tensor(2.0)])
    assert torch.equal(guide(x, sigma_B), 2 * x)
    assert guide(x, sigma_B).dtype == torch.float64
    assert all(torch.equal(each, sigma_B) for each in levels)


@pytest.mark.parametrize("steps", [25, 30])
def test_the_whole_trajectory_equals_diffusers(network, steps):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    sigmas = karras_sigmas(steps)
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas, rtol=1e-6, atol=0)

    like = torch.empty(2, 3, 4, 6, 8)
    noise = torch.randn(like.shape)
    theirs, expected = noise * scheduler.init_noise_sigma, []
    start = initial_noise(like, lambda like: noise, sigmas)
    torch.testing.assert_close(start, theirs, rtol=1e-6, atol=0)
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(theirs, timestep), timestep.expand(2))
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        expected.append(theirs)

    states = []
    end = sample_euler(
        lambda x, sigma_B: denoise(network, x, sigma_B, Edm()), start, sigmas, on_step=lambda _, x: states.append(x)
    )
    assert len(states) == steps
    assert torch.equal(states[-1], end)
    for ours, x in zip(states, expected, strict=True):
        assert (ours - x).abs().max() <= 1e-5 * x.abs().max()
    assert end.std() > 0.1


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_heun, 2)])
def test_convergence_on_gaussian_data_has_the_order_of_the_method(sampler, order):
    x = 80 * torch.randn(1, 16, dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        end = sampler(gaussian, x, karras_sigmas(steps, sigma_min=1e-5, sigma_max=80.0))
        errors.append((end - gaussian_end(x, 80.0)).abs().max().item())
    assert errors[-1] < 0.1
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_heun_evaluates_twice_but_for_the_last_step():
    for sampler, expected in ((sample_euler, 10), (sample_heun, 19)):
        calls = []

        def count(x, sigma_B, calls=calls):
            calls.append(sigma_B)
            return gaussian(x, sigma_B)

        sampler(count, torch.randn(3, 4), karras_sigmas(10))
        assert len(calls) == expected
        assert all(sigma_B.shape == (3,) and (sigma_B > 0).all() for sigma_B in calls)


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_churn_keeps_the_distribution(sampler):
    sigmas = karras_sigmas(400, sigma_min=0.002, sigma_max=80.0)
    noise = SeededNoise([0, 1])
    start = initial_noise(torch.empty(2, 20_000), noise, sigmas)
    churned = sampler(gaussian, start, sigmas, churn=Churn(amount=30.0), noise=noise)
    still = sampler(gaussian, start, sigmas)
    for end in (churned, still):
        assert end.mean() == pytest.approx(MEAN, abs=0.02)
        assert end.std() == pytest.approx(STD, rel=0.05)
    assert torch.corrcoef(torch.stack([churned[0], still[0]]))[0, 1] < 0.9
    outside = sampler(gaussian, start, sigmas, churn=Churn(amount=30.0, sigma_min=100.0), noise=noise)
    assert torch.equal(outside, still)
    with pytest.raises(ValueError, match="SeededNoise"):
        sampler(gaussian, start, sigmas, churn=Churn(amount=1.0))


def test_noise_depends_on_the_seed_alone():
    like = torch.empty(3, 2, 4, 5, 5)
    together, alone = SeededNoise([7, 8, 9]), SeededNoise([8])
    for _ in range(2):
        assert torch.equal(together(like)[1], alone(like[:1])[0])
    assert not torch.equal(SeededNoise([7])(like[:1]), SeededNoise([8])(like[:1]))
    assert torch.equal(SeededNoise([7])(like[:1].double()), SeededNoise([7])(like[:1]).double())
    for like_other in (like.to(torch.bfloat16), like.to("meta")):
        noise = SeededNoise([7, 8, 9])(like_other)
        assert (noise.dtype, noise.device) == (like_other.dtype, like_other.device)
    with pytest.raises(ValueError, match="3 seeds for 2"):
        SeededNoise([7, 8, 9])(like[:2])


def test_a_sample_does_not_depend_on_its_batch(network):
    def sample(seeds):
        noise, sigmas = SeededNoise(seeds), karras_sigmas(6)
        start = initial_noise(torch.empty(len(seeds), 3, 4, 6, 8), noise, sigmas)
        churn = Churn(amount=2.0)
        return sample_heun(lambda x, s: denoise(network, x, s, Edm()), start, sigmas, churn=churn, noise=noise)

    torch.testing.assert_close(sample([3, 4, 5])[1:2], sample([4]), atol=1e-4, rtol=0)


def test_guidance():
    x, sigma_B = torch.randn(2, 5, 4, 3, 3), torch.ones(2)
    nothing, image, both = (lambda x, s, i=i: (i + 1) * x + i for i in range(3))
    n, i, b = nothing(x, sigma_B), image(x, sigma_B), both(x, sigma_B)

    scales = linear_guidance(5, 1.0, 3.0)
    guided_x = guided([nothing, image], [scales])(x, sigma_B)
    torch.testing.assert_close(guided_x, n + torch.linspace(1, 3, 5).reshape(1, 5, 1, 1, 1) * (i - n))
    torch.testing.assert_close(guided_x[:, 0], i[:, 0])
    torch.testing.assert_close(guided([nothing, image], [2.0])(x, sigma_B), n + 2 * (i - n))

    expected = n + 1.5 * (i - n) + 7.0 * (b - i)
    torch.testing.assert_close(guided([nothing, image, both], [1.5, 7.0])(x, sigma_B), expected)
    torch.testing.assert_close(guided([nothing, both], [0.0])(x, sigma_B), n)
    with pytest.raises(ValueError, match="require 2 scales, got 1"):
        guided([nothing, image, both], [1.5])


def test_guidance_of_one_needs_no_second_denoiser():
    def never(x, sigma_B):
        raise AssertionError

    x = torch.randn(1, 5, 4, 3, 3)
    for scale in (1.0, linear_guidance(5, 1.0, 1.0)):
        assert torch.equal(guided([never, lambda x, s: 2 * x], [scale])(x, torch.ones(1)), 2 * x)


def test_guidance_keeps_the_type_of_what_is_denoised():
    x = torch.ones(2, 3, 1, 1, 1, dtype=torch.bfloat16)
    both = guided([lambda x, sigma_B: 2 * x, lambda x, sigma_B: 4 * x], [linear_guidance(3, 1.0, 2.0)])
    assert both(x, torch.ones(2)).dtype == torch.bfloat16
    assert both(x, torch.ones(2))[0].flatten().tolist() == [4.0, 5.0, 6.0]
