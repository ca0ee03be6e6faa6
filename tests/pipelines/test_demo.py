"""`make demo` as a newcomer runs it, and runs it again; and what its rules remove, against what is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipmill import select
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.saved import Selection
from demo.__main__ import run
from demo.collection import Flaws
from footage.truth import Truth
from tests.conftest import FinishedDemo
from tests.pipelines.corpora import many_small

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    flaws: Flaws
    selection: Selection
    clips: list[dict[str, Any]]
    """Each with its file, and the number and the truth of its shot."""

    def removed(self, rule: str, clip: dict[str, Any]) -> bool:
        bounds = self.selection.resolved["rules"][rule]
        return not bounds.get("min", float("-inf")) <= clip[rule] <= bounds.get("max", float("inf"))


@pytest.fixture(scope="module")
def demo(finished_demo: FinishedDemo) -> Demo:
    folder = finished_demo.folder
    dataset = str(folder / "rendered")
    with Dataset(dataset).connect() as connection:
        query = "SELECT * EXCLUDE (embedding) FROM joined ORDER BY clip_id"
        clips = connection.execute(query).to_arrow_table().to_pylist()
    for clip in clips:
        path = Path(clip["uri"])
        truth = Truth.load(path.with_suffix(".truth.json"))
        middle = clip["start_frame"] + clip["frames"] // 2
        number = next(i for i, s in enumerate(truth.shots) if s.start_frame <= middle < s.end_frame)
        clip.update(file=path.name, number=number, shot=truth.shots[number])
    return Demo(Flaws.load(folder / "footage"), select(dataset, dry_run=True), clips)


def test_every_clip_has_every_score(demo: Demo):
    assert len(demo.clips) > 40
    assert not [clip for clip in demo.clips for name in clip if name.endswith("_error") and clip[name]]
    assert {clip["captions"][0]["source"] for clip in demo.clips} == {"sidecar"}


def test_captions_are_those_of_the_shot_but_for_the_wrong_ones(demo: Demo):
    wrong = 0
    for clip in demo.clips:
        meant_wrong = clip["number"] in demo.flaws.wrong_captions.get(
            demo.flaws.copies.get(clip["file"], clip["file"]), []
        )
        (caption,) = clip["captions"]
        assert (caption["text"] != clip["shot"].caption) == meant_wrong
        clip["wrong"] = meant_wrong
        wrong += meant_wrong
    assert wrong >= 5


def test_similarity_removes_wrong_captions(demo: Demo):
    wrong = [clip for clip in demo.clips if clip["captions"][0]["text"] != clip["shot"].caption]
    assert share(demo.removed("similarity", clip) for clip in wrong) >= 0.9


def test_aesthetics_remove_degraded_pictures(demo: Demo):
    bad = [clip for clip in demo.clips if clip["file"] in demo.flaws.degraded]
    assert len(bad) >= 5
    assert share(demo.removed("aesthetic", clip) for clip in bad) >= 0.9


def test_motion_removes_still_clips(demo: Demo):
    still = [clip for clip in demo.clips if clip["shot"].still]
    assert len(still) >= 3
    assert all(demo.removed("motion", clip) for clip in still)


def test_text_area_removes_clips_full_of_text(demo: Demo):
    full = [clip for clip in demo.clips if clip["shot"].text_area > 0.08]
    free = [clip for clip in demo.clips if not clip["shot"].text and clip["file"] not in demo.flaws.degraded]
    assert len(full) >= 3
    assert all(demo.removed("text_area", clip) for clip in full)
    assert share(demo.removed("text_area", clip) for clip in free) <= 0.05


def test_duplicates_are_the_reuploads_and_nothing_else(demo: Demo):
    by_id = {clip["clip_id"]: clip for clip in demo.clips}
    pairs = {frozenset((by_id[c["duplicate_of"]]["file"], c["file"])) for c in demo.clips if c["duplicate_of"]}
    assert pairs == {frozenset(pair) for pair in demo.flaws.copies.items()}
    kept_for = {clip["duplicate_of"] for clip in demo.clips}
    copies = [clip for clip in demo.clips if clip["file"] in demo.flaws.copies]
    assert share(bool(c["duplicate_rank"]) or c["clip_id"] in kept_for for c in copies) >= 0.95


def test_what_is_left_is_good(demo: Demo):
    assert demo.selection.clips >= 3
    names = {"motion", "aesthetic", "similarity", "text_area", "duration_s"}
    left = [clip for clip in demo.clips if not any(demo.removed(name, clip) for name in names)]
    groups = {clip["duplicate_of"] or clip["clip_id"] for clip in left}
    assert len(groups) == demo.selection.clips  # one of each group of copies
    assert demo.selection.funnel[-1].removed == len(left) - len(groups)
    for clip in left:
        assert not clip["shot"].still
        assert clip["captions"][0]["text"] == clip["shot"].caption
        assert clip["file"] not in demo.flaws.degraded


def test_the_demo_runs_again_and_says_what_happened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None
):
    for _ in range(2):
        run(tmp_path, [], 2)
        printed = capsys.readouterr()
        for part in ("summary", "not_video", "decode_error", "flaws put in"):
            assert part in printed.out
        assert "demo model" in printed.err
    with Dataset(str(tmp_path / "rendered")).connect() as connection:
        assert connection.execute("SELECT count(*) FROM sources").fetchone() == (9,)


def test_the_demo_deletes_nothing_in_a_folder_that_it_did_not_make(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "weights.bin").write_bytes(b"three weeks of training")
    with pytest.raises(UserError, match="was not made by the demo"):
        run(tmp_path, [], 2)
    assert (tmp_path / "runs" / "weights.bin").read_bytes() == b"three weeks of training"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_demo_takes_your_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None):
    for name in ("one", "other"):
        run(tmp_path, [str(many_small(tmp_path / name, 2))], 0)
    assert "1 samples" in capsys.readouterr().out


def share(outcomes: Any) -> float:
    """Of the outcomes, how many are true."""
    listed = list(outcomes)
    return sum(listed) / len(listed)
