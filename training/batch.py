"""Batches passed from the data loader to the training loop: frames or latents of B samples and their metadata.

Tensor layouts: B samples, T frames, C channels, H, W (pixels or latents), E the first and last frame of a video, N
context tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one shape. Holds either `frames_BTCHW` or tensors precomputed from the frames."""

    keys: list[str]
    """SHARD/CLIP_ID of each sample, for messages."""
    captions: list[str]
    """The sampled caption of each; empty if there is none or the stage needs none."""
    fps: Tensor
    """(B,) float32: frame rate of the sampled frames, in frames per second."""
    motion_bucket: Tensor
    """(B,) float32, 0 to 255."""
    elevation: Tensor
    """(B,) float32 degrees; 0 if the stage needs none."""
    image_only: bool
    """Whether the samples are images (T = 1), which skip the temporal layers."""
    frames_BTCHW: Tensor | None = None
    """uint8 RGB."""
    mean_BTCHW: Tensor | None = None
    logvar_BTCHW: Tensor | None = None
    """Posterior of the frames, unscaled."""
    ends_BECHW: Tensor | None = None
    """uint8 RGB: first and last frame, to which conditioning adds noise. With latents only."""
    image_embeddings_BEC: Tensor | None = None
    """CLIP embeddings of first and last frame. With latents only."""
    text_tokens_BNC: Tensor | None = None
    """Tokens of the sampled caption. With latents only."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Self:
        """Move frames, latents and embeddings to `device`, asynchronously from pinned memory. Metadata stays on the
        CPU.
        """
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self._large()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Pin the tensors that `to` moves; called by torch's DataLoader."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self._large()}
        return replace(self, **pinned)

    def _large(self) -> list[tuple[str, Tensor]]:
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in values if isinstance(value, Tensor) and value.ndim > 1]


def without_waiting(value: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` through pinned memory; a copy from pageable memory would synchronize."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
