"""Previews during training: contact sheets sampled from the conditions of the current batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svd.clip import CachedImages, CachedTexts
from svd.conditioning import Ids
from svd.model import Model
from svd.tasks import Sampling, image_to_video, interpolate, text_to_video
from training.batch import Batch
from training.contact_sheet import contact_sheet, to_bytes
from training.encoding import signed
from training.metrics import Log
from training.stages import Stage

NOISE_AUGMENTATION = 0.02
_DECODE_FRAMES = 4


def preview(folder: Path, model: Model, stage: Stage, batch: Batch, done: int, log: Log | None) -> None:
    """Write FOLDER/step-N.png on the rank with a log: one row of generated frames per sample, fixed noise seeds."""
    videos = [make(model, stage, batch, i) for i in range(min(stage.run.sample_count, len(batch)))]
    if log is None:
        return
    sheets = [np.asarray(contact_sheet(to_bytes(frames_TCHW), float(batch.fps[0]))) for frames_TCHW in videos]
    picture = np.concatenate(sheets)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"step-{done:08d}.png")
    log.picture("samples", picture, done)


@torch.no_grad()
def make(model: Model, stage: Stage, batch: Batch, i: int) -> Tensor:
    """Generate a video (T, 3, H, W) in [-1, 1] from the conditions of sample `i` of `batch`, decoding a few frames at a
    time to fit into memory next to gradients and optimizer state.
    """
    frames = (batch.frames_BTCHW if batch.frames_BTCHW is not None else batch.mean_BTCHW).shape[1]  # type: ignore[union-attr]
    ids = Ids(
        fps=max(1.0, float(batch.fps[i])),
        motion_bucket=float(batch.motion_bucket[i]),
        noise_augmentation=NOISE_AUGMENTATION,
        elevation=float(batch.elevation[i]),
    )
    settings: dict[str, Any] = {
        "ids": [ids],
        "seeds": [i],
        "sampling": Sampling(frames=frames, steps=stage.run.sample_steps, decode_frames=_DECODE_FRAMES),
    }
    if stage.task in ("image", "text-to-video"):
        texts, size = _with_texts(model, batch, i), stage.data
        captions = [batch.captions[i]]
        return text_to_video(texts, captions, width_px=size.width_px, height_px=size.height_px, **settings)[0]
    first_BCHW, last_BCHW = _ends(batch, i)
    if batch.image_embeddings_BEC is not None:
        if stage.task == "interpolation":
            model = replace(model, image_encoder=_Ends(batch.image_embeddings_BEC[i : i + 1]))
        else:
            model = replace(model, image_encoder=CachedImages(batch.image_embeddings_BEC[i : i + 1, 0]))
    if stage.task == "interpolation":
        return interpolate(model, first_BCHW, last_BCHW, **settings)[0]
    return image_to_video(model, first_BCHW, **settings)[0]


class _Ends:
    """Precomputed embeddings of first and last frames, returned in order of request."""

    def __init__(self, embeddings_BEC: Tensor) -> None:
        self._next = iter(embeddings_BEC.unbind(1))

    def __call__(self, frames_BCHW: Tensor) -> Tensor:
        return next(self._next)


def _with_texts(model: Model, batch: Batch, i: int) -> Model:
    if batch.text_tokens_BNC is None or model.text_encoder is None:
        return model
    known = {batch.captions[i]: batch.text_tokens_BNC[i]}
    return replace(model, text_encoder=CachedTexts({"": model.text_encoder([""])[0], **known}))


def _ends(batch: Batch, i: int) -> tuple[Tensor, Tensor]:
    ends_BECHW = batch.ends_BECHW if batch.frames_BTCHW is None else batch.frames_BTCHW[:, [0, -1]]
    assert ends_BECHW is not None
    first_BCHW, last_BCHW = signed(ends_BECHW[i : i + 1]).unbind(1)
    return first_BCHW, last_BCHW
