"""Captions from the container's tags."""

import pytest

from curation.inputs.sources import Source
from tests.curation.inputs.captions import CAKE, texts

DESCRIPTIONS = [
    "Recorded in Tokyo on a rainy night",
    "Made in the mountains of Peru",
    "Captured in slow motion: a cat jumps",
    "Captured by GoPro surfers in Bali",
    "Recorded with OBS by a nervous streamer",
    "Handbrake turn on wet asphalt",
    "FFmpeg explained by a patient teacher",
    "Created by hand from clay",
    "Recorded in Vegas",
    "Produced by Anna in Apple Valley",
    "Made on a loom",
]


LEFT_BY_PROGRAMS = [
    "Created with HandBrake 1.5",
    "HandBrake 1.5.1 2022010100",
    "Made with Adobe Premiere Pro CC 2019 (Windows)",
    "Made with iMovie",
    "Recorded with OBS Studio 29",
    "Created by Windows Movie Maker",
    "Edited in DaVinci Resolve 18.6",
    "Captured on iPhone 12",
    "Rendered using Blender",
    "Encoded by x264 core 164",
    "Lavc58.54 libx264",
]


# The container


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"title": "A cat walks"}, "A cat walks"),
        ({"title": "Sunset"}, "Sunset"),
        ({"TITLE": "A cat", "DESCRIPTION": "A black cat walks."}, "A black cat walks."),
        ({"com.apple.quicktime.description": "A cat"}, "A cat"),
        ({"description": "https://example.org/v?1", "title": "A cat walks"}, "A cat walks"),
        ({"title": "猫が歩く"}, "猫が歩く"),
        ({"title": f"Made with love: {CAKE}"}, f"Made with love: {CAKE}"),
        ({"comment": "A cat walks"}, "A cat walks"),
        ({"artist": "Somebody", "encoder": "Lavf61", "handler_name": "Video Handler"}, None),
        ({"title": "IMG_0042.MOV"}, None),
        ({"title": "dQw4w9WgXcQ"}, None),
        ({"title": "2019-07-21 10:00"}, None),
        ({"title": "A.B_Clip"}, None),
        ({"title": "a.b clip.mp4"}, None),
        ({"title": "Untitled"}, None),
        *(({"title": text}, text) for text in DESCRIPTIONS),
        *(({"comment": text}, None) for text in LEFT_BY_PROGRAMS),
        ({"comment": "Lavf58.29.100"}, None),
        ({"comment": "vid:v0f044gc0000cbk7"}, None),
        ({"comment": "Caf\ufffd au lait"}, None),
        ({"comment": "\x00"}, None),
    ],
)
def test_the_first_tag_that_says_something_is_a_caption(source: Source, tags: dict[str, str], text: str | None):
    assert texts(source, **tags) == ([("metadata", text)] if text else [])
