"""Variety: how different the frames of a clip are for a small convolutional network, whose weights are random.

Random features tell a still from a changing picture, and no more: train something better, and keep the rest.

    python -m clipmill_examples.variety variety.safetensors   # writes the weights that come with the package
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from clipmill import ClipView, Config, Frames, Resources, Scorer, UserError, column

_WEIGHTS = Path(__file__).with_name("variety.safetensors")
_SIZE_PX = 112
_SEED = 20


class Variety(Scorer):
    """Mean distance between the features of every two frames."""

    name = "variety"
    version = 1
    needs = (Frames(count=8, long_side_px=160),)
    columns = (
        column(
            "variety",
            pa.float32(),
            "mean cosine distance between the features of every two of eight frames; 0 for a still",
            unit="cosine distance, 0 to 2",
            bounds=(0, 2),
        ),
    )
    resources = Resources(num_gpus=1)
    may_change = ("weights", "clips_per_pass")

    class Config(Config):
        """Settings of the variety score."""

        weights: str | None = None
        """File with other weights; by default those of the package."""
        clips_per_pass: int = Field(16, ge=1)
        """Clips that go through the network together."""

    def load(self, device: str = "cpu") -> None:
        """Load the network onto the device. Raises UserError for weights that are missing or of another network."""
        path = Path(self.config.weights or _WEIGHTS)
        if not path.is_file():
            raise UserError(
                f"variety: no weights at {path}; write some with `python -m clipmill_examples.variety FILE`"
            )
        self._device, self._network = device, _network()
        try:
            self._network.load_state_dict(load_file(path))
        except Exception as error:
            raise UserError(f"variety: {path} does not hold this network: {error}") from error
        self._network.to(device).eval()
        self.weights_digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    @torch.inference_mode()
    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Column variety per clip."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(batch), self.config.clips_per_pass):
            some = batch[start : start + self.config.clips_per_pass]
            images_NCHW = torch.stack([_prepared(image) for clip in some for image in clip.frames])
            features_ND = self._network(images_NCHW.to(self._device))
            rows += [{"variety": _variety(f_FD)} for f_FD in features_ND.split([len(clip.frames) for clip in some])]
        return rows


def _prepared(image_HWC: np.ndarray) -> torch.Tensor:
    """(3, 112, 112), 0 to 1."""
    image_CHW = torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1).float() / 255
    size = (_SIZE_PX, _SIZE_PX)
    return torch.nn.functional.interpolate(image_CHW[None], size, mode="bilinear", antialias=True)[0]


def _variety(features_FD: torch.Tensor) -> float:
    if len(features_FD) < 2:
        return 0.0
    unit_FD = torch.nn.functional.normalize(features_FD.float(), dim=1)
    cosine_FF = unit_FD @ unit_FD.T
    pairs = torch.triu_indices(len(unit_FD), len(unit_FD), offset=1)
    return float((1 - cosine_FF[pairs[0], pairs[1]]).mean().clamp(0, 2))


def _network() -> torch.nn.Sequential:
    """(N, 3, 112, 112) to (N, 32 * 7 * 7): where something is counts, and not only what."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, stride=2, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(7),
        torch.nn.Flatten(),
    )


def write_weights(path: str, seed: int = _SEED) -> None:
    """Write random weights, the same for a seed on every machine."""
    torch.manual_seed(seed)
    save_file(_network().state_dict(), path)


if __name__ == "__main__":
    write_weights(sys.argv[1])
