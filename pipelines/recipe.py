"""Recipes: train several stages one after another, each starting from the model of the previous one.

    init: MODEL            (initial model of the first stage)
    stages:
      - {stage: tiny-image, data: DATASET/shards/NAME-images, set: {run: {steps: 100}}}
      - {stage: tiny-video, data: DATASET/shards/NAME}

Paths are relative to the recipe file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.config import read_yaml, unknown_name
from clipmill.errors import UserError
from pipelines.train import train
from training.run_folder import Location, below
from training.run_stage import check_settings, finished, read_settings
from training.stages import Stage, overlay

_KEYS = ("init", "stages")
_STAGE_KEYS = {"stage": str, "data": str, "images": str, "set": Mapping, "name": str}
_NAME = re.compile(r"\w[\w.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class RecipeStage:
    """One entry of a recipe."""

    folder: str
    """Run folder, relative to the folder of all runs: NUMBER-NAME."""
    stage: Stage
    data: str
    images: str | None
    """Local paths or fsspec URLs of shards."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A validated recipe."""

    init: Path | str | None
    stages: tuple[RecipeStage, ...]


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe. Raises UserError that names the file and the invalid entry."""
    content = read_yaml(str(path))
    stages, init = content.get("stages"), content.get("init")
    if set(content) - set(_KEYS) or not isinstance(stages, list) or not stages or not isinstance(init, str | None):
        raise UserError(
            f"{path}: expected the keys 'stages' (a list) and, optionally, 'init' (a path), got "
            f"{', '.join(map(str, content)) or 'none'}"
        )
    return Recipe(
        init=None if init is None else (init if "://" in init else path.parent / init),
        stages=tuple(_recipe_stage(path, number, entry) for number, entry in enumerate(stages, 1)),
    )


def train_recipe(
    path: Path, out: Location, *, device: str | None = None, take_over: bool = False, quiet: bool = False
) -> Iterator[Location]:
    """Train the stages of the recipe at `path`, each in its own folder below `out`; yields their models.

    Finished stages are skipped, unless the recipe gives them more steps. Raises UserError before training starts if a
    stage was started with different settings.
    """
    recipe = read_recipe(path)
    done = [finished_model(below(out, entry.folder), entry.stage) for entry in recipe.stages]
    _check_order(recipe, out, done)
    init: Path | str | None = recipe.init
    for entry, trained in zip(recipe.stages, done, strict=True):
        model = trained or train(
            entry.stage,
            entry.data,
            below(out, entry.folder),
            images=entry.images,
            init=init,
            device=device,
            take_over=take_over,
            quiet=quiet,
        )
        yield model
        if entry.stage.model.trainable != "lora":  # adapters are not a model to start from
            init = model


def finished_model(folder: Location, stage: Stage) -> Location | None:
    """The model of a run that has completed all steps of `stage`; None if it has not. Raises UserError if the run was
    started with different settings.
    """
    settings = check_settings(stage, folder)
    steps = None if settings is None else settings["config"].get("run", {}).get("steps")
    return finished(folder) if steps is None or steps >= stage.run.steps else None


def _check_order(recipe: Recipe, out: Location, done: list[Location | None]) -> None:
    """Raise UserError if a stage would be trained further although a later stage has already started from its model."""
    folders = [below(out, entry.folder) for entry in recipe.stages]
    for i, (folder, model) in enumerate(zip(folders, done, strict=True)):
        later = [folder for folder in folders[i + 1 :] if read_settings(folder) is not None]
        if model is None and finished(folder) is not None and later:
            raise UserError(
                f"{folder} has more steps to train, but {later[0]} was already started from its model: remove "
                f"{later[0]} to retrain it, or choose another --out"
            )


def _recipe_stage(path: Path, number: int, entry: Any) -> RecipeStage:
    if not isinstance(entry, dict) or entry.get("stage") is None or entry.get("data") is None:
        raise UserError(f"{path}: stage {number}: expected the keys 'stage' and 'data', got {entry!r:.200}")
    unknown = [str(key) for key in entry if key not in _STAGE_KEYS]
    if unknown:
        raise UserError(f"{path}: stage {number}: {unknown_name('key', unknown[0], list(_STAGE_KEYS))}")
    for key, kind in _STAGE_KEYS.items():
        if entry.get(key) is not None and not isinstance(entry[key], kind):
            wanted = "settings by group" if kind is Mapping else "text"
            raise UserError(f"{path}: stage {number}: expected '{key}' to be {wanted}, got {entry[key]!r:.200}")
    name = entry.get("name") or entry["stage"]
    if not _NAME.fullmatch(str(name)):
        raise UserError(
            f"{path}: stage {number}: expected a name of letters, digits, '.', '_' and '-', which becomes a folder, "
            f"got {name!r:.200}"
        )
    try:
        stage = overlay(Stage.preset(entry["stage"]), entry.get("set") or {}, origin=f"stage {number}")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    images = entry.get("images")
    return RecipeStage(
        folder=f"{number}-{name}",
        stage=stage,
        data=_beside(path, entry["data"]),
        images=None if images is None else _beside(path, images),
    )


def _beside(path: Path, shards: str) -> str:
    """A path in the recipe file is relative to it."""
    return shards if "://" in shards else str(path.parent / shards)
