"""Latent autoencoder: Stable Diffusion's image encoder and a decoder finetuned on video.

Encoder: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752), section 3.1
and appendix G. Temporal decoder: Blattmann et al., "Align your Latents" (arXiv 2304.08818), section 3.1.1.

Tensor layouts follow `svd.blocks`: B videos, T frames, F = B*T frames in the batch, C channels, H, W, S = H*W
positions. Frames are RGB in [-1, 1]. Latents are downsampled by `AutoencoderConfig.factor` along each side.

Latent scaling. `encode` and `decode` use the autoencoder's unscaled latents. The diffusion model is trained on latents
times `scale_factor`, but the conditioning frame is the posterior mean *without* that factor. `encode_target`,
`encode_condition` and `decode_target` apply the right scaling; prefer them to multiplying yourself.

Memory, excluding weights, without gradients: the released model's tensors peak at 1.15 GiB per 576 x 1024 frame to
encode and 1.7 GiB to decode in float32, half that in bfloat16. Memory scales with the number of frames per chunk and
with the area of the frame or tile (`benchmarks/autoencoder_memory.py`).
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
    """Architecture of an autoencoder. Each width after the first halves the resolution."""

    widths: Sizes = (128, 256, 512, 512)
    blocks_per_level: Annotated[int, Field(ge=1, le=8)] = 2
    frame_channels: Annotated[int, Field(ge=1, le=64)] = 3
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    scale_factor: Scale = 0.18215
    groups: Size = 32
    """Number of GroupNorm groups. With one channel per group, GroupNorm removes per-channel means such as the frame's
    color, so narrow networks need fewer groups.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths must be multiples of groups={self.groups}, got {self.widths}")
        return self

    @property
    def factor(self) -> int:
        """Spatial downsampling factor: 8 for four widths, 4 for three."""
        return 2 ** (len(self.widths) - 1)

    @property
    def in_diffusers(self) -> bool:
        """Whether diffusers can build it: diffusers fixes two blocks per level and 32 normalization groups."""
        return self.blocks_per_level == 2 and self.groups == 32

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Return the preset `name` with `overrides` applied.

        `svd` is the released autoencoder: 97.74 M parameters, factor 8. `tiny`, for CPUs, has 1.8 M parameters and
        factor 4; `preset("tiny", widths=(64, 64, 64, 64))` has factor 8. Raises UserError for an unknown preset or
        field.
        """
        presets = {"svd": cls(), "tiny": cls(widths=(64, 64, 64))}
        if name not in presets:
            raise UserError(unknown_name("autoencoder preset", name, list(presets)))
        return cls.from_values(presets[name].model_dump() | overrides, origin=f"autoencoder preset {name}")


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Diagonal Gaussian q(z | frame): mean and log variance of shape (B, T, C, H, W), unscaled."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The mode of the distribution, which is its mean."""
        return self.mean

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """Sample mean + std * noise. Noise is drawn on the generator's device (CPU if None), then moved."""
        device = generator.device if generator is not None else "cpu"
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats, summed over all dimensions but the batch: shape (B,)."""
        kl_BTCHW = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return kl_BTCHW.flatten(1).sum(1)


class Autoencoder(nn.Module):
    """Encodes frames to latents and decodes them. Activations are channels-last, as in the UNet."""

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
        """Return the posterior of each frame. The encoder is per-frame, so `chunk_frames` affects memory only.

        `tiling` encodes large frames in overlapping tiles (see `svd.tiling`), sizes in pixels. Raises ValueError for a
        wrong layout, or for sides not divisible by `factor`.
        """
        batch = self._batch(frames_BTCHW, self.config.frame_channels, "frames")
        factor = self.config.factor
        if any(side % factor for side in frames_BTCHW.shape[-2:]):
            height, width = frames_BTCHW.shape[-2:]
            raise ValueError(
                f"expected frames with sides divisible by {factor}, got {height} x {width}; crop, pad or resize them"
            )
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
        """Decode unscaled latents to frames (B, T, C, H * factor, W * factor); the output is not clamped.

        `chunk_frames` is the number of frames of a video to decode at a time; peak memory depends on it, not on the
        video's length. Each chunk is decoded as if it were the whole video: temporal convolutions are zero-padded at
        its ends and temporal normalization sees only its frames, as in the released pipelines. Frames may therefore
        flicker at chunk boundaries; prefer few, long chunks. chunk_frames >= T changes nothing. Chunks never span two
        videos of the batch (in diffusers' pipeline they can).

        `tiling` decodes large frames in overlapping tiles (see `svd.tiling`), sizes in latent pixels. Raises ValueError
        for a wrong layout.
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
        """Latents the diffusion model learns to generate: a posterior sample times `scale_factor`."""
        posterior = self.encode(frames_BTCHW, chunk_frames=chunk_frames, tiling=tiling)
        return self.config.scale_factor * posterior.sample(generator=generator)

    def encode_condition(
        self, frames_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Latents for conditioning: the posterior mean, *not* scaled (App. D)."""
        return self.encode(frames_BTCHW, chunk_frames=chunk_frames, tiling=tiling).mode()

    def decode_target(
        self, latents_BTCHW: Tensor, *, chunk_frames: int | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Decode the diffusion model's output: latents / `scale_factor`, decoded to frames."""
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
        """Return (B, T) of a BTCHW tensor with `channels` channels. Raises ValueError."""
        if x_BTCHW.ndim != 5 or x_BTCHW.shape[2] != channels or not all(x_BTCHW.shape):
            raise ValueError(
                f"{what} must have shape (B, T, {channels}, H, W) with no empty dimension, got {tuple(x_BTCHW.shape)}"
            )
        return x_BTCHW.shape[0], x_BTCHW.shape[1]


class Encoder(nn.Module):
    """Maps a frame (F, 3, H, W) to the moments of its latent (F, 2 * latent_channels, H / factor, W / factor)."""

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
    """Decodes latents (F, latent_channels, H, W) of videos of `frames` frames each to frames (F, 3, H * factor, W *
    factor).
    """

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
    """Residual block: two 3x3 convolutions, each preceded by normalization and SiLU, plus a shortcut."""

    def __init__(self, in_width: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_width, _SPATIAL_EPS)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2 = GroupNorm(groups, width, _SPATIAL_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x_FCHW: Tensor) -> Tensor:
        # One expression: memory peaks here, and a variable would keep the first convolution's output alive.
        h_FCHW = self.conv2(_norm_silu(self.norm2, self.conv1(_norm_silu(self.norm1, x_FCHW))))
        return self.skip(x_FCHW) + h_FCHW


class TimeResidual(nn.Module):
    """Residual branch over time: two 3x1x1 convolutions over (B, C, T, S). The caller adds the input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, width, _TEMPORAL_EPS)
        self.conv1 = TemporalConv(width)
        self.norm2 = GroupNorm(groups, width, _TEMPORAL_EPS)
        self.conv2 = TemporalConv(width)

    def forward(self, x_BCTS: Tensor) -> Tensor:
        return self.conv2(_norm_silu(self.norm2, self.conv1(_norm_silu(self.norm1, x_BCTS))))


class VideoResBlock(nn.Module):
    """Spatial residual block followed by a temporal residual block, blended by a learned factor.

    Here alpha = sigmoid(mix) weights the *temporal* branch, the reverse of the UNet, and `mix` is initialized to 0.
    Since both branches share the input x, (1 - alpha) * x + alpha * (x + residual(x)) = x + alpha * residual(x).
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
    """Single-head self-attention over the positions of a frame; the head is as wide as the level."""

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
    """3x3 convolution with stride 2, padded by one row at the bottom and one column on the right only."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return super().forward(F.pad(x_FCHW, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Nearest-neighbor 2x upsampling, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return super().forward(F.interpolate(x_FCHW, scale_factor=2.0, mode="nearest"))


def _norm_silu(norm: GroupNorm, x: Tensor) -> Tensor:
    """Normalization, then SiLU, in place when autograd does not need the input: memory peaks here."""
    x = norm(x)
    return F.silu(x, inplace=not x.requires_grad)


def _apply_over_time(layer: nn.Module, x_FCHW: Tensor, frames: int) -> Tensor:
    """Apply `layer`, which expects (B, C, T, S), to the frames of videos; only views, since memory is channels-last."""
    x_BCTS = x_FCHW.flatten(2).unflatten(0, (-1, frames)).transpose(1, 2)
    return layer(x_BCTS).transpose(1, 2).flatten(0, 1).unflatten(2, x_FCHW.shape[2:])
