"""Every frame of every kind of file arrives in training: scanned, selected, sharded either way, read."""

import io
import random
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.scan.validate import check_scan
from curation.selection.rules import Rules
from curation.selection.saved import selected_clips
from curation.selection.select import select_clips
from curation.shards.write import plan_shards, write_shard
from curation.shots.spans import SpanConfig
from tests.timed_inputs import INPUTS, TimedInput, number_in
from training.frames import sample_video
from training.shard_index import index_shards


class Nth(random.Random):
    """Draws this start of a sample."""

    def __init__(self, start: int) -> None:
        self.start = start
        super().__init__(0)

    def randrange(self, *_: int) -> int:  # type: ignore[override]
        return self.start


def training_numbers(content: bytes, frames: list[int]) -> list[int]:
    """What some frames of a clip show in the trainer's reader."""
    numbers = []
    for start in frames:
        sampled = sample_video(
            content,
            lengths=(1,),
            rates=(1e6,),
            size_for=lambda height, width: (height, width),
            crop="center",
            rng=Nth(start),
        )
        numbers.append(number_in(sampled.frames_TCHW[0].transpose(1, 2, 0)))
    return numbers


def decoded(content: bytes) -> tuple[list[float], list[int]]:
    """Time of each frame of a clip, and what it shows."""
    with av.open(io.BytesIO(content)) as mp4:
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="bgr24")) for frame in mp4.decode(video=0)
        ]
    return [time_s for time_s, _ in frames], [number_in(picture) for _, picture in frames]


def shard(folder: Path, extraction: str, given: TimedInput) -> tuple[dict, list[tuple[dict, bytes]]]:
    """The source's row, and each clip's row with its file as it lies in the shard."""
    (source,) = list_sources([str(given.path)])
    slow = len(given.times_s) > 1 and given.times_s[1] >= 1
    spans = SpanConfig(min_s=2.0 if slow else 0.4, max_s=5.0 if slow else 0.9, extraction=extraction)  # type: ignore[arg-type]
    found = scan(source, ScanConfig(spans=spans))
    check_scan(found, source)
    dataset = Dataset(str(folder / "dataset")).create_or_open({})
    dataset.write_part("clips", "p", pa.Table.from_pylist(found.clips, schema=CLIPS))
    dataset.write_part("sources", "p", pa.Table.from_pylist([found.source], schema=SOURCES))
    select_clips(dataset, Rules.from_values({"name": "all"}, origin="test"))
    rows = [row for batch in selected_clips(dataset, "all") for row in batch.to_pylist()]
    assert len(rows) == len(found.clips)
    files = {}
    for plan in plan_shards(rows, kind="clips"):
        written = write_shard(plan, str(folder / "shards"), selection="all")
        assert not written.failed
        index = index_shards([str(folder / "shards" / plan.name)])
        (read,) = index.shards
        files |= {read.keys[row]: read.read(row)["mp4"] for row in range(len(read))}
    return found.source, [(row, files[row["clip_id"]]) for row in rows]


@pytest.mark.parametrize("extraction", ["auto", "transcode"])
@pytest.mark.parametrize("name", INPUTS)
def test_every_frame_arrives_at_its_time(tmp_path: Path, name: str, extraction: str):
    given = INPUTS[name](tmp_path)
    source, clips = shard(tmp_path, extraction, given)
    assert (source["frames"], source["timestamps"]) == (len(given.numbers), given.timestamps)
    assert {key: source[key] for key in given.other} == pytest.approx(given.other)
    losses_s = sum(value for key, value in source.items() if key.startswith("lost_"))
    assert source["clip_s"] + losses_s == pytest.approx(source["duration_s"])
    assert {cut["start_frame"] for cut in source["transitions"]} >= set(given.joints)
    for row, content in clips:
        first, last = row["start_frame"], row["start_frame"] + row["frames"]
        assert not any(first < joint < last for joint in given.joints)
        wanted_s = np.array(given.times_s[first:last]) - given.times_s[first]
        times_s, numbers = decoded(content)
        assert times_s == pytest.approx(list(wanted_s), abs=given.tolerance_s)
        ends_s = given.times_s[last] if last < len(given.times_s) else given.times_s[-1] + 1 / row["fps"]
        assert row["duration_s"] == pytest.approx(ends_s - given.times_s[first], abs=0.01 + given.tolerance_s)
        assert numbers == list(given.numbers[first:last])
        some = [*range(0, row["frames"], 5), row["frames"] - 1]
        assert training_numbers(content, some) == [numbers[frame] for frame in some]
    kept = sum(row["frames"] for row, _ in clips)
    assert kept >= 0.75 * len(given.numbers) or len(given.numbers) == 1
