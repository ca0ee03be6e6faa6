"""What the video captioner sends: frames with their times, thumbnails or the file; and what comes of tokens."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from clipmill.pipeline import Frames
from curation.captioners.base import GeneratedCaption
from curation.captioners.endpoint import VideoCaptioner, VideoConfig
from curation.scores.base import ClipView
from curation.scores.rows import score_rows
from tests.caption_server import CaptionServer, Reply, refuses, says
from tests.curation.captioners.endpoints import clips, one, video, view


def content(server: CaptionServer) -> list[dict[str, Any]]:
    return list(server.requests[0]["messages"][0]["content"])


def test_frames_come_each_after_its_time_and_none_twice():
    images = tuple(np.full((36, 64, 3), level, np.uint8) for level in (10, 10, 90, 200))
    with CaptionServer([says("A cat walks.")]) as server:
        captioner = video(server.url, frames=4, long_side_px=64)
        assert captioner.needs == (Frames(count=4, long_side_px=64),)
        captioner.caption([ClipView(frames=images, frame_times_s=(0.25, 0.25, 1.0, 1.755))])
    parts = [part.get("text", "picture") for part in content(server)]
    assert parts == ["0.25 s", "picture", "1.00 s", "picture", "1.75 s", "picture", VideoConfig().prompt]


def test_a_file_is_sent_whole_unless_it_is_too_large():
    with CaptionServer([says("A cat walks.")]) as server:
        captioner = video(server.url, send="file", max_file_bytes=5)
        assert captioner.needs == ("file",)
        fine, large = captioner.caption([ClipView(file=b"12345"), ClipView(file=b"123456")])
    assert (fine.text, large.error) == ("A cat walks.", "the clip has 6 bytes, and max_file_bytes is 5")
    url = content(server)[0]["video_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:video/mp4;base64,")) == b"12345"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 2.5}, {"prompt_tokens": True}, [1]]
)
def test_tokens_that_an_endpoint_does_not_count_are_null(usage: Any):
    with CaptionServer([says("A cat walks.", usage=usage)]) as server:
        assert one(server) == GeneratedCaption(text="A cat walks.")


def test_tokens_are_priced_also_of_a_refusal():
    usage = {"prompt_tokens": 3000, "completion_tokens": 20, "total_tokens": 3020}
    answers = [says("A cat walks.", usage=usage), says(None, refusal="no", usage=usage), refuses(400)]
    with CaptionServer(answers) as server:
        prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 50.0}
        rows = score_rows(video(server.url, max_in_flight=1, **prices), clips(3))
        free = score_rows(video(server.url), clips(1))
    names = ("video_caption", "video_error_kind", "video_prompt_tokens", "video_completion_tokens", "video_price")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("A cat walks.", None, 3000, 20, pytest.approx(0.004)),
        (None, "failed", 3000, 20, pytest.approx(0.004)),
        (None, "failed", None, None, None),
    ]
    assert free[0]["video_price"] is None


def test_a_response_that_is_sent_twice_is_no_answer_to_the_next_request():
    """The second one, which is in the same packet, would be read as the answer to whatever is asked next."""
    answers = [says(str(i), followed_by=says("of another clip")) for i in range(4)]
    with CaptionServer(answers) as server:
        captions = video(server.url, max_in_flight=1).caption(clips(4))
    assert [caption.text for caption in captions] == ["0", "1", "2", "3"]


def test_concurrent_calls_share_the_requests_in_flight():
    """Two calls of two clips each: three requests at once, never four."""
    together, first = threading.Barrier(3), iter(range(3))

    def answer(_: dict[str, Any]) -> Reply:
        if next(first, None) is not None:
            together.wait(60)
        return says("A cat.", delay_s=0.2)

    with CaptionServer(answer) as server:
        captioner = video(server.url, max_in_flight=3)
        with ThreadPoolExecutor(2) as calls:
            texts = [[caption.text for caption in answer] for answer in calls.map(captioner.caption, [clips(2)] * 2)]
        assert texts == [["A cat."] * 2] * 2
        assert server.most_at_once == 3


def test_as_many_clips_come_at_a_time_as_requests_are_in_flight():
    for in_flight, clips_at_least in ((1, 2), (8, 16), (64, 64), (200, 200)):
        assert VideoCaptioner(VideoConfig(max_in_flight=in_flight)).clips_at_least == clips_at_least


def test_a_clip_without_frames_is_its_own_failure():
    with CaptionServer([says("A cat walks.")]) as server:
        captions = video(server.url).caption([view(), view(1)])
    assert [(caption.text, caption.error) for caption in captions] == [
        (None, "the clip has no frames"),
        ("A cat walks.", None),
    ]
