"""The demo's second half, with a few steps of each stage: from shards to videos that can be looked at."""

import json

import av
import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from demo.parts import FRAMES, HEIGHT_PX, RATE_FPS, WIDTH_PX
from demo.train import RECIPE, STAGES, held_back_frames
from pipelines.cli import app
from svd.checkpoint import read_config
from tests.conftest import FinishedDemo

pytestmark = pytest.mark.slow


def test_the_demo_ends_with_videos_from_first_frames_that_were_kept_back(
    finished_demo: FinishedDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_demo.folder
    assert "from a held-out first frame" in finished_demo.printed
    for number, first in zip((1, 2), held_back_frames(), strict=False):
        with av.open(str(folder / f"sample-{number}.mp4")) as video:
            frames = [frame.to_ndarray(format="bgr24") for frame in video.decode(video=0)]
            assert float(video.streams.video[0].average_rate) == RATE_FPS
        assert np.stack(frames).shape == (FRAMES, HEIGHT_PX, WIDTH_PX, 3)
        assert np.array_equal(cv2.imread(str(folder / f"sample-{number}-first.png")), first)
        assert cv2.imread(str(folder / f"sample-{number}.png")).std() > 5

    recipe = yaml.safe_load((folder / RECIPE).read_text())
    assert [entry["stage"] for entry in recipe["stages"]] == [part.stage for part in STAGES]
    runs = [folder / "runs" / f"{i}-{part.stage}" for i, part in enumerate(STAGES, 1)]
    assert [read_config(run / "model").task for run in runs] == ["image", "text-to-video", "image-to-video"]
    assert all(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"] > 0 for run in runs)

    monkeypatch.chdir(folder)
    again = CliRunner().invoke(app, ["train", "--recipe", RECIPE, "--out", "runs"], catch_exceptions=False)
    assert again.exit_code == 0
    assert "trained: runs/3-tiny-image-to-video/model" in again.output
