"""`make demo`: run the whole pipeline on a small rendered collection or on your own videos."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from clipmill import CurateConfig, curate, select, shard
from clipmill.errors import UserError
from curation.dataset.description import fingerprint
from curation.scores import openclip
from curation.scores.aesthetics import Aesthetic
from curation.scores.clip_embedder import ClipEmbedderConfig
from curation.shards.write import ShardConfig
from demo.collection import Flaws, collection
from demo.model import demo_config
from demo.train import RECIPE, RUNS, WRITTEN, prepare_stages, sample_held_back, train_stages
from pipelines.cli import complain, console
from pipelines.cluster import connected
from pipelines.grid import table
from pipelines.progress import note
from pipelines.render import print_curation, print_summary
from pipelines.render_selection import print_selection
from pipelines.report import report_at_end

RULES = Path(__file__).with_name("rules")
_MARKER = ".clipmill-demo"


def main() -> None:
    """Render videos or take the given ones, curate them, select by the paper's rules and write clip and image shards.
    On rendered videos, also train a model and generate videos with it.
    """
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--out", default="demo-output", help="output folder of the demo")
    parser.add_argument("--videos", nargs="*", default=[], help="your own videos instead of rendered ones")
    parser.add_argument("--count", type=int, default=24, help="number of good videos to render (default: 24)")
    parser.add_argument(
        "--steps", type=float, default=1.0, help="training steps relative to the default; 0 skips training"
    )
    arguments = parser.parse_args()
    try:
        run(Path(arguments.out), arguments.videos, arguments.count, steps_share=arguments.steps)
    except UserError as error:
        complain(str(error))
        sys.exit(1)


def run(out: Path, videos: list[str], count: int, *, steps_share: float = 0.0) -> None:
    """The demo from footage to generated videos: clips, captions and scores, selections, shards, a model."""
    screen, started_s, rendered = console(), time.monotonic(), not videos
    dataset = str(out / ("rendered" if rendered else f"yours-{fingerprint({'videos': videos})[:8]}"))
    config = demo_config() if rendered else _own_config()
    if rendered:
        footage = out / "footage"
        _claim(out)
        for folder in (footage, Path(dataset), *(out / name for name in WRITTEN)):
            shutil.rmtree(folder, ignore_errors=True)  # rendered anew, they are new files, for a new dataset
        screen.print(f"rendering {count} good videos and some flawed ones into {footage}", markup=False)
        flaws = collection(footage, videos=count)
        screen.print(_table_of(flaws))
        videos = [str(footage)]
    with connected():
        curated = curate(videos, dataset, config=config)
        print_curation(screen, curated)
        selection = select(dataset, "svd-paper", allow_missing=bool(config.without), replace=True)
        print_selection(screen, selection)
        shards = [shard(dataset, "svd-paper"), shard(dataset, "svd-paper", images=True)] if selection.clips else []
        print_summary(screen, curated, selection, shards, time.monotonic() - started_s)
        recipe = _prepare(Path(dataset), out, steps_share) if rendered and steps_share else None
    model = train_stages(recipe, out) if recipe is not None else None  # without Ray, whose processes slow it down
    page = report_at_end(dataset, selection.name)
    screen.print(
        f"Look around: clipmill status {dataset}; tar tf {dataset}/shards/svd-paper/clips-000000.tar", markup=False
    )
    if model is not None:
        again = f"clipmill train --recipe {out / RECIPE} --out {out / RUNS}"
        screen.print(f"trained model: {model}. To run it again: {again}", markup=False)
        for video in sample_held_back(model, out):
            screen.print(f"generated from a held-out first frame: {video.video}, {video.sheet}", markup=False)
        screen.print(f"total time: {time.monotonic() - started_s:.0f} s", markup=False)
    if page is not None:
        screen.print(f"Look at the clips and choose thresholds: open {page} in a browser", markup=False)


def _claim(out: Path) -> None:
    """Mark `out` as a demo folder; only in such a folder are files of an earlier demo deleted.

    Raises UserError for a folder with other content.
    """
    if not (out / _MARKER).exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(
                f"{out} is not empty and was not made by the demo: choose a new or an empty folder with --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARKER).write_text("The clipmill demo made this folder. Its next run deletes what this one wrote.\n")


def _prepare(dataset: Path, out: Path, steps_share: float) -> Path:
    """Select by the demo's two sets of rules, write shards and latents; returns the recipe of the training."""
    screen = console()
    for rules, images in (("pretraining", True), ("pretraining", False), ("finetuning", False)):
        selection = select(str(dataset), str(RULES / f"{rules}.yaml"), replace=True)
        run = shard(str(dataset), selection.name, images=images, config=ShardConfig(clips_per_shard=16), quiet=True)
        kind = "pictures" if images else "clips"
        screen.print(f"training data selected by {rules}.yaml: {run.index['totals']['samples']} {kind}", markup=False)
    return prepare_stages(dataset, out, steps_share=steps_share)


def _own_config() -> CurateConfig:
    """Configuration for real videos: the real models if their weights are available, otherwise without their scores."""
    try:
        openclip.find(ClipEmbedderConfig().model, ClipEmbedderConfig().pretrained)
        Aesthetic().load()
    except UserError:
        note("weights of CLIP or of the aesthetic head not found: continuing without similarity and aesthetic")
        return CurateConfig(without=("similarity", "aesthetic"))
    return CurateConfig()


def _table_of(flaws: Flaws) -> object:
    rows = [
        ("wrong captions", sum(map(len, flaws.wrong_captions.values())), "shots that carry another shot's caption"),
        ("re-uploads", len(flaws.copies), "of other videos: resized, cropped, or with a logo"),
        ("bad pictures", len(flaws.degraded), ", ".join(flaws.degraded.values())),
        ("broken files", len(flaws.broken), ", ".join(flaws.broken)),
    ]
    return table("flaws put in", ("", "count", ""), rows)


if __name__ == "__main__":
    main()
