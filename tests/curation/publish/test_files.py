"""Files of clips: whole or absent, recorded last, transcoded where a trainer would need metadata."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipmill.errors import SourceError, UserError
from clipmill.shard_folder import FailedClip
from curation.dataset.schemas import CLIPS, SOURCES
from curation.publish.files import check_files, write_files
from curation.publish.plan import PublishConfig, PublishPlan, plan_publication
from curation.shards.extract import ExtractedClip, ExtractionConfig
from tests.curation.shards.rows import SHAPE, clip_row

CONFIG = PublishConfig(lengths=(9, 17), resolution_px=64)
CAPTIONS = [
    {"source": "sidecar", "text": "a sea", "error_kind": None, "error": None},
    {"source": "coca", "text": "water", "error_kind": None, "error": None},
]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    known = {"caption": pa.string(), "captions": SOURCES.field("captions").type}
    fields = [
        pa.field(name, known.get(name) or (CLIPS if name in CLIPS.names else SOURCES).field(name).type)
        for name in rows[0]
    ]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def planned(rows: list[dict[str, Any]], **changes: Any) -> PublishPlan:
    rows = [{"caption": "water", **row, "captions": row["captions"] or CAPTIONS} for row in rows]
    return plan_publication(table(rows), [], to="musubi", config=CONFIG.replace(**changes))


def extract(function: Any, uri: str, clips: list[dict[str, Any]], kind: str, config: Any, fps: Any = None) -> Any:
    """Clips whose content says how they were extracted; those of the source s1 have a bar, s2 cannot be read."""
    answers: list[ExtractedClip | SourceError] = []
    for clip in clips:
        bar = [0, 8, 0, 8] if clip["source_id"] == "s1" and clip["extraction"] == "remux" else [0, 0, 0, 0]
        content = f"{clip['extraction']} {fps}".encode()
        extracted = ExtractedClip(content=content, suffix="mp4", shape=SHAPE | {"crop": bar})
        unreadable = SourceError("unreadable", "cannot open /home/alice/s2.mp4")
        answers.append(unreadable if clip["source_id"] == "s2" else extracted)
    return answers


def write(plan: PublishPlan, folder: Path, run: Any = extract) -> Any:
    (shard,) = plan.plans
    fps = CONFIG.rate("musubi")
    data, records = str(folder / "data"), str(folder / ".clipmill")
    return write_files(shard, data, records, fps=fps, config=ExtractionConfig(), run=run)


def sizes(folder: Path) -> dict[str, int]:
    data = folder / "data"
    return {str(path.relative_to(data)): path.stat().st_size for path in data.rglob("*") if path.is_file()}


def test_what_a_trainer_could_not_read_is_transcoded(tmp_path: Path) -> None:
    rows = [clip_row("s0", 0), clip_row("s1", 1, fps=16.0), clip_row("s3", 2, fps=16.0), clip_row("s2", 3)]
    plan = planned(rows)
    record = write(plan, tmp_path)
    texts = {path.stem.partition("-")[0]: path.read_text() for path in tmp_path.glob("data/*/*.mp4")}
    assert texts == {"s0": "transcode 16", "s1": "transcode 16", "s3": "remux 16"}
    assert record.failed == (FailedClip(clip_id="s2-72-96", error_kind="unreadable", error="cannot open s2.mp4"),)
    assert {path.read_text() for path in tmp_path.glob("data/*/*.txt")} == {"water"}
    assert check_files(plan.plans[0], str(tmp_path / ".clipmill"), sizes(tmp_path)) is None, (
        "a failed clip is tried again"
    )


def test_a_clip_that_is_too_fast_for_its_bucket_is_resampled(tmp_path: Path) -> None:
    """17 frames at 16.02 frames/s last for 16 frames at 16 frames/s."""
    faster = {"fps": 16.02, "frames": 17, "time_base_num": 50, "time_base_den": 801, "start_pts": 0, "end_pts": 17}
    plan = planned([clip_row("s3", 0, **faster), clip_row("s4", 1, **faster | {"frames": 18, "end_pts": 18})])
    assert plan.clips.select(["file_frames", "folder"]).to_pylist() == [
        {"file_frames": frames, "folder": "17"} for frames in plan.clips["frames"].to_pylist()
    ]
    write(plan, tmp_path)
    texts = {path.stem.partition("-")[0]: path.read_text() for path in tmp_path.glob("data/*/*.mp4")}
    assert texts == {"s3": "transcode 16", "s4": "remux 16"}


def test_an_interrupted_run_leaves_whole_files_and_no_record(tmp_path: Path) -> None:
    plan = planned([clip_row(f"s{i}0", i) for i in range(6)])
    calls = iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return extract(*args)

    with pytest.raises(KeyboardInterrupt):
        write(plan, tmp_path, interrupted)
    found = sizes(tmp_path)
    assert len(found) == 6
    assert set(found.values()) == {len("transcode 16"), len("water")}
    records = str(tmp_path / ".clipmill")
    assert check_files(plan.plans[0], records, found) is None
    record = write(plan, tmp_path)
    assert check_files(plan.plans[0], records, sizes(tmp_path)) == record
    assert record.samples == 6


@pytest.mark.parametrize("change", ["shorter", "gone", "other rows"])
def test_a_changed_folder_is_written_again(tmp_path: Path, change: str) -> None:
    plan = planned([clip_row(f"s{i}0", i) for i in range(3)])
    write(plan, tmp_path)
    found = sizes(tmp_path)
    first = next(name for name in found if name.endswith(".mp4"))
    if change == "shorter":
        found[first] -= 1
    elif change == "gone":
        found.pop(first)
    else:
        plan = planned([clip_row(f"s{i}0", i, motion=9.0) for i in range(3)])
    assert check_files(plan.plans[0], str(tmp_path / ".clipmill"), found) is None


def test_captions_of_the_chosen_sources_in_their_order(tmp_path: Path) -> None:
    rows = [clip_row("s0", 0)]
    for sources, text in (((), "water"), (("sidecar",), "a sea"), (("coca", "sidecar"), "water")):
        plan = planned(rows, captions=sources)
        assert plan.clips["caption"].to_pylist() == [text]
    with pytest.raises(UserError, match="'chat'"):
        planned(rows, captions=("chat",))


def test_clips_too_short_for_every_bucket_are_left_out() -> None:
    short = clip_row("s1", 0, end_pts=6, frames=6, duration_s=0.25)
    plan = planned([clip_row("s0", 1), short])
    assert [(clip.clip_id, clip.error_kind) for clip in plan.left_out] == [("s1-0-24", "too_short")]
    assert plan.clips["file_frames"].to_pylist() == [16]
    assert plan.clips["folder"].to_pylist() == ["9"]
    assert CONFIG.rate("musubi") == Fraction(16)
    with pytest.raises(UserError, match=r"every clip is too short: 4 frames"):
        planned([short])
