"""Sampling for each of the paper's tasks: conditions in, video out (sections 4.2 to 4.5).

Frames are RGB in [-1, 1]. Each sample has one seed, which alone determines its noise; for image to video a seed
produces the same video as diffusers with a CPU generator of that seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svd.conditioning import (
    Conditioning,
    Ids,
    concat_ends,
    concat_picture,
    encode_picture,
    ids_tensor,
    image_context,
)
from svd.model import NEEDS, Model, Task
from svd.noise import Edm, denoise
from svd.sampler import (
    Denoiser,
    OnStep,
    SeededNoise,
    guided,
    initial_noise,
    karras_sigmas,
    linear_guidance,
    sample_euler,
)
from svd.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling options. Raises ValueError for invalid values."""

    frames: int | None = None
    """None: the model's default."""
    steps: int = 25
    guidance: tuple[float, float] | None = None
    """Guidance scale of the first and last frame, linear in between. None: `default_guidance`."""
    decode_frames: int | None = None
    """Number of frames to decode at a time; None: all. Determines peak memory."""
    sigma_min: float = 0.002
    sigma_max: float = 700.0

    def __post_init__(self) -> None:
        for name in ("frames", "decode_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.guidance is not None and not all(0 <= scale < math.inf for scale in self.guidance):
            raise ValueError(f"guidance must be at least 0, got {self.guidance}")


def default_guidance(task: Task, frames: int) -> tuple[float, float]:
    """The release's guidance where it has one: 1 to 2.5 for 14 frames from an image, 1.5 to 3 for 25. Text uses a
    higher scale, as in Stable Diffusion; interpolation uses none, since both ends are given.
    """
    if task in ("image", "text-to-video"):
        return 7.5, 7.5
    if task == "interpolation":
        return 1.0, 1.0
    return (1.0, 2.5) if frames < 25 else (1.5, 3.0)


@torch.no_grad()
def image_to_video(
    model: Model,
    pictures_BCHW: Tensor,
    ids: Sequence[Ids],
    *,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate videos (B, T, 3, H, W) from an image (section 4.3) or, with a multi-view model, an orbit around its
    object from the elevation in `ids` (section 4.5).

    CLIP encodes the clean image; the autoencoder encodes it with `ids[i].noise_augmentation` of noise. Raises
    ValueError for a model of another task or without an image encoder, and for mismatched inputs.
    """
    sampling = _checked(model, ("image-to-video", "multi-view"), len(pictures_BCHW), ids, seeds, sampling)
    noise, pictures_BCHW = SeededNoise(seeds), pictures_BCHW.to(model.device, torch.float32)
    latent_BCHW = encode_picture(model.autoencoder, pictures_BCHW, noise(pictures_BCHW), _augmentation(ids))
    frames = sampling.frames or model.config.unet.frames
    conditioning = Conditioning(
        context_BNC=image_context(_embed(model, pictures_BCHW)),
        ids_BK=_ids(model, ids),
        concat_BTCHW=concat_picture(latent_BCHW, frames),
    )
    return _sample(model, conditioning, conditioning.dropped(), latent_BCHW, noise, sampling, on_step)


@torch.no_grad()
def interpolate(
    model: Model,
    first_BCHW: Tensor,
    last_BCHW: Tensor,
    ids: Sequence[Ids],
    *,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate videos (B, T, 3, H, W) between a first and a last frame (section 4.4). The given frames are regenerated
    too.

    Raises ValueError as `image_to_video`.
    """
    sampling = _checked(model, ("interpolation",), len(first_BCHW), ids, seeds, sampling)
    if first_BCHW.shape != last_BCHW.shape:
        raise ValueError(
            f"first and last frame must have the same shape, got {tuple(first_BCHW.shape)} and {tuple(last_BCHW.shape)}"
        )
    noise = SeededNoise(seeds)
    ends = [end_BCHW.to(model.device, torch.float32) for end_BCHW in (first_BCHW, last_BCHW)]
    latents = [encode_picture(model.autoencoder, end_BCHW, noise(end_BCHW), _augmentation(ids)) for end_BCHW in ends]
    conditioning = Conditioning(
        context_BNC=image_context(*(_embed(model, end_BCHW) for end_BCHW in ends)),
        ids_BK=_ids(model, ids),
        concat_BTCHW=concat_ends(latents[0], latents[1], sampling.frames or model.config.unet.frames),
    )
    return _sample(model, conditioning, conditioning.dropped(), latents[0], noise, sampling, on_step)


@torch.no_grad()
def text_to_video(
    model: Model,
    texts: Sequence[str],
    ids: Sequence[Ids],
    *,
    seeds: Sequence[int],
    width_px: int | None = None,
    height_px: int | None = None,
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate videos (B, T, 3, H, W) from text (section 4.2), or images (T = 1) with an image model (stage I). The
    size defaults to the model's.

    Raises ValueError as `image_to_video`, and for a size not divisible by the autoencoder's factor.
    """
    sampling = _checked(model, ("image", "text-to-video"), len(texts), ids, seeds, sampling)
    width_px, height_px = width_px or model.config.width_px, height_px or model.config.height_px
    factor = model.config.autoencoder.factor
    if width_px % factor or height_px % factor:
        raise ValueError(f"expected a frame size divisible by {factor}, got {width_px}x{height_px}")
    assert model.text_encoder is not None
    tokens_BNC = model.text_encoder(texts).to(model.device)
    empty_NC = model.text_encoder([""])[0].to(model.device)
    conditioning = Conditioning(context_BNC=tokens_BNC, ids_BK=_ids(model, ids))
    channels = model.config.unet.out_channels
    like = torch.empty(len(texts), channels, height_px // factor, width_px // factor, device=model.device)
    dropped = conditioning.dropped(empty_NC=empty_NC)
    return _sample(model, conditioning, dropped, like, SeededNoise(seeds), sampling, on_step)


def _sample(
    model: Model,
    conditioning: Conditioning,
    dropped: Conditioning,
    like_BCHW: Tensor,
    noise: SeededNoise,
    sampling: Sampling,
    on_step: OnStep | None,
) -> Tensor:
    """Sample latents of the size of `like_BCHW` and decode them to frames clamped to [-1, 1]."""
    frames = sampling.frames or model.config.unet.frames
    first, last = sampling.guidance or default_guidance(model.config.task, frames)
    denoiser = guided(
        [_denoiser(model.unet, dropped), _denoiser(model.unet, conditioning)], [linear_guidance(frames, first, last)]
    )
    sigmas = karras_sigmas(sampling.steps, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max)
    like_BTCHW = like_BCHW[:, None].expand(-1, frames, -1, -1, -1)
    latents_BTCHW = sample_euler(denoiser, initial_noise(like_BTCHW, noise, sigmas), sigmas, on_step=on_step)
    latents_BTCHW = latents_BTCHW.to(model.autoencoder.quant_conv.weight.dtype)
    frames_BTCHW = model.autoencoder.decode_target(latents_BTCHW, chunk_frames=sampling.decode_frames)
    return frames_BTCHW.float().clamp(-1, 1)


def _denoiser(unet: UNet, conditioning: Conditioning) -> Denoiser:
    """D(x; sigma) in float32 around a network that runs in the dtype of its weights."""
    dtype = unet.conv_in.weight.dtype

    def network(x_BTCHW: Tensor, c_noise_B: Tensor, *, context_BNC: Tensor, **rest: Any) -> Tensor:
        return unet(x_BTCHW.to(dtype), c_noise_B, context_BNC=context_BNC.to(dtype), **rest)

    run: Callable[..., Tensor] = partial(denoise, network, schedule=Edm(), **conditioning.arguments())
    return run


def _checked(
    model: Model,
    tasks: tuple[Task, ...],
    batch: int,
    ids: Sequence[Ids],
    seeds: Sequence[int],
    sampling: Sampling | None,
) -> Sampling:
    task = model.config.task
    if task not in tasks:
        raise ValueError(f"expected a model for {' or '.join(tasks)}, got one for {task}")
    if getattr(model, NEEDS[task]) is None:
        raise ValueError(f"a model for {task} requires its {NEEDS[task]}; this one has none")
    if not len(ids) == len(seeds) == batch:
        raise ValueError(
            f"expected ids and a seed for each of {batch} samples, got {len(ids)} ids and {len(seeds)} seeds"
        )
    return sampling or Sampling()


def _embed(model: Model, pictures_BCHW: Tensor) -> Tensor:
    assert model.image_encoder is not None
    return model.image_encoder(pictures_BCHW).to(model.device)


def _augmentation(ids: Sequence[Ids]) -> Tensor:
    return torch.tensor([sample.noise_augmentation for sample in ids])


def _ids(model: Model, ids: Sequence[Ids]) -> Tensor | None:
    ids_BK = ids_tensor(ids, model.config.unet.ids)
    return None if ids_BK is None else ids_BK.to(model.device)
