"""The paper's models at work: conditions in, video out (sections 4.2 to 4.5).

Frames are RGB in [-1, 1]. Of each sample there is one seed: its noise depends on nothing else, and for image to video a
seed gives the video that diffusers gives for a generator on the CPU with that seed.
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
    """How a video is made from noise. Raises ValueError for what cannot be."""

    frames: int | None = None
    """None: as many as the model was made for."""
    steps: int = 25
    guidance: tuple[float, float] | None = None
    """Scale on the first and on the last frame; it rises evenly between them. None: `default_guidance`."""
    decode_frames: int | None = None
    """How many frames are decoded at a time; None: all. Memory follows it."""
    sigma_min: float = 0.002
    sigma_max: float = 700.0

    def __post_init__(self) -> None:
        for name in ("frames", "decode_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} should be 1 or more, got {value}")
        if self.guidance is not None and not all(0 <= scale < math.inf for scale in self.guidance):
            raise ValueError(f"guidance should be 0 or more, got {self.guidance}")


def default_guidance(task: Task, frames: int) -> tuple[float, float]:
    """Of the release where it has one: 1 to 2.5 for 14 frames from a picture, 1.5 to 3 for 25. A text wants more, as
    in Stable Diffusion; between two given frames there is nothing to rise towards, and no guidance at all."""
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
    """Videos (B, T, 3, H, W) that go on from a picture (section 4.3), or, by a multi-view model, that go around it from
    the elevation in `ids` (section 4.5).

    CLIP sees the picture, the autoencoder sees it with `ids[i].noise_augmentation` of noise. Raises ValueError for a
    model of another task, without an image encoder, or inputs that do not fit each other.
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
    """Videos (B, T, 3, H, W) from a first to a last frame (section 4.4). The given frames are made anew as well.

    Raises ValueError as `image_to_video`.
    """
    sampling = _checked(model, ("interpolation",), len(first_BCHW), ids, seeds, sampling)
    if first_BCHW.shape != last_BCHW.shape:
        raise ValueError(
            f"first and last frame should be of one size, got {tuple(first_BCHW.shape)} and {tuple(last_BCHW.shape)}"
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
    """Videos (B, T, 3, H, W) of what texts say (section 4.2), or pictures (T = 1) by an image model (stage I); the size
    is the model's without another.

    Raises ValueError as `image_to_video`, and for a size that the autoencoder does not divide.
    """
    sampling = _checked(model, ("image", "text-to-video"), len(texts), ids, seeds, sampling)
    width_px, height_px = width_px or model.config.width_px, height_px or model.config.height_px
    factor = model.config.autoencoder.factor
    if width_px % factor or height_px % factor:
        raise ValueError(f"{width_px}x{height_px} pixels do not divide by the autoencoder's {factor}")
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
    """Latents of the size of `like_BCHW` from noise, decoded, within [-1, 1]."""
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
    """D(x; sigma) in float32 around a network in the dtype of its weights."""
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
        raise ValueError(f"this model is for {task}, not for {' or '.join(tasks)}")
    if getattr(model, NEEDS[task]) is None:
        raise ValueError(f"a model for {task} needs its {NEEDS[task]}, and this one has none")
    if not len(ids) == len(seeds) == batch:
        raise ValueError(f"there should be ids and a seed for each of {batch} samples, got {len(ids)} and {len(seeds)}")
    return sampling or Sampling()


def _embed(model: Model, pictures_BCHW: Tensor) -> Tensor:
    assert model.image_encoder is not None
    return model.image_encoder(pictures_BCHW).to(model.device)


def _augmentation(ids: Sequence[Ids]) -> Tensor:
    return torch.tensor([sample.noise_augmentation for sample in ids])


def _ids(model: Model, ids: Sequence[Ids]) -> Tensor | None:
    ids_BK = ids_tensor(ids, model.config.unet.ids)
    return None if ids_BK is None else ids_BK.to(model.device)
