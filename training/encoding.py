"""Convert uint8 frames to what the networks take. Layouts as in `training.batch`."""

from torch import Tensor

from svd.autoencoder import Autoencoder, Posterior

_CHUNK_FRAMES = 8
"""Frames per autoencoder pass: limits memory, does not affect the result."""


def signed(frames: Tensor) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def encode_frames(autoencoder: Autoencoder, frames_BTCHW: Tensor) -> Posterior:
    """The posterior of uint8 RGB frames, unscaled."""
    return autoencoder.encode(signed(frames_BTCHW), chunk_frames=_CHUNK_FRAMES)
