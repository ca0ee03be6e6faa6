"""A small world to train in: latents whose motion a network can learn, a tiny model, and a stage of a few steps."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from svd.clip import CachedTexts
from svd.config import UNetConfig
from svd.model import Model, ModelConfig
from training.batch import Batch
from training.stages import Stage, overlay

UNET = {"widths": (32, 64), "attention": (True, False), "blocks_per_level": 1, "head_width": 16, "context_width": 16}
TOKENS = 3


def tiny_stage(name: str = "tiny-video", **run: Any) -> Stage:
    """A stage for two samples at once, in float32, every step logged."""
    changes = {
        "model": {"overrides": {**UNET, "id_width": 16, "frames": 3}},
        "data": {"frames": 3, "height_px": 32, "width_px": 48, "batch_size": 2},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "run": {"steps": 4, "batch_size": 2, "log_every": 1, "save_every": 2, "sample_every": None, **run},
    }
    if not Stage.preset(name).model.config().temporal:
        changes["model"]["overrides"]["frames"] = changes["data"]["frames"] = 1
    return overlay(Stage.preset(name), changes)


def tiny_model(stage: Stage, seed: int = 0) -> Model:
    """New networks for the stage; the same seed gives the same weights."""
    torch.manual_seed(seed)
    shapes = ModelConfig.tiny(UNetConfig.preset(stage.model.unet, **stage.model.overrides))
    model = Model.build(shapes.replace(image_encoder=None, text_encoder=None))
    model.text_encoder = CachedTexts({"": torch.zeros(TOKENS, 16)})
    model.autoencoder.requires_grad_(False).eval()
    return model


class Stream:
    """Batches without end. Sample i of the stream is the same whatever the ranks: rank r of R has every R-th."""

    def __init__(self, stage: Stage, *, rank: int = 0, world_size: int = 1, poison: int | None = None) -> None:
        self.stage, self.rank, self.world_size, self.poison = stage, rank, world_size, poison
        self.batches = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            size = self.stage.data.batch_size
            first = self.batches * size * self.world_size
            self.batches += 1
            yield self.batch([first + i * self.world_size + self.rank for i in range(size)])

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.batches = state_dict["batches"]

    def skip(self, samples: int) -> None:
        self.batches = samples // (self.stage.data.batch_size * self.world_size)

    def contents(self) -> list[tuple[str, int, int]]:
        return [("world.tar", 1, 1)]

    def batch(self, samples: list[int]) -> Batch:
        """A pattern that moves by one position per frame, told of by the tokens; two ends in pixels."""
        frames, means, tokens, ends = self.stage.data.frames, [], [], []
        for sample in samples:
            generator = torch.Generator().manual_seed(sample)
            picture = torch.randn(4, 4, 6, generator=generator)
            means.append(torch.stack([picture.roll(t, dims=-1) for t in range(frames)]))
            tokens.append(picture.flatten()[: TOKENS * 16].unflatten(0, (TOKENS, 16)))
            ends.append(torch.randint(256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8))
            if sample == self.poison:
                means[-1][0, 0, 0, 0] = torch.nan
        mean_BTCHW = torch.stack(means)
        return Batch(
            keys=[f"world/{sample}" for sample in samples],
            captions=["" for _ in samples],
            fps=torch.full((len(samples),), 8.0),
            motion_bucket=torch.full((len(samples),), 127.0),
            elevation=torch.zeros(len(samples)),
            image_only=frames == 1,
            mean_BTCHW=mean_BTCHW,
            logvar_BTCHW=torch.full_like(mean_BTCHW, -4.0),
            ends_BECHW=torch.stack(ends),
            image_embeddings_BEC=torch.stack([picture[:2] for picture in tokens]),
            text_tokens_BNC=torch.stack(tokens),
        )
