"""`make demo`: the whole of what there is, on a small rendered corpus or on your own videos."""

import argparse
import sys
from pathlib import Path

from curation.errors import UserError
from pipelines import curate, select, shard
from pipelines.cli import console
from pipelines.cluster import connected
from pipelines.demo.footage import corpus
from pipelines.render import print_curation, print_selection, print_shards, printable


def main() -> None:
    """Render (or take) videos, curate them, select by the paper's rules, write clip and image shards."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--out", default="demo", help="folder for everything the demo writes")
    parser.add_argument("--videos", nargs="*", default=[], help="your own videos instead of rendered ones")
    parser.add_argument("--count", type=int, default=12, help="how many videos to render")
    arguments = parser.parse_args()
    try:
        run(Path(arguments.out), arguments.videos, arguments.count)
    except UserError as error:
        sys.exit(f"demo: {printable(str(error))}")


def run(out: Path, videos: list[str], count: int) -> None:
    """The demo as a recipe: footage -> clips and scores -> selection -> shards."""
    screen = console()
    dataset = str(out / ("rendered" if not videos else "yours"))
    if not videos:
        footage = out / "footage"
        screen.print(f"rendering {count} videos with known content into {footage}")
        corpus(footage, videos=count)
        videos = [str(footage)]
    with connected():
        print_curation(screen, curate(videos, dataset))
        # The rules on aesthetics and caption similarity are skipped: their scorers come with a later release.
        print_selection(screen, select(dataset, "svd-paper", allow_missing=True))
        print_shards(screen, shard(dataset, "svd-paper"))
        print_shards(screen, shard(dataset, "svd-paper", images=True))
    screen.print(f"Look around: clipmill status {dataset}, tar tf {dataset}/shards/svd-paper/clips-000000.tar")


if __name__ == "__main__":
    main()
