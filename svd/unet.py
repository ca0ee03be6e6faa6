"""The UNet of Stable Video Diffusion: Stable Diffusion 2.1's, a temporal layer after every spatial one (section 3.2).

x_BTCHW ─ conv_in ─ down ─ middle ─ up ─ norm, SiLU, conv_out ─ F_BTCHW
                     └──── skips ────┘
c_noise_B, ids_BK ─ embedding, to every residual block       context_BNC ─ cross-attention, in every transformer
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from svd.blocks import (
    Batch,
    Embedding,
    GroupNorm,
    Residual,
    SpaceTimeResidual,
    SpatialLayer,
    TemporalLayer,
    Transformer,
    sinusoids,
)
from svd.config import UNetConfig


class Block(nn.Module):
    """A residual block and, on levels with attention, a transformer."""

    def __init__(self, config: UNetConfig, in_width: int, width: int, *, attention: bool) -> None:
        super().__init__()
        self.residual = SpaceTimeResidual(config, in_width, width)
        self.transformer = Transformer(config, width) if attention else None

    def forward(self, x_FCHW: Tensor, batch: Batch) -> Tensor:
        """Never returns a view: FSDP2 hooks the output, and modifying a view in place would drop the hook."""
        x_FCHW = self.residual(x_FCHW, batch)
        return x_FCHW.clone() if self.transformer is None else self.transformer(x_FCHW, batch)


class Level(nn.Module):
    """The blocks of one resolution, and the convolution that changes to the next resolution."""

    def __init__(self, blocks: list[Block], resample: nn.Conv2d | None = None) -> None:
        super().__init__()
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.resample = resample


class UNet(nn.Module):
    """The network F_theta inside a denoiser.

    `checkpointing`: activation checkpointing. In training, keep only the input of each spatial and temporal block and
    recompute the rest in the backward pass.
    """

    def __init__(self, config: UNetConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        widths, depth = config.widths, len(config.widths)
        self.noise_embedding = Embedding(widths[0], config.embedding_width, config.embedding_width)
        if config.ids:
            in_width = config.id_width * len(config.ids)
            self.ids_embedding = Embedding(in_width, config.embedding_width, config.embedding_width)
        if config.learned_mask:
            self.mask_embedding = nn.Parameter(torch.zeros(config.out_channels))
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        skips, x_width, down, up = [widths[0]], widths[0], [], []
        for i, (width, attention) in enumerate(zip(widths, config.attention, strict=True)):
            blocks = []
            for _ in range(config.blocks_per_level):
                blocks.append(Block(config, x_width, width, attention=attention))
                skips.append(x_width := width)
            last = i == depth - 1
            down.append(Level(blocks, None if last else nn.Conv2d(width, width, 3, stride=2, padding=1)))
            skips += [] if last else [width]
        middle = [Block(config, x_width, x_width, attention=attention) for attention in (True, False)]
        for i, (width, attention) in reversed(list(enumerate(zip(widths, config.attention, strict=True)))):
            blocks = []
            for _ in range(config.blocks_per_level + 1):
                blocks.append(Block(config, x_width + skips.pop(), width, attention=attention))
                x_width = width
            up.append(Level(blocks, nn.Conv2d(width, width, 3, padding=1) if i else None))
        self.down = cast("Sequence[Level]", nn.ModuleList(down))
        self.middle = Level(middle)
        self.up = cast("Sequence[Level]", nn.ModuleList(up))
        self.norm_out = GroupNorm(config.groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self._start_at_zero()

    def forward(
        self,
        x_BTCHW: Tensor,
        c_noise_B: Tensor,
        *,
        context_BNC: Tensor,
        ids_BK: Tensor | None = None,
        image_only_B: Tensor | None = None,
    ) -> Tensor:
        """F_theta(x; c_noise), shape (B, T, out_channels, H, W).

        c_noise_B encodes the noise level: ln(sigma) / 4 for EDM, the timestep for Stable Diffusion 2.1. context_BNC: N
        = 77 text tokens, 1 image token, or 2 (interpolation). ids_BK: the raw values of `config.ids`. image_only_B:
        True for samples whose frames are independent images; their output is bit-identical to the image network's. On
        GPUs, pass it as a CPU tensor to avoid a synchronization. Height and width are arbitrary.

        Raises ValueError for inputs that do not match the configuration or each other.
        """
        self._check(x_BTCHW, c_noise_B, context_BNC, ids_BK, image_only_B)
        videos = _videos(image_only_B, x_BTCHW.device)
        batch = Batch(x_BTCHW.shape[1], self._embedding(c_noise_B, ids_BK), context_BNC, videos)
        if self.config.learned_mask:
            x_BTCHW = self._fill_unmasked(x_BTCHW)
        x = self.conv_in(x_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level in self.down:
            for block in level.blocks:
                skips.append(x := self._run(block, x, batch))
            if level.resample is not None:
                skips.append(x := level.resample(x))
        for block in self.middle.blocks:
            x = self._run(block, x, batch)
        for level in self.up:
            for block in level.blocks:
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), batch)
            if level.resample is not None:
                x = level.resample(F.interpolate(x, size=skips[-1].shape[-2:], mode="nearest"))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x.unflatten(0, x_BTCHW.shape[:2]).clone()  # no view, as in Block

    def _run(self, block: nn.Module, x_FCHW: Tensor, batch: Batch) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, x_FCHW, batch, use_reentrant=False))
        return cast("Tensor", block(x_FCHW, batch))

    def initialise(self) -> None:
        """Initialize every parameter as the release does; needed after building on the meta device."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        if self.config.learned_mask:
            nn.init.zeros_(self.mask_embedding)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Zero the last convolution of each residual block, the last projection of each transformer, and the output
        convolution, as the release does: each block initially adds nothing to its input.
        """
        for module in self.modules():
            if isinstance(module, Residual):
                _zero(module.conv2)
            elif isinstance(module, Transformer):
                _zero(module.project_out)
        _zero(self.conv_out)

    def _embedding(self, c_noise_B: Tensor, ids_BK: Tensor | None) -> Tensor:
        embedding_BE: Tensor = self.noise_embedding(sinusoids(c_noise_B, self.config.widths[0]))
        if ids_BK is None:
            return embedding_BE
        return embedding_BE + self.ids_embedding(sinusoids(ids_BK, self.config.id_width).flatten(1))

    def _fill_unmasked(self, x_BTCHW: Tensor) -> Tensor:
        """Replace the latent with the learned embedding where the mask is 0, i.e. on frames that are not given."""
        noisy, latent, mask = x_BTCHW.split([self.config.out_channels, self.config.out_channels, 1], dim=2)
        return torch.cat(
            [noisy, torch.where(mask > 0, latent, self.mask_embedding[:, None, None].to(latent.dtype)), mask], dim=2
        )

    def _check(
        self, x: Tensor, c_noise: Tensor, context: Tensor, ids: Tensor | None, image_only: Tensor | None
    ) -> None:
        expected = {
            "x_BTCHW": (x, ("B", "T", self.config.in_channels, "H", "W")),
            "c_noise_B": (c_noise, (len(x),)),
            "context_BNC": (context, (len(x), "N", self.config.context_width)),
            "image_only_B": (image_only, (len(x),)),
            "ids_BK": (ids, (len(x), len(self.config.ids))),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is not None and not _fits(tensor.shape, shape):
                wanted = ", ".join(map(str, shape))
                raise ValueError(f"{name} must have shape [{wanted}], got [{', '.join(map(str, tensor.shape))}]")
        if (ids is None) == bool(self.config.ids):
            takes = ", ".join(self.config.ids) or "no ids"
            raise ValueError(f"ids_BK is {'missing' if ids is None else 'given'}; this network expects {takes}")

    def temporal_layer_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of everything a video network adds to its image network, blend factors included."""
        for name, parameter in self.named_parameters():
            if ".temporal." in name or ".mix." in name:
                yield name, parameter

    def idle_parameters(self, *, context_tokens: int, images: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of everything that gets no gradient from such batches (None, so that the optimizer skips
        them).

        With one context token these are the queries and keys of cross-attention; for image-only batches also all
        temporal layers. Freeze them for data-parallel training, or declare them as unused parameters.
        """
        idle = {id(parameter) for _, parameter in self.temporal_layer_parameters()} if images else set()
        if context_tokens == 1:
            for module in self.modules():
                if isinstance(module, SpatialLayer | TemporalLayer):
                    attention = module.cross_attention
                    idle |= {id(p) for part in (attention.norm, attention.q, attention.k) for p in part.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) in idle:
                yield name, parameter


def _videos(image_only_B: Tensor | None, device: torch.device) -> Tensor | None:
    """Indices of the samples that are videos, or None if all are."""
    if image_only_B is None or not image_only_B.any():
        return None
    return (~image_only_B).nonzero()[:, 0].to(device)


def _fits(shape: torch.Size, expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
