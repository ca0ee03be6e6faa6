"""The two noise schedules: identities of the equations, and agreement with diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from svd.noise import Discrete, Edm, add_noise, denoise, denoising_loss

SIGMAS = st.floats(1e-3, 1e3).map(lambda sigma: torch.tensor([sigma], dtype=torch.float64))
EVERY = [Edm(), Discrete(), Discrete(prediction="noise")]
SD21 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


def video(batch=3, frames=4, dtype=torch.float64):
    return torch.randn(batch, frames, 4, 5, 6, dtype=dtype)


@given(SIGMAS)
def test_preconditioning_keeps_unit_variance(sigma):
    """With x0 and n of unit variance, input and target of the network have unit variance (EDM, appendix B.6)."""
    edm = Edm()
    assert edm.c_in(sigma) ** 2 * (1 + sigma**2) == pytest.approx(1)
    # Target (x0 - c_skip (x0 + sigma n)) / c_out: its x0 and its n part.
    of_x0 = (1 - edm.c_skip(sigma)) / edm.c_out(sigma)
    of_noise = -edm.c_skip(sigma) * sigma / edm.c_out(sigma)
    assert of_x0**2 + of_noise**2 == pytest.approx(1)
    # ... and is v = alpha n - s x0 of the variance-preserving process, alpha = c_in, s = sigma c_in.
    assert of_noise.item() == pytest.approx(edm.c_in(sigma).item())
    assert of_x0.item() == pytest.approx((-sigma * edm.c_in(sigma)).item())


@given(SIGMAS)
def test_the_equations_of_appendix_d(sigma):
    edm, s = Edm(), sigma.item()
    assert edm.c_skip(sigma).item() == pytest.approx(1 / (s**2 + 1))
    assert edm.c_out(sigma).item() == pytest.approx(-s / (s**2 + 1) ** 0.5)
    assert edm.c_in(sigma).item() == pytest.approx(1 / (s**2 + 1) ** 0.5)
    assert edm.c_noise(sigma).item() == pytest.approx(0.25 * torch.tensor(s).log().item(), abs=1e-6)
    assert edm.loss_weight(sigma).item() == pytest.approx((1 + s**2) / s**2)
    for schedule in EVERY:
        assert schedule.loss_weight(sigma).item() == pytest.approx(schedule.c_out(sigma).item() ** -2)


def test_limits_of_the_denoiser():
    """Without noise x is the answer, whatever the network says; in pure noise only the network counts."""
    x = video()
    clean = denoise(lambda x, c_noise: torch.ones_like(x), x, torch.full((3,), 1e-8), Edm())
    torch.testing.assert_close(clean, x, atol=1e-7, rtol=0)
    blind = denoise(lambda x, c_noise: torch.ones_like(x), x, torch.full((3,), 1e8), Edm())
    torch.testing.assert_close(blind, -torch.ones_like(x), atol=1e-7, rtol=0)


@pytest.mark.parametrize("schedule", EVERY)
def test_a_perfect_network_has_no_loss_and_a_silent_one_has_one(schedule):
    x0, noise = video(8, 16), video(8, 16)
    sigma = schedule.sample_sigma(8, generator=torch.Generator().manual_seed(0)).double()

    def perfect(x_in, c_noise):
        s = sigma[:, None, None, None, None]
        return (x0 - schedule.c_skip(s) * (x0 + s * noise)) / schedule.c_out(s)

    assert denoising_loss(perfect, x0, noise, sigma, schedule).max() < 1e-12
    silent = denoising_loss(lambda x_in, c_noise: torch.zeros_like(x_in), x0, noise, sigma, schedule)
    torch.testing.assert_close(silent, torch.ones_like(silent), atol=0.15, rtol=0)
    assert silent.shape == (8,)


def test_every_frame_of_a_video_has_the_same_noise_level():
    sigma = Edm(p_mean=0.0, p_std=1.0).sample_sigma(4, generator=torch.Generator().manual_seed(0))
    assert sigma.shape == (4,)
    x = add_noise(torch.zeros(4, 6, 4, 32, 32), torch.randn(4, 6, 4, 32, 32), sigma)
    per_frame = x.flatten(2).std(2)
    torch.testing.assert_close(per_frame / sigma[:, None], torch.ones(4, 6), atol=0.05, rtol=0)
    assert sigma.unique().numel() == 4
    with pytest.raises(ValueError, match=r"one noise level per video, shape \(4,\)"):
        denoise(lambda x, c_noise: x, x, sigma[:, None].expand(4, 6), Edm())


def test_ln_sigma_is_normal():
    sigma = Edm(p_mean=0.7, p_std=1.6).sample_sigma(20_000, generator=torch.Generator().manual_seed(0))
    assert sigma.log().mean() == pytest.approx(0.7, abs=0.05)
    assert sigma.log().std() == pytest.approx(1.6, abs=0.05)
    with pytest.raises(ValueError, match="p_std"):
        Edm(p_std=0.0)


def test_sigma_grows_with_the_number_drawn() -> None:
    drawn = torch.randn(5, generator=torch.Generator().manual_seed(3))
    sigma = Edm(p_mean=0.7, p_std=1.6).sample_sigma(5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sigma, (0.7 + 1.6 * drawn).exp())


def test_what_the_network_receives():
    seen = {}

    def network(x, c_noise, *, context_BNC):
        seen.update(x=x, c_noise=c_noise, context=context_BNC)
        return x[:, :, :4]

    x, concat, sigma = video(), video(), torch.tensor([0.1, 1.0, 10.0])
    denoise(network, x, sigma, Edm(), concat_BTCHW=concat, context_BNC=torch.ones(3, 1, 8))
    torch.testing.assert_close(seen["x"][:, :, :4], x / (1 + sigma.double() ** 2).sqrt()[:, None, None, None, None])
    assert torch.equal(seen["x"][:, :, 4:], concat)
    torch.testing.assert_close(seen["c_noise"], 0.25 * sigma.log())
    assert seen["context"].shape == (3, 1, 8)


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_denoiser_keeps_the_type_of_x(schedule, dtype) -> None:
    seen = []

    def network(x_in, c_noise):
        seen.append(x_in.dtype)
        return x_in[:, :, :4].double()

    denoised = denoise(network, video(dtype=dtype), torch.tensor([0.1, 1.0, 10.0]), schedule, concat_BTCHW=video())
    assert (*seen, denoised.dtype) == (dtype, dtype)


@pytest.mark.parametrize("schedule", EVERY)
def test_a_denoiser_is_told_of_sigma_where_x_is(schedule) -> None:
    seen = []

    def network(x_in, c_noise):
        seen.append(c_noise.device.type)
        return x_in

    denoised = denoise(network, video(dtype=torch.float32).to("meta"), torch.ones(3), schedule)
    assert (*seen, denoised.device.type) == ("meta", "meta")


def test_discrete_noise_levels_are_those_of_stable_diffusion():
    schedule, theirs = Discrete(), DDPMScheduler(**SD21)
    expected = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
    torch.testing.assert_close(schedule.sigmas, expected, rtol=1e-4, atol=0)
    assert schedule.sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert schedule.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-3)


def test_timesteps_and_noise_levels_are_inverse():
    schedule, timesteps = Discrete(), torch.arange(1000.0)
    torch.testing.assert_close(schedule.sigma(timesteps), schedule.sigmas)
    torch.testing.assert_close(schedule.c_noise(schedule.sigmas), timesteps, atol=0.05, rtol=0)
    torch.testing.assert_close(
        schedule.c_noise(schedule.sigma(timesteps[:-1] + 0.3)), timesteps[:-1] + 0.3, atol=0.05, rtol=0
    )
    assert schedule.c_noise(torch.tensor([1e-4, 700.0])).tolist() == [0, 999]
    sampled = schedule.sample_sigma(500, generator=torch.Generator().manual_seed(0))
    assert torch.isin(sampled, schedule.sigmas).all()
    assert torch.equal(sampled, schedule.sample_sigma(500, generator=torch.Generator().manual_seed(0)))
    assert schedule.c_noise(sampled).mean() == pytest.approx(500, abs=50)


def test_v_prediction_is_an_edm_denoiser():
    """SD 2.1's x_t and v, by diffusers' scheduler, give the same x0 as the denoiser does; and so does EDM's with the
    same network, apart from what the network is told of the noise level."""
    theirs, schedule = DDPMScheduler(**SD21), Discrete()
    x0, noise, timestep = video(dtype=torch.float32), video(dtype=torch.float32), torch.tensor([3, 400, 990])
    x_t, velocity = theirs.add_noise(x0, noise, timestep), theirs.get_velocity(x0, noise, timestep)
    sigma = schedule.sigma(timestep)
    x = add_noise(x0, noise, sigma)
    calls = []

    def network(x_in, c_noise):
        calls.append(c_noise)
        torch.testing.assert_close(x_in, x_t, atol=1e-4, rtol=0)
        return velocity

    for each in (schedule, Edm()):
        torch.testing.assert_close(denoise(network, x, sigma, each), x0, atol=2e-4, rtol=0)
    torch.testing.assert_close(calls[0], timestep.float(), atol=0.05, rtol=0)
    torch.testing.assert_close(calls[1], 0.25 * sigma.log())
    torch.testing.assert_close(denoise(lambda *_: noise, x, sigma, Discrete(prediction="noise")), x0, atol=2e-4, rtol=0)


def test_timesteps_between_two_are_those_of_diffusers():
    theirs = EulerDiscreteScheduler(**SD21, use_karras_sigmas=True, timestep_spacing="leading")
    theirs.set_timesteps(17)
    torch.testing.assert_close(Discrete().c_noise(theirs.sigmas[:-1]), theirs.timesteps, atol=0.05, rtol=0)
    assert (theirs.timesteps % 1 > 0.1).any()


def test_schedules_are_checked():
    with pytest.raises(ValueError, match=r"^expected steps >= 2 and 0 < beta_start <= beta_end < 1, got 1 st"):
        Discrete(steps=1)
    Discrete(steps=2, beta_start=0.5, beta_end=0.5)
    for start, end in ((0.0, 0.5), (0.6, 0.5), (0.5, 1.0), (0.5, 1.5)):
        with pytest.raises(ValueError, match=f"beta_start {start}, beta_end {end}$"):
            Discrete(beta_start=start, beta_end=end)
    with pytest.raises(ValueError, match=r"p_std must be above 0, got 0"):
        Edm(p_std=0)
    with pytest.raises(ValueError, match="'v' or 'noise'"):
        Discrete(prediction="x0")


def test_timesteps_are_interpolated_in_double_precision_on_the_device_of_what_is_asked() -> None:
    schedule = Discrete()
    known = schedule.sigmas.log().double()
    sigma = torch.linspace(0.02, 14.0, 997, dtype=torch.float64)
    expected = np.interp(sigma.log(), known, np.arange(1000.0)).astype(np.float32)
    assert schedule.c_noise(sigma).tolist() == expected.tolist()
    assert schedule.c_noise(schedule.sigmas[:1]).item() == 0.0
    for value in (schedule.c_noise(torch.ones(2, device="meta")), schedule.sigma(torch.ones(2, device="meta"))):
        assert value.device.type == "meta"
        assert value.shape == (2,)
