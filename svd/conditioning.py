"""What the network is told beside the noise level: context, ids and concatenated latents of each task (section 4, D).

| task | context | concatenated to the noisy latent |
| --- | --- | --- |
| text to video (4.2) | 77 text tokens | nothing |
| image to video (4.3), multi-view (4.5) | the picture's CLIP embedding | the picture's latent, on every frame |
| interpolation (4.4) | both pictures' CLIP embeddings | latent and a mask of 1 on first and last frame, 0 between |

Of a conditioning picture CLIP sees the clean frame. The autoencoder sees it with noise added to its pixels, and its
latent is the posterior's mean, *not* multiplied by the scale factor, unlike the latent to be denoised. How much noise
that was, as the standard deviation s itself, is one of the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipmill.video import fps_id
from svd.autoencoder import Autoencoder

AUGMENTATION_MEAN, AUGMENTATION_STD = -3.0, 0.5
"""Of ln s in training (App. D): s is 0.05 in the middle, and between 0.018 and 0.135 nineteen times out of twenty."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything the network is given beside the noisy latent and its noise level, for a batch."""

    context_BNC: Tensor
    ids_BK: Tensor | None = None
    concat_BTCHW: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `svd.noise.denoise` and `svd.noise.denoising_loss`."""
        arguments = {"context_BNC": self.context_BNC, "ids_BK": self.ids_BK, "concat_BTCHW": self.concat_BTCHW}
        return {name: value for name, value in arguments.items() if value is not None}

    def drop(
        self, *, context_B: Tensor | None = None, concat_B: Tensor | None = None, empty_NC: Tensor | None = None
    ) -> "Conditioning":
        """The same without context, or without concatenated latents, for the samples where a mask is True.

        A picture's embedding and latent become zeros. For interpolation that zeroes the mask as well: no frame is
        given, and the learned embedding stands on all of them. A text becomes `empty_NC`, the tokens of the empty text.
        The ids stay: guidance is no reason to forget the frame rate. Nothing dropped stays in the result, NaN included.
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
        """The same without context and concatenated latents throughout: where guidance leads away from."""
        everything_B = torch.ones(len(self.context_BNC), dtype=torch.bool)
        return self.drop(context_B=everything_B, concat_B=everything_B, empty_NC=empty_NC)


@dataclass(frozen=True, kw_only=True)
class Ids:
    """What the vector conditioning can hold. A network takes some of them, in the order of its `UNetConfig.ids`."""

    fps: float
    """Frames per second of the video as the network sees it. The network takes fps - 1."""
    motion_bucket: float = 127
    """0 (still) to 255."""
    noise_augmentation: float = 0.0
    """Standard deviation s of the noise on the conditioning picture, in units of pixels in [-1, 1]."""
    elevation: float = 0.0
    """Of the camera above the object, in degrees."""

    def __post_init__(self) -> None:
        if not self.fps >= 1:
            raise ValueError(f"fps should be 1 or more, got {self.fps}")
        if not 0 <= self.motion_bucket <= 255:
            raise ValueError(f"the motion bucket should be from 0 to 255, got {self.motion_bucket}")
        if not self.noise_augmentation >= 0:
            raise ValueError(f"noise augmentation should be 0 or more, got {self.noise_augmentation}")
        if not -90 <= self.elevation <= 90:
            raise ValueError(f"elevation should be from -90 to 90 degrees, got {self.elevation}")


def ids_tensor(samples: Sequence[Ids], names: Sequence[str]) -> Tensor | None:
    """The ids of each sample in the order of `names` (`UNetConfig.ids`), float32; None for a network without ids.

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
    """s_B of training, ln s ~ N(-3, 0.5^2), one per sample, drawn on the CPU."""
    return (AUGMENTATION_MEAN + AUGMENTATION_STD * torch.randn(batch, generator=generator)).exp()


def encode_picture(autoencoder: Autoencoder, frames_BCHW: Tensor, noise_BCHW: Tensor, augmentation_B: Tensor) -> Tensor:
    """Latent (B, C, H, W) of a conditioning picture: noise added in pixel space, posterior's mean, no scale factor."""
    s_B111 = augmentation_B.to(frames_BCHW).reshape(-1, 1, 1, 1)
    noisy_BCHW = frames_BCHW + s_B111 * noise_BCHW
    weights = autoencoder.quant_conv.weight
    return autoencoder.encode_condition(noisy_BCHW[:, None].to(weights))[:, 0].to(frames_BCHW.dtype)


def concat_picture(latent_BCHW: Tensor, frames: int) -> Tensor:
    """Image to video and multi-view: the latent beside every frame, (B, T, C, H, W)."""
    return latent_BCHW[:, None].expand(-1, frames, -1, -1, -1)


def concat_ends(first_BCHW: Tensor, last_BCHW: Tensor, frames: int) -> Tensor:
    """Interpolation: the latents beside first and last frame, and the mask, (B, T, C + 1, H, W).

    Between them is a mask of 0, where the network puts its learned embedding (`UNetConfig.learned_mask`).
    Raises ValueError for fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f"interpolation takes 2 frames or more, got {frames}")
    b, c, h, w = first_BCHW.shape
    concat_BTCHW = first_BCHW.new_zeros(b, frames, c + 1, h, w)
    for i, latent_BCHW in ((0, first_BCHW), (-1, last_BCHW)):
        concat_BTCHW[:, i, :c] = latent_BCHW
        concat_BTCHW[:, i, c] = 1
    return concat_BTCHW


def image_context(*embeddings_BC: Tensor) -> Tensor:
    """CLIP embeddings of the conditioning pictures as context: one token for each, (B, N, C)."""
    return torch.stack(embeddings_BC, dim=1)
