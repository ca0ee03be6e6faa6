"""Conditioning of the UNet besides the noise level: context, ids and concatenated latents per task (section 4, App. D).

| task | context | concatenated to the noisy latent |
| --- | --- | --- |
| text to video (4.2) | 77 text tokens | nothing |
| image to video (4.3), multi-view (4.5) | the image's CLIP embedding | the image's latent, on every frame |
| interpolation (4.4) | both images' CLIP embeddings | latent and a mask of 1 on first and last frame, 0 between |

CLIP encodes the clean conditioning frame. The autoencoder encodes it with noise added to its pixels; that latent is the
posterior mean, *not* multiplied by the scale factor, unlike the latent to be denoised. The noise's standard deviation s
is one of the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipmill.video import fps_id
from svd.autoencoder import Autoencoder

AUGMENTATION_MEAN, AUGMENTATION_STD = -3.0, 0.5
"""Mean and standard deviation of ln s in training (App. D): the median of s is 0.05, and 95 % lie in 0.018 to 0.135."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """All UNet inputs for a batch except the noisy latent and its noise level."""

    context_BNC: Tensor
    ids_BK: Tensor | None = None
    concat_BTCHW: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `svd.noise.denoise` and `svd.noise.denoising_loss`."""
        arguments = {"context_BNC": self.context_BNC, "ids_BK": self.ids_BK, "concat_BTCHW": self.concat_BTCHW}
        return {name: value for name, value in arguments.items() if value is not None}

    def drop(
        self, *, context_B: Tensor | None = None, concat_B: Tensor | None = None, empty_NC: Tensor | None = None
    ) -> "Conditioning":
        """Drop the context or the concatenated latents of the samples whose mask is True.

        An image's embedding and latent become zeros. For interpolation this also zeroes the mask: no frame is given,
        and the learned embedding is used for all of them. Text becomes `empty_NC`, the tokens of the empty text. Ids
        are never dropped. Dropped values are replaced, not multiplied by zero, so NaNs do not propagate.
        """
        context_BNC, concat_BTCHW = self.context_BNC, self.concat_BTCHW
        if context_B is not None:
            empty = torch.zeros_like(context_BNC[0]) if empty_NC is None else empty_NC.to(context_BNC)
            context_BNC = torch.where(context_B.to(context_BNC.device)[:, None, None], empty, context_BNC)
        if concat_B is not None and concat_BTCHW is not None:
            dropped = concat_B.to(concat_BTCHW.device).reshape(-1, 1, 1, 1, 1)
            concat_BTCHW = concat_BTCHW.masked_fill(dropped, 0)
        return replace(self, context_BNC=context_BNC, concat_BTCHW=concat_BTCHW)

    def dropped(self, *, empty_NC: Tensor | None = None) -> "Conditioning":
        """Drop context and concatenated latents for all samples: the unconditional input for guidance."""
        everything_B = torch.ones(len(self.context_BNC), dtype=torch.bool)
        return self.drop(context_B=everything_B, concat_B=everything_B, empty_NC=empty_NC)


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Values available for vector conditioning. A network takes a subset, in the order of its `UNetConfig.ids`."""

    fps: float
    """Frame rate of the sampled frames in frames per second. The network receives fps - 1."""
    motion_bucket: float = 127
    """From 0 (still) to 255."""
    noise_augmentation: float = 0.0
    """Standard deviation s of the noise on the conditioning image, for pixels in [-1, 1]."""
    elevation: float = 0.0
    """Camera elevation above the object, in degrees."""

    def __post_init__(self) -> None:
        if not self.fps >= 1:
            raise ValueError(f"fps must be at least 1, got {self.fps}")
        if not 0 <= self.motion_bucket <= 255:
            raise ValueError(f"motion_bucket must be between 0 and 255, got {self.motion_bucket}")
        if not self.noise_augmentation >= 0:
            raise ValueError(f"noise_augmentation must be at least 0, got {self.noise_augmentation}")
        if not -90 <= self.elevation <= 90:
            raise ValueError(f"elevation must be between -90 and 90 degrees, got {self.elevation}")


def ids_tensor(samples: Sequence[Ids], names: Sequence[str]) -> Tensor | None:
    """Stack each sample's ids in the order of `names` (`UNetConfig.ids`), float32; None for a network without ids.

    Raises ValueError for an unknown id.
    """
    if not names:
        return None
    return torch.tensor([[_id(sample, name) for name in names] for sample in samples], dtype=torch.float32)


def _id(sample: Ids, name: str) -> float:
    if name == "fps_id":
        return fps_id(sample.fps)
    if name not in ("motion_bucket", "noise_augmentation", "elevation"):
        raise ValueError(f"unknown id {name!r}; known: fps_id, motion_bucket, noise_augmentation, elevation")
    return float(getattr(sample, name))


def sample_augmentation(batch: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw training noise augmentation s_B with ln s ~ N(-3, 0.5^2), one per sample, on the CPU."""
    return (AUGMENTATION_MEAN + AUGMENTATION_STD * torch.randn(batch, generator=generator)).exp()


def encode_picture(autoencoder: Autoencoder, frames_BCHW: Tensor, noise_BCHW: Tensor, augmentation_B: Tensor) -> Tensor:
    """Latent (B, C, H, W) of a conditioning image: pixel-space noise, posterior mean, no scale factor."""
    s_B111 = augmentation_B.to(frames_BCHW).reshape(-1, 1, 1, 1)
    noisy_BCHW = frames_BCHW + s_B111 * noise_BCHW
    weights = autoencoder.quant_conv.weight
    return autoencoder.encode_condition(noisy_BCHW[:, None].to(weights))[:, 0].to(frames_BCHW.dtype)


def concat_picture(latent_BCHW: Tensor, frames: int) -> Tensor:
    """Image to video and multi-view: repeat the latent for every frame, (B, T, C, H, W)."""
    return latent_BCHW[:, None].expand(-1, frames, -1, -1, -1)


def concat_ends(first_BCHW: Tensor, last_BCHW: Tensor, frames: int) -> Tensor:
    """Interpolation: latents and mask for the first and last frame, (B, T, C + 1, H, W).

    Frames in between have mask 0; the network uses its learned embedding there (`UNetConfig.learned_mask`). Raises
    ValueError for fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f"interpolation expects at least 2 frames, got {frames}")
    b, c, h, w = first_BCHW.shape
    concat_BTCHW = first_BCHW.new_zeros(b, frames, c + 1, h, w)
    for i, latent_BCHW in ((0, first_BCHW), (-1, last_BCHW)):
        concat_BTCHW[:, i, :c] = latent_BCHW
        concat_BTCHW[:, i, c] = 1
    return concat_BTCHW


def image_context(*embeddings_BC: Tensor) -> Tensor:
    """Use the CLIP embeddings of the conditioning images as context tokens, (B, N, C)."""
    return torch.stack(embeddings_BC, dim=1)
