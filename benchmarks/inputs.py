"""Take inputs of any kind from the command line to the trainer: curate, select, shard (both extractions), read.

    python -m benchmarks.inputs INPUT... [--markdown]

An input is what `clipmill curate` takes: a file, a folder, a list, an address. For each source, the table has what the
scan says, the number of clips by extraction, and what is wrong with them: a clip that is not in the shards, another
number of frames or other times than in its row, a frame that training cannot read, a remuxed frame that differs from
the transcoded one, a first frame that differs from the one that FFmpeg's own program shows.
"""

import argparse
import json
import random
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import report
from clipmill.cropping import Margins
from clipmill.errors import UserError
from curation.dataset.joined import joined_query
from curation.dataset.tables import Dataset
from curation.inputs.sources import list_sources
from curation.scan.isolation import Isolated
from curation.scan.one_pass import ScanConfig
from curation.scores.columns import SCORE_COLUMNS
from curation.selection.rules import Rules
from curation.shots.spans import SpanConfig
from pipelines.config import CurateConfig
from pipelines.curate import curate
from pipelines.parts import scan_safely
from pipelines.select import select
from pipelines.shard import shard
from training.data_config import DataConfig
from training.frames import sample_video
from training.sample_error import SampleError
from training.samples import read_sample
from training.shard_index import index_shards

Picture = NDArray[np.uint8]
"""(height, width, 3) RGB."""

_EXTRACTIONS = ("auto", "transcode")
_LEVELS = 3.0
"""Mean difference of pictures that are the same, in 8-bit levels."""
_HDR_LEVELS = 6.0
"""The same for a tone-mapped picture and that as 4:2:0, which has its chroma halved twice."""
_TIME_S = 0.0011
"""Matroska rounds to milliseconds."""
_FEATURES = ("timestamps", "interlaced", "hdr", "alpha", "rotation", "mirrored", "other_video_streams")
_USUAL = ("container", "progressive")


@dataclass
class Clip:
    """A clip, from its row to its file in a shard."""

    row: dict[str, Any]
    members: Mapping[str, bytes] | None = None
    """Its files in the shard; None if it is in none."""

    def picture(self, frame: int) -> Picture:
        """A frame of the source, as training reads it at its displayed size. Raises SampleError."""
        assert self.members is not None
        shape = json.loads(self.members["json"])["shape"]
        left, top, right, bottom = shape.get("crop", (0, 0, 0, 0))
        sampled = sample_video(
            self.members["mp4"],
            lengths=(1,),
            rates=(1e6,),
            size_for=lambda height, width: (height, width),
            crop="center",
            rng=_Nth(frame - self.row["start_frame"]),
            margins=Margins(left=left, top=top, right=right, bottom=bottom),
        )
        return sampled.frames_TCHW[0].transpose(1, 2, 0)


