"""What the loader hands to the loop: frames or latents of B samples, and what is known of each.

Letters of tensor layouts: B samples, T frames, C channels, H, W (pixels or latents), E the two ends of a video, N
context tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one shape. Either `frames_BTCHW` is there, or what was computed from the frames once."""

    keys: list[str]
    """SHARD/CLIP_ID of each sample, for messages."""
    captions: list[str]
    """The drawn caption of each; empty where there is none, or none is asked for."""
    fps: Tensor
    """(B,) float32: frames per second of the frames as they were sampled."""
    motion_bucket: Tensor
    """(B,) float32, 0 to 255."""
    elevation: Tensor
    """(B,) float32 degrees; 0 where none is asked for."""
    image_only: bool
    """Whether these are pictures (T = 1), which temporal layers do not see."""
    frames_BTCHW: Tensor | None = None
    """uint8 RGB."""
    mean_BTCHW: Tensor | None = None
    logvar_BTCHW: Tensor | None = None
    """The frames' posterior, in the autoencoder's own units."""
    ends_BECHW: Tensor | None = None
    """uint8 RGB: first and last frame, which conditioning adds noise to. With latents only."""
    image_embeddings_BEC: Tensor | None = None
    """CLIP's embeddings of the two ends. With latents only."""
    text_tokens_BNC: Tensor | None = None
    """Tokens of the drawn caption. With latents only."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Self:
        """Frames, latents and embeddings on `device`, without waiting where they are pinned. What is known of a sample
        stays on the CPU, where it is read."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self._large()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """What `to` moves in page-locked memory; torch's loader calls this."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self._large()}
        return replace(self, **pinned)

    def _large(self) -> list[tuple[str, Tensor]]:
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in values if isinstance(value, Tensor) and value.ndim > 1]


def without_waiting(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A plain copy would wait until the device has done all that it was asked for."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
