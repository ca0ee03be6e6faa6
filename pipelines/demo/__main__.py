"""`make demo`: the whole of what there is, on a small rendered corpus or on your own videos."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from curation.errors import UserError
from curation.tables import fingerprint
from pipelines import curate, select, shard
from pipelines.cli import complain, console
from pipelines.cluster import connected
from pipelines.demo.footage import corpus
from pipelines.render import print_selection, print_summary


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
        complain(str(error))
        sys.exit(1)


def run(out: Path, videos: list[str], count: int) -> None:
    """The demo as a recipe: footage -> clips and scores -> selection -> shards."""
    screen, started_s = console(), time.monotonic()
    dataset = str(out / ("rendered" if not videos else f"yours-{fingerprint({'videos': videos})[:8]}"))
    if not videos:
        footage = out / "footage"
        shutil.rmtree(footage, ignore_errors=True)  # rendered anew, they are new files, for a new dataset
        shutil.rmtree(dataset, ignore_errors=True)
        screen.print(f"rendering {count} videos with known content, and two broken ones, into {footage}", markup=False)
        break_two(footage, corpus(footage, videos=count)[0].file)
        videos = [str(footage)]
    with connected():
        curated = curate(videos, dataset)
        # The rules on aesthetics and caption similarity are skipped: their scorers come with a later release.
        selection = select(dataset, "svd-paper", allow_missing=True)
        print_selection(screen, selection)
        shards = [shard(dataset, "svd-paper"), shard(dataset, "svd-paper", images=True)] if selection.clips else []
    print_summary(screen, curated, selection, shards, time.monotonic() - started_s)
    screen.print(
        f"Look around: clipmill status {dataset}; tar tf {dataset}/shards/svd-paper/clips-000000.tar", markup=False
    )


def break_two(folder: Path, whole: str) -> None:
    """What every real collection has: a file that is no video, and one whose download broke off."""
    (folder / "not-a-video.mp4").write_text("This is a text file with a hopeful name.\n")
    content = (folder / whole).read_bytes()
    (folder / "cut-short.mp4").write_bytes(content[: len(content) // 2])


if __name__ == "__main__":
    main()
