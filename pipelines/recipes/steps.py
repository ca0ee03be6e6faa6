"""What recipes are written in: curate, select and shard, train; and the command line that they share."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.config import read_yaml
from clipmill.errors import RunStopped, UserError
from curation.selection.rules import Rules
from pipelines.cli_shared import BAD_REQUEST, FAILED, complain
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.curate import curate
from pipelines.recipe import finished_model
from pipelines.select import select
from pipelines.shard import shard
from pipelines.train import train
from pipelines.train_on_ray import train_on_ray
from training.stages import Stage, overlay

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run of a recipe: its inputs, and settings that differ from the recipe's own."""

    videos: tuple[str, ...]
    out: Path
    init: Path
    """Where training starts: Stable Diffusion 2.1."""
    image_encoder: Path
    """Model with CLIP's image encoder, for image-to-video stages."""
    curation: Mapping[str, Any] = field(default_factory=dict)
    """Settings of curation."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every stage of training."""
    tiny: bool = False
    """Train the stages' `tiny-` versions."""
    ray_workers: int | None = None
    """Train on so many workers of Ray; None: in this process."""
    device: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError for what would otherwise be found after days of curation."""
        for model in (self.init, self.image_encoder):
            if not model.exists():
                raise UserError(
                    f"no model at {model}: expected a model folder or file. --init names Stable Diffusion 2.1, "
                    "--image-encoder a model with CLIP's image encoder, such as the released SVD"
                )
        self._stage("image")

    def curate(self, config: CurateConfig) -> None:
        """Curate the videos into OUT/dataset with the recipe's configuration, and this run's settings over it."""
        values = _merged(config.model_dump(mode="json"), self.curation)
        curate(self.videos, self._dataset, config=CurateConfig.from_values(values, origin="--config"))

    def shards(self, rules: Rules, *, images: bool = False) -> str:
        """Select by the rules and write shards, of clips or of their middle frames; returns their folder."""
        select(self._dataset, rules)
        return shard(self._dataset, rules.name, images=images).folder

    def train(self, stage: str, data: str, *, init: Path) -> Path:
        """Train a stage (`training.stages`) into OUT/runs/STAGE; returns its model. A finished one is not run again."""
        resolved, out = self._stage(stage), self.out / "runs" / stage
        if model := finished_model(out, resolved):
            return model
        if self.ray_workers:
            return train_on_ray(resolved, data, out, workers=self.ray_workers, init=init, device=self.device)
        return train(resolved, data, out, init=init, device=self.device)

    @property
    def _dataset(self) -> str:
        return str(self.out / "dataset")

    def _stage(self, name: str) -> Stage:
        stage = overlay(Stage.preset(f"tiny-{name}" if self.tiny else name), self.training, origin="--training")
        encoder = {"model": {"image_encoder": str(self.image_encoder.absolute())}}
        return overlay(stage, encoder) if stage.task == "image-to-video" else stage


def command(run: Callable[[Recipe], Path], description: str | None) -> None:
    """Run a recipe as a command; prints where its last model is. A user's mistake is one sentence on stderr."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, folders, globs, addresses or lists")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for dataset, shards and runs")
    init = parser.add_argument("--init", type=Path, help="model to start from (%(default)s)")
    init.default = Path("stable-diffusion-2-1")
    encoder = parser.add_argument("--image-encoder", type=Path, help="model with CLIP's image encoder (%(default)s)")
    encoder.default = Path("stable-video-diffusion-img2vid")
    parser.add_argument("--config", help="YAML over the recipe's curation settings, as of `clipmill curate`")
    parser.add_argument("--training", help="YAML over the settings of every stage, as of `clipmill train --config`")
    parser.add_argument("--tiny", action="store_true", help="train models of a few million parameters, to try it")
    parser.add_argument("--ray-workers", type=int, help="train on so many GPUs of the Ray cluster")
    parser.add_argument("--address", help="Ray cluster to connect to; by default Ray runs on this machine")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    given = parser.parse_args()
    try:
        recipe = Recipe(
            videos=tuple(given.videos),
            out=given.out,
            init=given.init,
            image_encoder=given.image_encoder,
            curation=read_yaml(given.config) if given.config else {},
            training=read_yaml(given.training) if given.training else {},
            tiny=given.tiny,
            ray_workers=given.ray_workers,
            device=given.device,
        )
        with connected(given.address):
            print(run(recipe))
    except UserError as error:
        complain(str(error))
        sys.exit(FAILED if isinstance(error, RunStopped) else BAD_REQUEST)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values with changes laid over them, key by key."""
    merged = dict(values)
    for name, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        merged[name] = _merged(values[name], change) if both else change
    return merged
