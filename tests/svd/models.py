"""Whole models for the tests: two levels, frames of 64 x 96, every parameter drawn at random.

A width of 64 is two channels to a group of GroupNorm. With one, normalisation would take away whatever the embedding of
noise level and ids adds to a channel, and no test would notice a wrong id.
"""

from functools import cache

import torch
from torch import Tensor

from svd.config import UNetConfig
from svd.model import Model, ModelConfig, Task
from tests.svd.networks import randomise

_SMALL = {"widths": (64, 64), "attention": (True, False), "blocks_per_level": 1, "head_width": 16}
_PRESETS: dict[Task, str] = {
    "image": "sd21",
    "image-to-video": "svd",
    "text-to-video": "t2v",
    "interpolation": "interpolation",
    "multi-view": "multiview",
}
SIZE_HW = (64, 96)


@cache
def tiny_model(task: Task) -> Model:
    """One model per task and process; who changes it, copies it first."""
    frames = 1 if task == "image" else 4
    unet = UNetConfig.preset(_PRESETS[task], **_SMALL, context_width=32, id_width=32, frames=frames)
    model = Model.build(ModelConfig.tiny(unet, width_px=SIZE_HW[1], height_px=SIZE_HW[0]))
    for seed, network in enumerate(model.networks().values()):
        randomise(network.eval(), seed)
    return model


def pictures(count: int = 1, size: tuple[int, int] = SIZE_HW, seed: int = 0) -> Tensor:
    """(B, 3, H, W) in [-1, 1] out of whole numbers from 0 to 255: coarse structure and fine."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 7, generator=generator), size, mode="bicubic")
    fine = torch.rand(count, 3, *size, generator=generator)
    return ((0.7 * coarse + 0.3 * fine).clamp(0, 1) * 255).round() / 127.5 - 1
