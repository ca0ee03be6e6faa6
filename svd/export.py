"""Export a model as a diffusers folder or as a single file in the original release's layout."""

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
    """Export `model` into `folder`, which must be new or empty. Returns the path to load: the folder or the file in it.

    `diffusers` writes a folder for StableVideoDiffusionPipeline.from_pretrained, which supports image to video only.
    Its UNet uses a different eps in most residual blocks, so its frames differ slightly from ours. `original` writes
    one file with the release's names and supports every task.

    Raises UserError for an unknown format, a task the format does not support, or a missing encoder; FileExistsError
    for a non-empty folder.
    """
    folder, task = Path(folder), model.config.task
    if format not in get_args(Format):
        raise UserError(f"unknown format {format!r}; known: {', '.join(get_args(Format))}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose a new folder")
    if format == "diffusers" and task != "image-to-video":
        raise UserError(
            f"diffusers has a pipeline for image-to-video only, got a model for {task}; export it with the "
            "format 'original'"
        )
    if format == "diffusers" and "model_index.json" not in files(model.config):
        raise UserError(
            "diffusers expects 32 normalization groups and 2 autoencoder blocks per level, got a UNet with "
            f"{model.config.unet.groups} groups and an autoencoder with {model.config.autoencoder.groups} groups and "
            f"{model.config.autoencoder.blocks_per_level} blocks per level; export it with the format 'original'"
        )
    if NEEDS[task] not in model.networks():
        raise UserError(f"cannot export a model for {task} without its {NEEDS[task]}")
    if format == "diffusers":
        save_model(model, folder, dtype=dtype)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_original(model, folder / ORIGINAL_FILE, dtype=dtype)
    return folder / ORIGINAL_FILE