@dataclass
class Outcome:
    """What became of a source."""

    row: dict[str, Any] = field(default_factory=dict)
    clips: list[Clip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    """Mean differences of first frames from those of FFmpeg."""

    def cells(self) -> Iterator[Any]:
        row = self.row
        if row.get("status") != "ok":
            yield from (f"{row.get('error_kind')}: {row.get('error')}", "", "")
        else:
            named = (f"{name} {row[name]}" for name in _FEATURES if row[name] and row[name] not in _USUAL)
            yield ", ".join((f"{row['frames']} frames, {row['fps'] or 0:.4g} fps", *named))
            counts = Counter(clip.row["extraction"] for clip in self.clips)
            yield ", ".join(f"{count} {extraction}" for extraction, count in sorted(counts.items())) or "no clip"
            yield "; ".join(f"{levels:.1f}" for levels in self.levels)
        yield "; ".join(dict.fromkeys(self.problems)) or "-"


class _Nth(random.Random):
    """Draws this start of a sample."""

    def __init__(self, start: int) -> None:
        self.start = start
        super().__init__(0)

    def randrange(self, *_: int) -> int:  # type: ignore[override]
        return self.start


def settings(extraction: str, min_s: float) -> CurateConfig:
    """Every clip, no models."""
    spans = SpanConfig(min_s=min_s, extraction=extraction)  # type: ignore[arg-type]
    return CurateConfig(scan=ScanConfig(spans=spans), without=tuple(SCORE_COLUMNS), duplicates=None)


def clips_of(folder: str, inputs: Sequence[str], config: CurateConfig) -> tuple[dict[str, Any], list[Clip]]:
    """Curate, select and shard; returns the rows of sources by address, and all clips."""
    curate(inputs, folder, config=config, quiet=True)
    dataset = Dataset(folder).open()
    with dataset.connect() as connection:
        rows = connection.sql("SELECT * FROM sources").to_arrow_table().to_pylist()
    by_uri = {row["uri"]: row for row in rows}
    selection = select(folder, Rules.from_values({"name": "all"}, origin="benchmark"))
    if selection.empty:
        return by_uri, []
    shard(folder, "all", quiet=True)
    members = {}
    for each in index_shards(f"{folder}/shards/all").shards:
        members |= {each.keys[row]: each.read(row) for row in range(len(each))}
    with dataset.connect() as connection:
        columns = ("clip_id", "uri", "frames", "start_frame", "duration_s", "extraction", "width", "height")
        query = joined_query(connection, [*columns, "crop_left", "crop_top"])
        clips = connection.sql(query).to_arrow_table().to_pylist()
    return by_uri, [Clip(row, members.get(row["clip_id"])) for row in clips]


def check_clip(clip: Clip, times_s: Sequence[float], outcome: Outcome) -> None:
    """Add what is wrong with a clip by itself."""
    row, members = clip.row, clip.members
    if members is None:
        outcome.problems.append(f"{row['extraction']}: not in the shards")
        return
    try:
        with av.open(BytesIO(members["mp4"])) as container:
            got_s = [float(frame.time) for frame in container.decode(video=0)]
        first, last = row["start_frame"], row["start_frame"] + row["frames"]
        if len(got_s) != row["frames"]:
            outcome.problems.append(f"{row['extraction']}: {len(got_s)} frames of {row['frames']}")
        elif not np.allclose(got_s, np.array(times_s[first:last]) - times_s[first], rtol=0, atol=_TIME_S):
            outcome.problems.append(f"{row['extraction']}: other times than in the source")
        for frame in sorted({first, (first + last) // 2, last - 1}):
            clip.picture(frame)
        read_sample(row["clip_id"], members, DataConfig(frames=1, height_px=64, width_px=64), seed=0)
    except (SampleError, av.FFmpegError, IndexError) as error:  # the last one without a stream
        outcome.problems.append(f"{row['extraction']}: training cannot read it: {error}")


def compare(outcome: Outcome) -> None:
    """Compare remuxed clips with transcoded ones, frame by frame of the source."""
    complete, most = [clip for clip in outcome.clips if clip.members is not None], _LEVELS
    if outcome.row["hdr"]:
        most = _HDR_LEVELS
    transcoded = [clip for clip in complete if clip.row["extraction"] == "transcode"]
    for clip in complete:
        if clip.row["extraction"] != "remux":
            continue
        first, last = clip.row["start_frame"], clip.row["start_frame"] + clip.row["frames"] - 1
        for other in transcoded:
            begin = max(first, other.row["start_frame"])
            end = min(last, other.row["start_frame"] + other.row["frames"] - 1)
            for frame in sorted({begin, (begin + end) // 2, end}) if begin <= end else ():
                levels = difference(clip.picture(frame), other.picture(frame))
                if levels >= most:
                    outcome.problems.append(f"frame {frame}: remuxed and transcoded differ by {levels:.1f} levels")


def difference(picture: Picture, other: Picture) -> float:
    """Mean difference in levels; an odd size may have lost its last row or column, at whichever end it is shown."""
    height, width = (min(a, b) for a, b in zip(picture.shape[:2], other.shape[:2], strict=True))
    if max(picture.shape[0], other.shape[0]) > height + 1 or max(picture.shape[1], other.shape[1]) > width + 1:
        return float("inf")

    def places(image: Picture) -> Iterator[NDArray[np.float64]]:
        for top in {0, image.shape[0] - height}:
            for left in {0, image.shape[1] - width}:
                yield image[top : top + height, left : left + width].astype(float)

    return min(float(np.abs(a - b).mean()) for a in places(picture) for b in places(other))


def first_picture(path: Path, folder: Path, stream_index: int, *, sideways: bool) -> Picture | None:
    """The first frame of a stream as FFmpeg's program shows it, with square pixels; None if it shows none."""
    png = folder / "first.png"
    png.unlink(missing_ok=True)
    scale = "iw:trunc(ih/sar+0.5)" if sideways else "trunc(iw*sar+0.5):ih"
    options = [
        "-map",
        f"0:{stream_index}",
        "-frames:v",
        "1",
        "-vf",
        f"scale={scale},setsar=1",
        "-pix_fmt",
        "rgb24",
        png,
    ]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "quiet", "-y", "-threads", "1", "-i", path, *options]
    subprocess.run([str(part) for part in command], check=False, stdin=subprocess.DEVNULL)
    bgr = cv2.imread(str(png)) if png.exists() else None
    return None if bgr is None else np.ascontiguousarray(bgr[:, :, ::-1], np.uint8)


def compare_with_ffmpeg(outcome: Outcome, folder: Path) -> None:
    """Compare the first frame of a local file; of HDR and interlaced ones, only the difference is reported."""
    path = Path(outcome.row["uri"].removeprefix("file://"))
    clips = [clip for clip in outcome.clips if clip.members is not None and clip.row["start_frame"] == 0]
    if not path.is_file() or not clips:
        return
    row = outcome.row
    shown = first_picture(path, folder, row["stream_index"], sideways=row["rotation"] in (90, 270))
    if shown is None:
        return
    alike = not row["hdr"] and row["interlaced"] == "progressive" and not row["alpha"]
    for clip in clips:
        picture = clip.picture(0)
        outcome.levels.append(min(difference(picture, part) for part in _without_bars(shown, clip.row)))
        if alike and outcome.levels[-1] >= _LEVELS:
            outcome.problems.append(f"{clip.row['extraction']}: not FFmpeg's picture")


def _without_bars(picture: Picture, row: Mapping[str, Any]) -> Iterator[Picture]:
    """The picture without the bars of a clip, which are cut off in steps of two pixels of the decoded frame."""
    if (row["height"], row["width"]) == picture.shape[:2]:
        yield picture
        return
    for left in (row["crop_left"] - 1, row["crop_left"], row["crop_left"] + 1):
        for top in (row["crop_top"] - 1, row["crop_top"], row["crop_top"] + 1):
            yield picture[max(0, top) : max(0, top) + row["height"], max(0, left) : max(0, left) + row["width"]]


def run(inputs: Sequence[str], folder: Path, min_s: float) -> dict[str, Outcome]:
    """Outcome of each source, by address."""
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    for extraction in _EXTRACTIONS:
        config = settings(extraction, min_s)
        rows, clips = clips_of(str(folder / extraction), inputs, config)
        for uri, row in rows.items():
            outcomes[uri].row = row
        for clip in clips:
            outcomes[clip.row["uri"]].clips.append(clip)
    config = settings("auto", min_s)
    with Isolated(config.scan.limits) as child:
        for source in list_sources(inputs):
            outcome = outcomes[source.uri]
            if not outcome.clips:
                continue
            times_s = scan_safely(child, source, config, frame_times=True).frame_times_s or []
            for clip in outcome.clips:
                check_clip(clip, times_s, outcome)
            if not outcome.problems:
                compare(outcome)
                compare_with_ffmpeg(outcome, folder)
    return dict(outcomes)


def listed(inputs: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The inputs that can be taken together, and the sentence for each that is refused as a whole."""
    refused = {}
    for each in inputs:
        try:
            list_sources([each])
        except UserError as error:
            refused[each] = str(error)
    return [each for each in inputs if each not in refused], refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    parser.add_argument("--min-s", type=float, default=0.5, help="minimum clip length")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    taken, refused = listed(arguments.inputs)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(taken, Path(folder), arguments.min_s)
    rows = [(Path(uri).name, *outcome.cells()) for uri, outcome in outcomes.items()]
    rows += [(name, f"refused: {sentence}", "", "", "-") for name, sentence in refused.items()]
    columns = ("input", "scan", "clips", "levels from FFmpeg", "problems")
    problems = sum(bool(outcome.problems) for outcome in outcomes.values())
    if arguments.markdown:
        print(*(f"| {' | '.join(map(str, row))} |" for row in rows), sep="\n")
    else:
        report("Inputs from the command line to the trainer", columns, rows, {"inputs": len(rows), "bad": problems})


if __name__ == "__main__":
    main()
