"""Building blocks of the UNet: normalization, residual blocks, attention, transformers and space-time mixing.

Tensor layouts: B samples, T frames, F = B*T frames in the batch, C channels, H, W, S = H*W positions, N context tokens,
K ids, E embedding channels. Activations are channels-last, so a convolution's (F, C, H, W), a transformer's (F, S, C)
and a temporal layer's (B, T, S, C) are views of one another.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svd.config import UNetConfig

MAX_HEADS = 65535
"""CUDA's limit on a launch grid dimension, which attention kernels use for heads."""

_WEIGHTS_APART = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)
"""PyTorch 2.11's channels-last GroupNorm on CPU segfaults in a backward pass that needs the gradient of its weights but
not of its input, such as when only temporal layers train. Fixed in 2.15.
"""


class Batch(NamedTuple):
    """Per-batch inputs shared by all blocks of the UNet."""

    frames: int
    """T."""
    embedding_BE: Tensor
    """Embedding of the noise level and the ids."""
    context_BNC: Tensor
    """Cross-attention context: text tokens or a single image token."""
    videos: Tensor | None = None
    """Indices of the samples that are videos; None means all. The others are single images and skip the temporal
    layers.
    """

    def only(self, samples: Tensor) -> "Batch":
        """The subset of the batch at these samples."""
        return Batch(self.frames, self.embedding_BE[samples], self.context_BNC[samples])


