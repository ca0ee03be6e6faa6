"""`clipmill caption` with an endpoint whose latency varies: how busy it keeps what the endpoint serves in parallel.

    python -m benchmarks.caption [--in-flight 8 64] [--latency-s 2] [--spread 0.3] [--rounds 12]

The endpoint answers after a lognormal time with this median and standard deviation of its logarithm. Busy is the time
that it spends on requests over `max_in_flight` times the time from its first request to its last answer: 1 is as fast
as the endpoint allows. In groups: the same latencies with a wait for the slowest of each group, as with a loop that
sends a batch, waits for all of it and sends the next. Clips have 12 frames, read from rendered videos.
"""

import argparse
import heapq
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from benchmarks.common import report
from curation.captioners.endpoint import VideoCaptioner, VideoConfig
from pipelines.caption import caption
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.curate import curate
from tests.caption_server import CaptionServer, Reply, says
from tests.media import panning, write_video

_SHOTS, _SHOT_FRAMES, _FPS, _HEIGHT = 16, 26, 12, 180


class _Endpoint:
    """Answers late, and remembers when."""

    def __init__(self, latencies_s: Sequence[float]) -> None:
        self._latencies_s, self._lock = iter(latencies_s), threading.Lock()
        self._first_s, self._last_s, self.busy_s = float("inf"), 0.0, 0.0

    def __call__(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            latency_s, now_s = next(self._latencies_s), time.monotonic()
            self._first_s, self._last_s = min(self._first_s, now_s), max(self._last_s, now_s + latency_s)
            self.busy_s += latency_s
        return says("A grey texture.", delay_s=latency_s)

    @property
    def wall_s(self) -> float:
        return self._last_s - self._first_s


def write_videos(folder: Path, clips: int) -> Path:
    """Videos of shots of two seconds each, another texture in each."""
    folder.mkdir()
    for video in range(-(-clips // _SHOTS)):
        shots = (
            panning(height=_HEIGHT, pixels_per_frame=2, frames=_SHOT_FRAMES, seed=video * _SHOTS + shot)
            for shot in range(_SHOTS)
        )
        frames = (frame for shot in shots for frame in shot)
        write_video(folder / f"{video:04}.mp4", frames, fps=_FPS, options={"preset": "ultrafast"})
    return folder


def in_groups(latencies_s: Sequence[float], in_flight: int, clips: int) -> float:
    """Busy share of a client that waits for each group of clips before it sends the next."""
    wall_s = 0.0
    for start in range(0, len(latencies_s), clips):
        free_s = [0.0] * in_flight
        for latency_s in latencies_s[start : start + clips]:
            heapq.heapreplace(free_s, free_s[0] + latency_s)
        wall_s += max(free_s)
    return sum(latencies_s) / in_flight / wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, nargs="+", default=(8, 64))
    parser.add_argument("--latency-s", type=float, default=2.0)
    parser.add_argument("--spread", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=12, help="requests per request in flight")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows, figures = [], []
    with tempfile.TemporaryDirectory(prefix="clipmill-caption-") as work, connected():
        for in_flight in arguments.in_flight:
            folder = Path(work, str(in_flight))
            videos = write_videos(Path(work, f"{in_flight}-videos"), arguments.rounds * in_flight)
            without = CurateConfig(without=("similarity", "aesthetic", "text_area"))
            clips = curate([str(videos)], str(folder), config=without, quiet=True).status.clips
            rng = random.Random(1)
            latencies_s = [arguments.latency_s * rng.lognormvariate(0, arguments.spread) for _ in range(clips)]
            endpoint = _Endpoint(latencies_s)
            with CaptionServer(endpoint) as server:
                settings = {"base_url": server.url, "model": "m", "max_in_flight": in_flight}
                config = CurateConfig.from_values({"captioners": {"video": settings}}, origin="benchmark")
                captioned = caption(str(folder), "video", config=config, quiet=True)
            assert captioned.failed_now == 0
            group = VideoCaptioner(VideoConfig(max_in_flight=in_flight)).clips_at_least
            busy = endpoint.busy_s / in_flight / endpoint.wall_s
            rows.append((in_flight, clips, busy, in_groups(latencies_s, in_flight, group)))
            figures.append({"in_flight": in_flight, "clips": clips, "busy": busy, "in_groups": rows[-1][-1]})
    report(
        f"captions from an endpoint, {arguments.latency_s} s per answer",
        ("in flight", "clips", "busy", "in groups"),
        ((f"{n}", f"{clips:,}", f"{busy:.2f}", f"{groups:.2f}") for n, clips, busy, groups in rows),
        {"caption": figures},
    )


if __name__ == "__main__":
    main()
