"""A reader of musubi-tuner's video datasets, written from its documentation (docs/dataset_config.md) and checked
against its dataset code of 2026. It is on no package registry."""

import math
import tomllib
from pathlib import Path
from typing import Any

from tests.trainers.clips import TrainedClip, decoded, fitted

_GENERAL: dict[str, type] = {
    "resolution": list,
    "caption_extension": str,
    "batch_size": int,
    "num_repeats": int,
    "enable_bucket": bool,
    "bucket_no_upscale": bool,
}
_VIDEO: dict[str, type] = _GENERAL | {
    "video_directory": str,
    "cache_directory": str,
    "control_directory": str,
    "target_frames": list,
    "frame_extraction": str,
    "frame_stride": int,
    "frame_sample": int,
    "max_frames": int,
    "source_fps": float,
}
_MULTIPLE_PX = 16


def clips(config: Path, *, working_directory: Path) -> list[TrainedClip]:
    """The samples, for a model whose lengths are N * 4 + 1 and whose sides are multiples of 16 px.

    Raises AssertionError for a key or type that its schema refuses, and where the trainer fails, cuts a length to N * 4
    + 1 or skips a file.
    """
    settings = tomllib.loads(config.read_text())
    assert settings.keys() == {"general", "datasets"}
    _check(settings["general"], _GENERAL)
    found = []
    for dataset in settings["datasets"]:
        _check(dataset, _VIDEO)
        found += _clips(settings["general"] | dataset, working_directory)
    caches = [dataset["cache_directory"] for dataset in settings["datasets"]]
    assert len(set(caches)) == len(caches), "the cache directory must be different for each dataset"
    return found


def _check(settings: dict[str, Any], schema: dict[str, type]) -> None:
    for key, value in settings.items():
        assert type(value) is schema[key], f"{key} = {value!r}"


def _clips(dataset: dict[str, Any], working_directory: Path) -> list[TrainedClip]:
    assert dataset["frame_extraction"] == "head"
    assert "source_fps" not in dataset, "frames would be left out to reach the model's rate"
    found = []
    for path in sorted((working_directory / dataset["video_directory"]).glob("*.mp4")):
        frames, _ = decoded(path)
        caption = path.with_suffix(dataset["caption_extension"]).read_text(encoding="utf-8").strip()
        size = _bucket(dataset["resolution"], frames[0].size)
        for length in dataset["target_frames"]:
            assert length % 4 == 1, length
            assert len(frames) >= length, f"{path} has {len(frames)} frames, fewer than {length}: it is skipped"
            found.append(TrainedClip(path=path, caption=caption, frames_THWC=fitted(frames[:length], size)))
    return found


def _bucket(resolution: list[int], size: tuple[int, int]) -> tuple[int, int]:
    """The size of about the same area, from half to full width, with the nearest aspect ratio."""
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    sizes = []
    for width in range(side // 2 // _MULTIPLE_PX * _MULTIPLE_PX, side + _MULTIPLE_PX, _MULTIPLE_PX):
        height = area // width // _MULTIPLE_PX * _MULTIPLE_PX
        sizes += [(width, height), (height, width)]
    return min(sorted(set(sizes)), key=lambda each: abs(each[0] / each[1] - size[0] / size[1]))
