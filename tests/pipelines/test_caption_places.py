"""No caption lands on another clip, whatever the endpoint does: random order, late, twice, cut off, refused."""

import base64
import random
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill import caption, curate
from curation.dataset.tables import Dataset
from pipelines.config import CurateConfig
from tests.caption_server import CaptionServer, Reply, refuses, says
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

VIDEOS, SHOTS, BITS = 10, 2, 6
BAR_PX = 32
TIMEOUT_S = 1.5


def coded(frames: list[np.ndarray], number: int) -> list[np.ndarray]:
    """Frames with a number as dark and bright bars in their upper half, bright below if it is odd, else dark."""
    for frame in frames:
        upper, lower = frame[: frame.shape[0] // 2], frame[frame.shape[0] // 2 :]
        lower[:] = lower // 3 + (160 if number % 2 else 10)
        for bit in range(BITS):
            upper[:, bit * BAR_PX : (bit + 1) * BAR_PX] = 230 if number >> bit & 1 else 25
    return frames


def number_in(image: np.ndarray) -> int:
    """The number in a frame of any size."""
    height, width = image.shape[:2]
    upper, bar = image[: height // 4], width // BITS
    return sum((upper[:, bit * bar + bar // 4 : (bit + 1) * bar - bar // 4].mean() > 128) << bit for bit in range(BITS))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Dataset:
    folder = tmp_path_factory.mktemp("places")
    (folder / "in").mkdir()
    for video in range(VIDEOS):
        shots = [panning(height=108, pixels_per_frame=2, frames=60, seed=SHOTS * video + shot) for shot in range(SHOTS)]
        frames = [f for shot, clip in enumerate(shots) for f in coded([*clip], SHOTS * video + shot + 1)]
        write_video(folder / "in" / f"{video:02d}.mp4", frames, options={"crf": "20", "preset": "ultrafast"})
    curate([str(folder / "in")], str(folder / "out"), config=WITHOUT_CLIP, quiet=True)
    return Dataset(str(folder / "out"))


def numbers(dataset: Dataset) -> dict[str, int]:
    """clip_id -> the number that was written into its shot."""
    with dataset.connect() as connection:
        clips = connection.execute("SELECT clip_id, uri, start_s FROM clips").fetchall()
    return {clip_id: SHOTS * int(Path(uri).stem) + int(start_s >= 2.4) + 1 for clip_id, uri, start_s in clips}


class Moody:
    """Answers with the number that it sees in all pictures of a request, in one of many ways."""

    def __init__(self, seed: int) -> None:
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self.ways: dict[str, int] = {}
        self._last = "number 0"

    def __call__(self, request: dict[str, Any]) -> Reply:
        urls = [p["image_url"]["url"] for p in request["messages"][0]["content"] if p["type"] == "image_url"]
        jpegs = [base64.b64decode(url.partition(",")[2]) for url in urls]
        seen = {number_in(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)) for jpeg in jpegs}
        assert len(seen) == 1, "frames of several clips in one request"
        text = f"number {seen.pop()}"
        with self._lock:
            way = self._rng.choice(("plain", "plain", "slow", "late", "twice", "twice", "other", "cut", "half", "busy"))
            self.ways[way] = self.ways.get(way, 0) + 1
            before, self._last = self._last, text
            delay_s = self._rng.uniform(0, 0.4)
        replies = {
            "slow": says(text, delay_s=delay_s + 0.5),
            "late": says(text, delay_s=TIMEOUT_S + delay_s),
            "twice": says(text, delay_s=delay_s, followed_by=says(text)),
            "other": says(text, delay_s=delay_s, followed_by=says(before)),
            "cut": says(text, delay_s=delay_s, sent_share=0.6),
            "half": Reply(body=says(text).body[:-40], delay_s=delay_s),
            "busy": refuses(503, delay_s=delay_s),
        }
        return replies.get(way, says(text, delay_s=delay_s))


@pytest.mark.parametrize("seed", [1, 2])
def test_no_caption_lands_on_another_clip(dataset: Dataset, seed: int):
    expected, moody = numbers(dataset), Moody(seed)
    assert sorted(expected.values()) == list(range(1, VIDEOS * SHOTS + 1))
    failed = {"other"}
    with CaptionServer(moody) as server:
        video = {"base_url": server.url, "model": f"m{seed}", "timeout_s": TIMEOUT_S, "retries": 1, "max_in_flight": 6,
                 "frames": 8, "long_side_px": 192, "give_up_after": 50}  # fmt: skip
        config = CurateConfig.from_values({"captioners": {"video": video}}, origin="test")
        for _ in range(12):
            result = caption(dataset.url, "video", config=config, retry_failed=True, quiet=True)
            assert result.version == seed
            with dataset.connect() as connection:
                query = f'SELECT clip_id, video_caption, video_error FROM "captions_video@{seed}"'
                found = {clip_id: (text, error) for clip_id, text, error in connection.execute(query).fetchall()}
            assert found.keys() == expected.keys()
            failed = {clip_id for clip_id, (text, error) in found.items() if error}
            wrong = {i: text for i, (text, _) in found.items() if i not in failed and text != f"number {expected[i]}"}
            assert not wrong
            if not failed:
                break
        assert server.most_at_once == 6, "clips of several parts are asked for together"
    assert not failed
    assert moody.ways.keys() >= {"late", "twice", "other", "cut", "half", "busy", "slow"}
