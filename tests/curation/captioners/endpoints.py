"""Captioners that ask a server of the test, and clips for them."""

from typing import Any

import numpy as np

from curation.captioners.base import GeneratedCaption
from curation.captioners.endpoint import MergedCaptioner, MergedConfig, VideoCaptioner, VideoConfig
from curation.inputs.caption import Caption
from curation.scores.base import ClipView
from tests.caption_server import CaptionServer

KEY = "sk-very-secret-0123456789"


def view(*levels: int, captions: tuple[Caption, ...] = ()) -> ClipView:
    """A clip of flat pictures of these gray levels."""
    return ClipView(thumbnails=tuple(np.full((36, 64, 3), level, np.uint8) for level in levels), captions=captions)


def clips(number: int) -> list[ClipView]:
    return [view(i, i + 10, i + 20) for i in range(number)]


def video(url: str | None, **settings: Any) -> VideoCaptioner:
    defaults = {"model": "m", "timeout_s": 5, "retries": 0, "frames": None}
    captioner = VideoCaptioner(VideoConfig(base_url=url, **(defaults | settings)))
    captioner.load("cpu")
    return captioner


def merged(url: str) -> MergedCaptioner:
    captioner = MergedCaptioner(MergedConfig(base_url=url, model="m", retries=0))
    captioner.load("cpu")
    return captioner


def one(server: CaptionServer, **settings: Any) -> GeneratedCaption:
    (caption,) = video(server.url, **settings).caption(clips(1))
    return caption
