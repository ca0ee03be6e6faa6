"""A model written for others: the folder that diffusers runs, or the one file of the original release."""

from pathlib import Path
from typing import Literal, get_args

import torch

from clipmill.errors import UserError
from svd.checkpoint import save_model, save_original
from svd.diffusers_json import files
from svd.model import NEEDS, Model

Format = Literal["diffusers", "original"]

ORIGINAL_FILE = "model.safetensors"


def export(model: Model, folder: str | Path, *, format: Format | str, dtype: torch.dtype | None = None) -> Path:
    """Write `model` into `folder`, which is new or empty. Returns what to load: the folder, or the file in it.

    `diffusers` is a folder for StableVideoDiffusionPipeline.from_pretrained; that pipeline knows image to video alone.
    Its UNet has another eps in most residual blocks than the release, so that its frames differ a little from ours.
    `original` is one file for every task, with the names of the release.

    Raises UserError for another format, for a task that the format has no place for, and for a model that lacks its
    encoder; FileExistsError for a folder that is not empty.
    """
    folder, task = Path(folder), model.config.task
    if format not in get_args(Format):
        raise UserError(f"unknown format {format!r}; known: {', '.join(get_args(Format))}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there and not empty; give a new folder")
    if format == "diffusers" and task != "image-to-video":
        raise UserError(
            f"diffusers has a pipeline for image to video alone, this model is for {task}; write it with the format "
            "'original'"
        )
    if format == "diffusers" and "model_index.json" not in files(model.config):
        raise UserError(
            "diffusers builds norms of 32 groups, and autoencoders of 2 blocks per level; this UNet has "
            f"{model.config.unet.groups} groups, this autoencoder {model.config.autoencoder.groups} and "
            f"{model.config.autoencoder.blocks_per_level}: write it with the format 'original'"
        )
    if NEEDS[task] not in model.networks():
        raise UserError(f"a model for {task} is written with its {NEEDS[task]}, and this one has none")
    if format == "diffusers":
        save_model(model, folder, dtype=dtype)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_original(model, folder / ORIGINAL_FILE, dtype=dtype)
    return folder / ORIGINAL_FILE
