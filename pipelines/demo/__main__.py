"""`make demo`: the whole of what there is, on a small rendered collection or on your own videos."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from curation import openclip
from curation.clip import ClipConfig
from curation.errors import UserError
from curation.scores.aesthetics import Aesthetic
from curation.tables import fingerprint
from pipelines import CurateConfig, curate, select, shard
from pipelines.cli import complain, console
from pipelines.cluster import connected
from pipelines.demo.collection import Flaws, collection
from pipelines.demo.model import demo_config
from pipelines.progress import note
from pipelines.render import print_curation, print_selection, print_summary, table


def main() -> None:
    """Render (or take) videos, curate them, select by the paper's rules, write clip and image shards."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--out", default="demo", help="folder for everything the demo writes")
    parser.add_argument("--videos", nargs="*", default=[], help="your own videos instead of rendered ones")
    parser.add_argument("--count", type=int, default=12, help="how many good videos to render")
    arguments = parser.parse_args()
    try:
        run(Path(arguments.out), arguments.videos, arguments.count)
    except UserError as error:
        complain(str(error))
        sys.exit(1)


def run(out: Path, videos: list[str], count: int) -> None:
    """The demo as a recipe: footage -> clips, captions and scores -> selection -> shards."""
    screen, started_s = console(), time.monotonic()
    dataset = str(out / ("rendered" if not videos else f"yours-{fingerprint({'videos': videos})[:8]}"))
    config = _own_config() if videos else demo_config()
    if not videos:
        footage = out / "footage"
        shutil.rmtree(footage, ignore_errors=True)  # rendered anew, they are new files, for a new dataset
        shutil.rmtree(dataset, ignore_errors=True)
        screen.print(f"rendering {count} videos with known content, and some flawed ones, into {footage}", markup=False)
        flaws = collection(footage, videos=count)
        screen.print(_table_of(flaws))
        videos = [str(footage)]
    with connected():
        curated = curate(videos, dataset, config=config)
        print_curation(screen, curated)
        selection = select(dataset, "svd-paper", allow_missing=bool(config.without))
        print_selection(screen, selection)
        shards = [shard(dataset, "svd-paper"), shard(dataset, "svd-paper", images=True)] if selection.clips else []
    print_summary(screen, curated, selection, shards, time.monotonic() - started_s)
    screen.print(
        f"Look around: clipmill status {dataset}; tar tf {dataset}/shards/svd-paper/clips-000000.tar", markup=False
    )


def _own_config() -> CurateConfig:
    """For real videos: the real models where their weights can be had, no such scores where not."""
    try:
        openclip.find(ClipConfig().model, ClipConfig().pretrained)
        Aesthetic().load()
    except UserError:
        note("the weights of CLIP or of its aesthetic head cannot be had here: going on without those scores")
        return CurateConfig(without=("similarity", "aesthetic"))
    return CurateConfig()


def _table_of(flaws: Flaws) -> object:
    rows = [
        ("wrong captions", sum(map(len, flaws.wrong_captions.values())), "shots that carry another shot's caption"),
        ("re-uploads", len(flaws.copies), "another size, cropped, with a logo: videos that are there already"),
        ("bad pictures", len(flaws.degraded), ", ".join(flaws.degraded.values())),
        ("broken files", len(flaws.broken), ", ".join(flaws.broken)),
    ]
    return table("flaws put in", ("", "count", ""), rows)


if __name__ == "__main__":
    main()
