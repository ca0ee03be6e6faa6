"""Building blocks of recipes: curate, select and shard, train, and a shared command line."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.config import read_yaml
from clipmill.errors import UserError
from curation.selection.rules import Rules
from pipelines.cli_shared import run_command
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.curate import curate
from pipelines.recipe import finished_model
from pipelines.select import select
from pipelines.shard import shard
from pipelines.train import train
from pipelines.train_on_ray import train_on_ray
from training.stages import Stage, overlay


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Inputs of a recipe run and overrides of the recipe's settings."""

    videos: tuple[str, ...]
    out: Path
    init: Path
    """Initial model: Stable Diffusion 2.1."""
    image_encoder: Path
    """Model with CLIP's image encoder, for image-to-video stages."""
    curation: Mapping[str, Any] = field(default_factory=dict)
    """Curation settings."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Training settings, for all stages."""
    tiny: bool = False
    """Train the `tiny-` versions of the stages."""
    ray_workers: int | None = None
    """Number of Ray workers to train on; None: this process."""
    address: str | None = None
    """Ray cluster; None: RAY_ADDRESS, else Ray on this machine."""
    device: str | None = None

    def __post_init__(self) -> None:
        """Validate inputs before days of curation. Raises UserError."""
        for model in (self.init, self.image_encoder):
            if not model.exists():
                raise UserError(
                    f"no model at {model}: expected a model folder or file. --init names Stable Diffusion 2.1, "
                    "--image-encoder a model with CLIP's image encoder, such as the released SVD"
                )
        self._stage("image")

    def curate(self, config: CurateConfig) -> None:
        """Curate the videos into OUT/dataset with the recipe's configuration and the run's overrides."""
        values = _merged(config.model_dump(mode="json"), self.curation)
        config = CurateConfig.from_values(values, origin="--config")
        curate(self.videos, self._dataset, config=config, address=self.address)

    def select(self, rules: Rules) -> str:
        """Select clips by rules; returns the name of the selection."""
        return select(self._dataset, rules).name

    def shards(self, selection: str, *, images: bool = False) -> str:
        """Write shards of a selection's clips, or of their middle frames; returns the shard folder."""
        return shard(self._dataset, selection, images=images, address=self.address).folder

    def train(self, stage: str, data: str, *, init: Path) -> Path:
        """Train a stage (`training.stages`) into OUT/runs/STAGE; returns its model. Finished stages are skipped."""
        resolved, out = self._stage(stage), self.out / "runs" / stage
        if model := finished_model(out, resolved):
            return model
        if self.ray_workers:
            return train_on_ray(
                resolved, data, out, workers=self.ray_workers, init=init, address=self.address, device=self.device
            )
        return train(resolved, data, out, init=init, device=self.device)

    @property
    def _dataset(self) -> str:
        return str(self.out / "dataset")

    def _stage(self, name: str) -> Stage:
        stage = overlay(Stage.preset(f"tiny-{name}" if self.tiny else name), self.training, origin="--training")
        encoder = {"model": {"image_encoder": str(self.image_encoder.absolute())}}
        return overlay(stage, encoder) if stage.task == "image-to-video" else stage


def command(run: Callable[[Recipe], Path], description: str | None) -> None:
    """Run a recipe as a command and print the path of its last model. User errors are printed as one line on stderr."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, folders, globs, URLs or lists")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder for dataset, shards and runs")
    parser.add_argument(
        "--init", type=Path, default=Path("stable-diffusion-2-1"), help="initial model (default: %(default)s)"
    )
    parser.add_argument(
        "--image-encoder",
        type=Path,
        default=Path("stable-video-diffusion-img2vid"),
        help="model with CLIP's image encoder (default: %(default)s)",
    )
    parser.add_argument("--config", help="YAML file with curation settings to override, as for `clipmill curate`")
    parser.add_argument(
        "--training", help="YAML file with settings to override in every stage, as for `clipmill train --config`"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="train models with a few million parameters, for a trial run"
    )
    parser.add_argument("--ray-workers", type=int, help="number of GPUs of the Ray cluster to train on")
    parser.add_argument("--address", help="Ray cluster to connect to (default: start Ray on this machine)")
    parser.add_argument("--device", help="device (default: cuda if available, else cpu)")
    given = parser.parse_args()

    def run_recipe() -> None:
        recipe = Recipe(
            videos=tuple(given.videos),
            out=given.out,
            init=given.init,
            image_encoder=given.image_encoder,
            curation=read_yaml(given.config) if given.config else {},
            training=read_yaml(given.training) if given.training else {},
            tiny=given.tiny,
            ray_workers=given.ray_workers,
            address=given.address,
            device=given.device,
        )
        with connected(given.address):
            print(run(recipe))

    run_command(run_recipe)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Deep-merge changes into nested values."""
    merged = dict(values)
    for name, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        merged[name] = _merged(values[name], change) if both else change
    return merged
