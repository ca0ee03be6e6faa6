"""Rows of `benchmarks.parity` for autoencoder and sampler against diffusers, with random weights.

Each function returns the largest absolute difference over its cases, float32 on the CPU.
"""

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from torch import Tensor

from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.keymap_autoencoder import from_layout
from svd.noise import Edm, denoise
from svd.sampler import SeededNoise, initial_noise, karras_sigmas, sample_euler

NARROW = AutoencoderConfig(widths=(64, 128, 128, 128))
"""The released depth at a quarter to a half of its width."""
LATENTS_BTHW = ((1, 1, 8, 8), (2, 3, 9, 5), (1, 5, 4, 13))
STEPS = (25, 30)


def vae_parameters() -> int:
    """Parameters of the released autoencoder, counted on the meta device."""
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig.preset("svd"))
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def vae_encode_difference() -> float:
    """Differences of posterior means and of log variances, for frames of several sizes."""
    ours, theirs = _autoencoders()
    differences = []
    for videos, frames, height, width in LATENTS_BTHW:
        video = _uniform(videos, frames, 3, 8 * height, 8 * width)
        posterior, expected = ours.encode(video), theirs.encode(video.flatten(0, 1)).latent_dist
        differences.append(_difference(posterior.mean.flatten(0, 1), expected.mean))
        differences.append(_difference(posterior.logvar.flatten(0, 1), expected.logvar))
    return max(differences)


@torch.inference_mode()
def vae_decode_difference() -> float:
    """Difference of decoded videos, for several sizes and lengths."""
    ours, theirs = _autoencoders()
    differences = []
    for videos, frames, height, width in LATENTS_BTHW:
        latents = torch.randn(videos, frames, 4, height, width)
        expected = theirs.decode(latents.flatten(0, 1), num_frames=frames).sample
        differences.append(_difference(ours.decode(latents).flatten(0, 1), expected))
    return max(differences)


@torch.inference_mode()
def sampler_difference() -> float:
    """Difference of trajectories of 25 and 30 Euler steps from the same noise with the same nonlinear network.

    The largest over all steps, each relative to the step's largest value: x falls from some 3,000 to 1.
    """
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(8, 4, 3, padding=1)

    def network(x_BTCHW: Tensor, c_noise_B: Tensor) -> Tensor:
        c_noise = c_noise_B.reshape(-1, 1, 1, 1, 1).expand_as(x_BTCHW)
        return conv(torch.cat([x_BTCHW, c_noise.sin()], dim=2).transpose(1, 2)).transpose(1, 2).tanh()

    differences: list[float] = []
    for steps in STEPS:
        scheduler = _scheduler(steps)
        sigmas = karras_sigmas(steps)
        start = initial_noise(torch.empty(2, 3, 4, 6, 8), SeededNoise([0, 1]), sigmas)
        theirs = start
        trajectory: list[Tensor] = []
        for timestep in scheduler.timesteps:
            output = network(scheduler.scale_model_input(theirs, timestep), timestep.expand(2))
            theirs = scheduler.step(output, timestep, theirs).prev_sample
            trajectory.append(theirs)

        def compare(step: int, x: Tensor, trajectory: list[Tensor] = trajectory) -> None:
            expected = trajectory[step]
            differences.append(_difference(x, expected) / expected.abs().max().item())

        sample_euler(lambda x, sigma_B: denoise(network, x, sigma_B, Edm()), start, sigmas, on_step=compare)
    assert len(differences) == sum(STEPS)
    return max(differences)


def _autoencoders() -> tuple[Autoencoder, AutoencoderKLTemporalDecoder]:
    """Ours and diffusers' with the same random weights, including norms, biases and mixing factors."""
    torch.manual_seed(0)
    theirs = AutoencoderKLTemporalDecoder(
        down_block_types=["DownEncoderBlock2D"] * len(NARROW.widths),
        block_out_channels=NARROW.widths,
        layers_per_block=NARROW.blocks_per_level,
        latent_channels=NARROW.latent_channels,
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name or "mix_factor" in name:
            parameter.add_(0.5 * torch.randn_like(parameter))
    ours = Autoencoder(NARROW).eval()
    ours.load_state_dict(from_layout(theirs.state_dict(), NARROW, "diffusers"))
    return ours, theirs


def _scheduler(steps: int) -> EulerDiscreteScheduler:
    """The scheduler of the released pipeline, as in its scheduler/scheduler_config.json."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 1


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
