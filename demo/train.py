"""The demo's second half: shards to latents, stages I, II and III at tiny size, then videos from unseen first frames.

Equivalent to `clipmill cache-latents`, `clipmill train --recipe` and `clipmill sample`; the recipe is written so that
it can be run again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import yaml

from demo.parts import FRAMES, HEIGHT_PX, RATE_FPS, UNET, WIDTH_PX, write_initial
from demo.small import small_frames
from footage.corpus import corpus_specs
from footage.scenes import Picture
from pipelines.cache_latents import cache_latents
from pipelines.recipe import train_recipe
from pipelines.sample import Sample, SampleRequest, sample
from training.stages import Stage, overlay

HELD_BACK_SEED = 3_000_000
"""Neither the demo's footage nor the training data of its models uses corpora with this seed or above."""
INITIAL, LATENTS, RUNS, RECIPE = "initial", "latents", "runs", "recipe.yaml"
WRITTEN = (INITIAL, LATENTS, RUNS)
"""Subfolders of the demo's folder that a run writes."""
_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One stage of the demo."""

    stage: str
    shards: str
    """Subfolder of DATASET/shards."""
    steps: int
    batch_size: int
    lr: float
    augmentations_per_clip: int
    """Draws of frames per clip."""


STAGES = (
    _Part(stage="tiny-image", shards="pretraining-images", steps=300, batch_size=32, lr=1e-3, augmentations_per_clip=1),
    _Part(stage="tiny-video", shards="pretraining", steps=100, batch_size=8, lr=1e-3, augmentations_per_clip=3),
    _Part(stage="tiny-image-to-video", shards="finetuning", steps=300, batch_size=8, lr=2e-3, augmentations_per_clip=6),
)
"""Stage I on images, II on many clips, III on the best clips with image conditioning; about three minutes in all."""


def prepare_stages(dataset: Path, out: Path, *, steps_share: float = 1.0) -> Path:
    """Write the initial model, the latents of all stages and their recipe; returns the recipe. `steps_share` scales
    the steps of all stages.
    """
    initial = write_initial(out / INITIAL)
    entries, changes = [], {part.stage: _changes(part, initial, steps_share) for part in STAGES}
    for part in STAGES:
        stage = overlay(Stage.preset(part.stage), changes[part.stage])
        latents = out / LATENTS / part.stage
        cache_latents(
            stage,
            str(dataset / "shards" / part.shards),
            latents,
            init=initial,
            augmentations_per_clip=part.augmentations_per_clip,
        )
        entries.append({"stage": part.stage, "data": str(latents.relative_to(out)), "set": changes[part.stage]})
    recipe = out / RECIPE
    recipe.write_text(yaml.safe_dump({"init": initial.name, "stages": entries}, sort_keys=False), encoding="utf-8")
    return recipe


def train_stages(recipe: Path, out: Path) -> Path:
    """Train all stages of the recipe; returns the model of the last one."""
    return list(train_recipe(recipe, out / RUNS))[-1]


def sample_held_back(model: Path, out: Path) -> Iterator[Sample]:
    """Generate videos from first frames of unseen shots: OUT/sample-1.mp4, its frames in .png, and so on."""
    out.mkdir(parents=True, exist_ok=True)
    for number, picture in zip(range(1, _SAMPLES + 1), held_back_frames(), strict=False):
        first = out / f"sample-{number}-first.png"
        cv2.imwrite(str(first), picture)
        request = SampleRequest(image=first, fps=RATE_FPS, seed=number, device="cpu")
        yield sample(model, out / f"sample-{number}.mp4", request)


def held_back_frames() -> Iterator[Picture]:
    """First frames (H, W, 3) BGR of shots without text in which a shape moves or the camera pans."""
    for seed in range(HELD_BACK_SEED, 2 * HELD_BACK_SEED):
        for spec in corpus_specs(seed=seed, videos=1):
            for shot in spec.shots:
                if shot.text is None and (shot.moving_shape or shot.camera == "pan"):
                    yield small_frames(spec, shot, rate_fps=RATE_FPS, count=1)[0]


def _changes(part: _Part, initial: Path, steps_share: float) -> dict[str, Any]:
    """Overrides of the tiny preset: the demo's network, frame size and steps."""
    steps = max(2, round(part.steps * steps_share))
    preset = Stage.preset(part.stage)
    video = preset.data.frames > 1
    parts = {"image_encoder": str(initial.absolute())} if preset.task == "image-to-video" else {}
    return {
        "model": {"overrides": {name: list(v) if isinstance(v, tuple) else v for name, v in UNET.items()}, **parts},
        "data": {
            "frames": FRAMES if video else 1,
            "height_px": HEIGHT_PX,
            "width_px": WIDTH_PX,
            "fps": [RATE_FPS],
            "batch_size": part.batch_size,
            "workers": 0,
        },
        "optimizer": {"lr": part.lr, "warmup_steps": max(1, min(30, steps // 10)), "decay": "cosine", "ema": 0.99},
        "run": {
            "steps": steps,
            "batch_size": part.batch_size,
            "log_every": max(1, steps // 20),
            "save_every": steps,
            "sample_every": steps,
            "sample_steps": 15,
        },
    }
