"""Latent autoencoder: Stable Diffusion's image encoder, and the decoder that was finetuned on video.

Encoder: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752), section 3.1
and appendix G. Temporal decoder: Blattmann et al., "Align your Latents" (arXiv 2304.08818), section 3.1.1.

Letters of tensor layouts are those of `svd.blocks`: B videos, T frames, F = B*T frames of the whole batch, C channels,
H, W, S = H*W positions. Frames are RGB in [-1, 1]. A latent is smaller than its frame by `AutoencoderConfig.factor`
along each side.

Units of latents. `encode` and `decode` work in the autoencoder's own units. The diffusion model is trained on latents
times `scale_factor`, but the conditioning frame is its posterior's mean *without* that factor. `encode_target`,
`encode_condition` and `decode_target` keep the two apart; prefer them to multiplying by hand.

Memory, beside the weights and without gradients: the released model's tensors peak at 1.15 GiB per frame of 576 x 1024
to encode and 1.7 GiB to decode, in float32; half of that in bfloat16. It grows with the frames of a chunk and with the
area of a frame, or of a tile (`benchmarks/autoencoder_memory.py`).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from clipmill.config import unknown_name
from clipmill.errors import UserError
from svd.blocks import GroupNorm, TemporalConv
from svd.shape import Scale, Shape, Size, Sizes
from svd.tiling import Tiling, tiled

_SPATIAL_EPS = 1e-6
_TEMPORAL_EPS = 1e-5


class AutoencoderConfig(Shape):
    """Shape of an autoencoder. Each width after the first halves the resolution once more."""

    widths: Sizes = (128, 256, 512, 512)
    blocks_per_level: Annotated[int, Field(ge=1, le=8)] = 2
    frame_channels: Annotated[int, Field(ge=1, le=64)] = 3
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    scale_factor: Scale = 0.18215
    groups: Size = 32
    """Of GroupNorm. As many groups as channels take away what a channel says of the whole frame, such as its colour:
    narrow networks want fewer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths should be multiples of {self.groups} (normalisation groups), got {self.widths}")
        return self

    @property
    def factor(self) -> int:
        """Frame side over latent side: 8 for four widths, 4 for three."""
        return 2 ** (len(self.widths) - 1)

    @property
    def in_diffusers(self) -> bool:
        """Whether diffusers can build it: its middle is fixed to two blocks per level, its norms to 32 groups."""
        return self.blocks_per_level == 2 and self.groups == 32

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset `name`, with fields replaced by `overrides`.

        `svd` is the released autoencoder, 97.74 M parameters and factor 8. `tiny`, for a CPU, has 1.8 M and factor 4;
        `preset("tiny", widths=(64, 64, 64, 64))` has factor 8. Raises UserError for an unknown preset or field.
        """
        presets = {"svd": cls(), "tiny": cls(widths=(64, 64, 64))}
        if name not in presets:
            raise UserError(unknown_name("autoencoder preset", name, list(presets)))
        return cls.from_values(presets[name].model_dump() | overrides, origin=f"autoencoder preset {name}")


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Diagonal Gaussian q(z | frame), as mean and log variance of shape (B, T, C, H, W), in the autoencoder's units."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most probable latent: the mean."""
        return self.mean

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise. The noise is drawn on the generator's device (the CPU without one), then moved."""
        device = generator.device if generator is not None else "cpu"
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, in nats per video: summed over all but the batch, shape (B,)."""
        kl_BTCHW = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return kl_BTCHW.flatten(1).sum(1)


class Autoencoder(nn.Module):
    """Frames to latents and back. Activations lie in memory with the channels last, as in the UNet."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.decoder = Decoder(config)

    def encode(
        self, frames_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None
    ) -> Posterior:
        """The posterior of each frame. The encoder sees one frame at a time, so `chunk_frames` changes memory only.

        `tiling`: encode large frames in overlapping tiles (see `svd.tiling`), sizes in pixels.
        Raises ValueError for frames of another layout, or whose sides `factor` does not divide.
        """
        batch = self._batch(frames_BTCHW, self.config.frame_channels, "frames")
        factor = self.config.factor
        if any(side % factor for side in frames_BTCHW.shape[-2:]):
            height, width = frames_BTCHW.shape[-2:]
            raise ValueError(f"frames of {height} x {width} do not divide by {factor}; crop, pad or resize them")
        frames_FCHW = frames_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        moments_FCHW = torch.cat(
            [
                tiled(self._moments, chunk_FCHW, tiling, scale=1 / factor)
                for chunk_FCHW in frames_FCHW.split(chunk_frames or len(frames_FCHW))
            ]
        )
        mean, logvar = moments_FCHW.unflatten(0, batch).chunk(2, dim=2)
        return Posterior(mean=mean, logvar=logvar.clamp(-30, 20))

    def decode(self, latents_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None) -> Tensor:
        """Frames (B, T, C, H * factor, W * factor) from latents in the autoencoder's own units; not clamped.

        `chunk_frames` decodes that many frames of a video at a time; peak memory follows it, not the video's length.
        A chunk is decoded as if it were the whole video: the temporal convolutions see zeros beyond its ends and the
        temporal normalisations its frames alone, as in the released pipelines. So frames may flicker where two chunks
        join; few, long chunks are better. With chunk_frames >= T nothing changes. A chunk never reaches from one video
        of the batch into the next (in the pipeline of diffusers it can).

        `tiling`: decode large frames in overlapping tiles (see `svd.tiling`), sizes in latent pixels.
        Raises ValueError for latents of another layout.
        """
        self._batch(latents_BTCHW, self.config.latent_channels, "latents")
        return torch.cat(
            [
                self._decode_chunk(chunk_BTCHW, tiling)
                for chunk_BTCHW in latents_BTCHW.split(chunk_frames or latents_BTCHW.shape[1], dim=1)
            ],
            dim=1,
        )

    def encode_target(
        self,
        frames_BTCHW: Tensor,
        *,
        generator: torch.Generator | None = None,
        chunk_frames: int | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Latents that the diffusion model learns to make: sampled from the posterior, times `scale_factor`."""
        posterior = self.encode(frames_BTCHW, chunk_frames=chunk_frames, tiling=tiling)
        return self.config.scale_factor * posterior.sample(generator=generator)

    def encode_condition(
        self, frames_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Latents that the diffusion model is given as a condition: the posterior's mean, *not* scaled (App. D)."""
        return self.encode(frames_BTCHW, chunk_frames=chunk_frames, tiling=tiling).mode()

    def decode_target(
        self, latents_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Frames from what the diffusion model made: latents over `scale_factor`, decoded."""
        return self.decode(latents_BTCHW / self.config.scale_factor, chunk_frames=chunk_frames, tiling=tiling)

    def _moments(self, frames_FCHW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(frames_FCHW))

    def _decode_chunk(self, latents_BTCHW: Tensor, tiling: Tiling | None) -> Tensor:
        batch = latents_BTCHW.shape[:2]
        frames_FCHW = tiled(
            lambda tile_FCHW: self.decoder(tile_FCHW, batch[1]),
            latents_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last),
            tiling,
            scale=self.config.factor,
        )
        return frames_FCHW.unflatten(0, batch)

    @staticmethod
    def _batch(x_BTCHW: Tensor, channels: int, what: str) -> tuple[int, int]:
        """(B, T) of a tensor that is BTCHW with so many channels. Raises ValueError."""
        if x_BTCHW.ndim != 5 or x_BTCHW.shape[2] != channels or not all(x_BTCHW.shape):
            raise ValueError(f"{what} should be (B, T, {channels}, H, W), none of them 0, got {tuple(x_BTCHW.shape)}")
        return x_BTCHW.shape[0], x_BTCHW.shape[1]


class Encoder(nn.Module):
    """Frame (F, 3, H, W) to the moments of its latent (F, 2 * latent_channels, H / factor, W / factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.groups
        self.conv_in = nn.Conv2d(config.frame_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        width = widths[0]
        for wider in widths:
            inputs = [width] + [wider] * (config.blocks_per_level - 1)
            layers: list[nn.Module] = [ResBlock(channels, wider, groups) for channels in inputs]
            if len(self.levels) < len(widths) - 1:
                layers.append(Downsample(wider))
            self.levels.append(nn.ModuleList(layers))
            width = wider
        self.middle = nn.ModuleList(
            [ResBlock(width, width, groups), Attention(width, groups), ResBlock(width, width, groups)]
        )
        self.norm_out = GroupNorm(groups, width, _SPATIAL_EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, frames_FCHW: Tensor) -> Tensor:
        x_FCHW = self.conv_in(frames_FCHW)
        for layers in (*self.levels, self.middle):
            for layer in layers:
                x_FCHW = layer(x_FCHW)
        return self.conv_out(_norm_silu(self.norm_out, x_FCHW))


class Decoder(nn.Module):
    """Latents (F, latent_channels, H, W) of videos of `frames` frames each to frames (F, 3, H * factor, W * factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width, groups = config.widths[-1], config.groups
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.middle = nn.ModuleList(
            [VideoResBlock(width, width, groups), Attention(width, groups), VideoResBlock(width, width, groups)]
        )
        self.levels = nn.ModuleList()
        for narrower in reversed(config.widths):
            inputs = [width] + [narrower] * config.blocks_per_level
            layers: list[nn.Module] = [VideoResBlock(channels, narrower, groups) for channels in inputs]
            if len(self.levels) < len(config.widths) - 1:
                layers.append(Upsample(narrower))
            self.levels.append(nn.ModuleList(layers))
            width = narrower
        self.norm_out = GroupNorm(groups, width, _SPATIAL_EPS)
        self.conv_out = nn.Conv2d(width, config.frame_channels, 3, padding=1)
        self.time_conv_out = TemporalConv(config.frame_channels)

    def forward(self, latents_FCHW: Tensor, frames: int) -> Tensor:
        x_FCHW = self.conv_in(latents_FCHW)
        for layers in (self.middle, *self.levels):
            for layer in layers:
                x_FCHW = layer(x_FCHW, frames) if isinstance(layer, VideoResBlock) else layer(x_FCHW)
        x_FCHW = self.conv_out(_norm_silu(self.norm_out, x_FCHW))
        return _apply_over_time(self.time_conv_out, x_FCHW, frames)


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and SiLU, beside a shortcut."""

    def __init__(self, in_width: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_width, _SPATIAL_EPS)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2 = GroupNorm(groups, width, _SPATIAL_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x_FCHW: Tensor) -> Tensor:
        # One expression: memory peaks here, and a name would keep the first convolution's result alive.
        h_FCHW = self.conv2(_norm_silu(self.norm2, self.conv1(_norm_silu(self.norm1, x_FCHW))))
        return self.skip(x_FCHW) + h_FCHW


class TimeResidual(nn.Module):
    """What a residual block over time adds to its input: two 3x1x1 convolutions over (B, C, T, S)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, width, _TEMPORAL_EPS)
        self.conv1 = TemporalConv(width)
        self.norm2 = GroupNorm(groups, width, _TEMPORAL_EPS)
        self.conv2 = TemporalConv(width)

    def forward(self, x_BCTS: Tensor) -> Tensor:
        return self.conv2(_norm_silu(self.norm2, self.conv1(_norm_silu(self.norm1, x_BCTS))))


class VideoResBlock(nn.Module):
    """A spatial residual block, then its mixture with a residual block over time.

    Here alpha = sigmoid(mix) weights the *temporal* branch, the reverse of the UNet, and `mix` starts at 0. As both
    branches share their input x, (1 - alpha) * x + alpha * (x + residual(x)) = x + alpha * residual(x).
    """

    def __init__(self, in_width: int, width: int, groups: int) -> None:
        super().__init__()
        self.spatial = ResBlock(in_width, width, groups)
        self.temporal = TimeResidual(width, groups)
        self.mix = nn.Parameter(torch.zeros(1))

    def forward(self, x_FCHW: Tensor, frames: int) -> Tensor:
        x_FCHW = self.spatial(x_FCHW)
        residual_FCHW = _apply_over_time(self.temporal, x_FCHW, frames)
        return torch.addcmul(x_FCHW, self.mix.sigmoid().to(x_FCHW.dtype), residual_FCHW.to(x_FCHW.dtype))


class Attention(nn.Module):
    """Self-attention of one head, as wide as the level, over the positions of a frame."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, _SPATIAL_EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        x_F1SC = self.norm(x_FCHW).flatten(2).transpose(1, 2).unsqueeze(1)
        h_F1SC = F.scaled_dot_product_attention(self.query(x_F1SC), self.key(x_F1SC), self.value(x_F1SC))
        return x_FCHW + self.out(h_F1SC).squeeze(1).transpose(1, 2).unflatten(2, x_FCHW.shape[2:])


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2, padded by one row below and one column on the right only."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return super().forward(F.pad(x_FCHW, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Each pixel four times, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return super().forward(F.interpolate(x_FCHW, scale_factor=2.0, mode="nearest"))


def _norm_silu(norm: GroupNorm, x: Tensor) -> Tensor:
    """SiLU after normalisation, in place where no gradient needs what it overwrites: that is where memory peaks."""
    x = norm(x)
    return F.silu(x, inplace=not x.requires_grad)


def _apply_over_time(layer: nn.Module, x_FCHW: Tensor, frames: int) -> Tensor:
    """`layer`, which wants (B, C, T, S), on the frames of videos: views, as the channels lie last."""
    x_BCTS = x_FCHW.flatten(2).unflatten(0, (-1, frames)).transpose(1, 2)
    return layer(x_BCTS).transpose(1, 2).flatten(0, 1).unflatten(2, x_FCHW.shape[2:])