def sinusoids(values: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of `values` (any shape): `width` channels, cosines then sines, with periods from 2 pi to
    10,000 times that; float32.
    """
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Embedding(nn.Sequential):
    """Two-layer MLP on sinusoidal embeddings, computed in the dtype of its weights."""

    def __init__(self, in_width: int, width: int, out_width: int) -> None:
        super().__init__(nn.Linear(in_width, width), nn.SiLU(), nn.Linear(width, out_width))

    def forward(self, sinusoids: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return cast("Tensor", super().forward(sinusoids.to(dtype)))


class GroupNorm(nn.GroupNorm):
    """GroupNorm over (., C, ., .) with float32 statistics (PyTorch's kernels accumulate in float32 for every dtype) and
    the input's dtype; autocast would upcast the output, and every activation after it, to float32.

    The channels-last CPU kernel computes the variance as a difference of two means, with an error of 2e-4 when the mean
    is ten times the standard deviation. An estimate of each group's mean is therefore subtracted first, which leaves
    the result unchanged. The CUDA kernel does not need this, but returns a channels-first tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        with _no_autocast(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            if x.device.type == "cpu":
                x = x - self._near_mean(x)
                if _WEIGHTS_APART:
                    normed = F.group_norm(x, self.num_groups, eps=self.eps)
                    return torch.addcmul(bias[:, None, None], normed, weight[:, None, None])
            normed = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return normed.contiguous(memory_format=torch.channels_last)

    def _near_mean(self, x: Tensor) -> Tensor:
        """Mean of each group over the first row of `x`; detached, so it does not affect the gradient."""
        mean = x[:, :, :1].detach().unflatten(1, (self.num_groups, -1)).mean((2, 3, 4))
        return mean.repeat_interleave(self.num_channels // self.num_groups, dim=1)[:, :, None, None]


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the same autocast behavior as `GroupNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        with _no_autocast(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _no_autocast(x: Tensor) -> torch.autocast:
    """Disable autocast for operations on `x`; a no-op on the meta device, which does not support autocast."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class TemporalConv(nn.Conv3d):
    """3x1x1 convolution over (B, C, T, S), computed as a 2D 3x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (3, 1, 1))

    def forward(self, x_BCTS: Tensor) -> Tensor:
        return F.conv2d(x_BCTS, self.weight[..., 0], self.bias, padding=(1, 0))


class Mix(nn.Module):
    """alpha * spatial + (1 - alpha) * temporal with alpha = sigmoid(factor), and alpha = 1 for images (section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.factor, 0.5)

    def forward(self, x_BTSC: Tensor, temporal: Callable[[Tensor, Batch], Tensor], batch: Batch) -> Tensor:
        """Blend `x_BTSC` with `temporal(x_BTSC, batch)`.

        Only videos pass through `temporal`. Images are returned bit-identical at no cost, and neither receive NaNs from
        the temporal layers nor contribute gradients to them. If `temporal` is the identity, so is this.
        """
        if batch.videos is None:
            return self._mix(x_BTSC, temporal(x_BTSC, batch))
        if len(batch.videos) == 0:
            return x_BTSC
        video_BTSC = x_BTSC[batch.videos]
        mixed_BTSC = self._mix(video_BTSC, temporal(video_BTSC, batch.only(batch.videos)))
        return x_BTSC.index_copy(0, batch.videos, mixed_BTSC)

    def _mix(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        return torch.lerp(temporal, spatial, self.factor.sigmoid().to(spatial.dtype))


class Residual(nn.Module):
    """Stable Diffusion's residual block, with the embedding added between the two convolutions.

    Spatial: 3x3 over (F, C, H, W). Temporal: 3x1x1 over (B, C, T, S), so its GroupNorm statistics cover whole clips.
    """

    def __init__(self, config: UNetConfig, in_width: int, width: int, *, temporal: bool = False) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.groups, in_width, config.norm_eps)
        self.conv1 = TemporalConv(width) if temporal else nn.Conv2d(in_width, width, 3, padding=1)
        self.embedding = nn.Linear(config.embedding_width, width)
        self.norm2 = GroupNorm(config.groups, width, config.norm_eps)
        self.conv2 = TemporalConv(width) if temporal else nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x: Tensor, embedding_BE: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e_BC = self.embedding(F.silu(embedding_BE))
        h = h + e_BC.repeat_interleave(len(h) // len(e_BC), dim=0)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SpaceTimeResidual(nn.Module):
    """Spatial residual block followed by a blended temporal one (section 3.2; Blattmann et al. 2023, section 3.1)."""

    def __init__(self, config: UNetConfig, in_width: int, width: int) -> None:
        super().__init__()
        self.spatial = Residual(config, in_width, width)
        self.temporal = Residual(config, width, width, temporal=True) if config.temporal else None
        self.mix = Mix() if config.temporal else None

    def forward(self, x_FCHW: Tensor, batch: Batch) -> Tensor:
        x_FCHW = self.spatial(x_FCHW, batch.embedding_BE)
        if self.temporal is None or self.mix is None:
            return x_FCHW
        x_BTSC = self.mix(tokens(x_FCHW).unflatten(0, (-1, batch.frames)), self._over_time, batch)
        return picture(x_BTSC.flatten(0, 1), x_FCHW.shape[-2:])

    def _over_time(self, x_BTSC: Tensor, batch: Batch) -> Tensor:
        assert self.temporal is not None
        x_BCTS: Tensor = self.temporal(x_BTSC.permute(0, 3, 1, 2), batch.embedding_BE)
        return x_BCTS.permute(0, 2, 3, 1)


def tokens(x_FCHW: Tensor) -> Tensor:
    """Reshape to (F, S, C); a view if `x` is channels-last."""
    return x_FCHW.permute(0, 2, 3, 1).flatten(1, 2)


def picture(x_FSC: Tensor, size: Sequence[int]) -> Tensor:
    """Reshape to (F, C, H, W) with height and width `size`; the inverse of `tokens`."""
    return x_FSC.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """LayerNorm and multi-head attention; the caller adds the residual.

    Without context: self-attention over S for (F, S, C), over T for (B, T, S, C). With context: every token of (B, ...,
    C) attends to the N context tokens of its sample. Query, key and value projections are kept separate because every
    checkpoint stores them that way.
    """

    def __init__(self, width: int, head_width: int, context_width: int | None = None) -> None:
        super().__init__()
        self.head_width = head_width
        self.norm = LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context_width or width, width, bias=False)
        self.v = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width)

    def over_space(self, x_FSC: Tensor) -> Tensor:
        x_FSC = self.norm(x_FSC)
        q, k, v = (project(x_FSC).unflatten(-1, (-1, self.head_width)) for project in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(attended.transpose(1, 2).flatten(2))

    def over_time(self, x_BTSC: Tensor) -> Tensor:
        """Fold positions into the head dimension, which avoids transposing any tensor in memory."""
        x_BTSC = self.norm(x_BTSC)
        q, k, v = (
            project(x_BTSC).flatten(2).unflatten(2, (-1, self.head_width)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if q.shape[1] <= MAX_HEADS:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            parts = zip(*(heads.split(MAX_HEADS, dim=1) for heads in (q, k, v)), strict=True)
            attended = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=1)
        return self.out(attended.transpose(1, 2).reshape(x_BTSC.shape))

    def over_context(self, x_BLC: Tensor, context_BNC: Tensor) -> Tensor:
        """With a single context token the softmax is 1 for any query. Queries and keys are skipped, so their gradients
        are None rather than zero, and the optimizer applies no weight decay to them.
        """
        if context_BNC.shape[1] == 1:
            return self.out(self.v(context_BNC))
        k, v = (project(context_BNC).unflatten(-1, (-1, self.head_width)) for project in (self.k, self.v))
        q = self.q(self.norm(x_BLC)).unflatten(-1, (-1, self.head_width))
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """LayerNorm and GEGLU feed-forward (Shazeer, 2020) with 4x expansion; the caller adds the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.widen = nn.Linear(width, 8 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # Two matmuls: the chunks of a single one would be strided, and backward would concatenate their gradients.
        x = self.norm(x)
        value_weight, gate_weight = self.widen.weight.chunk(2)
        value_bias, gate_bias = self.widen.bias.chunk(2)
        return self.narrow(F.linear(x, value_weight, value_bias) * F.gelu(F.linear(x, gate_weight, gate_bias)))


class SpatialLayer(nn.Module):
    """Transformer layer over the positions of each frame."""

    def __init__(self, width: int, head_width: int, context_width: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, head_width)
        self.cross_attention = Attention(width, head_width, context_width)
        self.feed_forward = FeedForward(width)

    def forward(self, x_FSC: Tensor, batch: Batch) -> Tensor:
        x_FSC = x_FSC + self.self_attention.over_space(x_FSC)
        x_BLC = x_FSC.unflatten(0, (-1, batch.frames)).flatten(1, 2)
        x_BLC = x_BLC + self.cross_attention.over_context(x_BLC, batch.context_BNC)
        x_BLC = x_BLC + self.feed_forward(x_BLC)
        return x_BLC.unflatten(1, (batch.frames, -1)).flatten(0, 1)


class TemporalLayer(nn.Module):
    """Transformer layer over the frames at each position, with an embedding of the frame index."""

    def __init__(self, width: int, head_width: int, context_width: int) -> None:
        super().__init__()
        self.frame_embedding = Embedding(width, 4 * width, width)
        self.feed_forward_in = FeedForward(width)
        self.self_attention = Attention(width, head_width)
        self.cross_attention = Attention(width, head_width, context_width)
        self.feed_forward = FeedForward(width)

    def forward(self, x_BTSC: Tensor, batch: Batch) -> Tensor:
        frames_T = torch.arange(batch.frames, device=x_BTSC.device)
        e_TC = self.frame_embedding(sinusoids(frames_T, x_BTSC.shape[-1]))
        x_BTSC = x_BTSC + e_TC[:, None].to(x_BTSC.dtype)
        x_BTSC = x_BTSC + self.feed_forward_in(x_BTSC)
        x_BTSC = x_BTSC + self.self_attention.over_time(x_BTSC)
        x_BLC = x_BTSC.flatten(1, 2)
        x_BLC = x_BLC + self.cross_attention.over_context(x_BLC, batch.context_BNC)
        x_BLC = x_BLC + self.feed_forward(x_BLC)
        return x_BLC.view(x_BTSC.shape)


class Transformer(nn.Module):
    """Spatial attention with blended temporal attention, between an input and an output projection (section 3.2)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm = GroupNorm(config.groups, width, eps=1e-6)
        self.project_in = nn.Linear(width, width)
        self.spatial = SpatialLayer(width, config.head_width, config.context_width)
        self.temporal = TemporalLayer(width, config.head_width, config.context_width) if config.temporal else None
        self.mix = Mix() if config.temporal else None
        self.project_out = nn.Linear(width, width)

    def forward(self, x_FCHW: Tensor, batch: Batch) -> Tensor:
        x_FSC = self.spatial(self.project_in(tokens(self.norm(x_FCHW))), batch)
        if self.temporal is not None and self.mix is not None:
            x_FSC = self.mix(x_FSC.unflatten(0, (-1, batch.frames)), self.temporal, batch).flatten(0, 1)
        return x_FCHW + picture(self.project_out(x_FSC), x_FCHW.shape[-2:])
