"""A reader of diffusion-pipe's datasets, written from its documentation (examples/dataset.toml, README.md) and checked
against its dataset code of 2026. It is no package, and its code needs DeepSpeed, ComfyUI and a GPU."""

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainers.clips import TrainedClip, decoded, fitted

_KEYS = {
    *("resolutions", "enable_ar_bucket", "min_ar", "max_ar", "num_ar_buckets", "ar_buckets", "frame_buckets"),
    *("size_buckets", "cache_shuffle_num", "cache_shuffle_delimiter", "skip_empty_caption", "caption_prefix"),
    *("num_repeats", "shuffle_tags", "shuffle_metadata", "online_captions", "directory"),
}
_DIRECTORY_KEYS = _KEYS - {"directory"} | {"path", "mask_path", "control_path", "default_mask_file"}
_NO_MEDIA = {".txt", ".npz", ".json", ".parquet", ".bak", ".db"}
_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


def clips(config: Path, *, framerate: int, working_directory: Path) -> list[TrainedClip]:
    """The samples for a model of this frame rate.

    Raises AssertionError for an unknown key, and where the trainer fails, skips a file or trains without its caption.
    """
    settings = tomllib.loads(config.read_text())
    assert settings.keys() <= _KEYS
    assert 0 < len(settings["resolutions"]) <= 3, "more need --i_know_what_i_am_doing"
    found = []
    for directory in settings["directory"]:
        assert directory.keys() <= _DIRECTORY_KEYS
        folder = working_directory / directory["path"]
        media = [path for path in sorted(folder.glob("*")) if path.is_file() and path.suffix not in _NO_MEDIA]
        assert media, f"{folder} had no images/videos"
        found += [_clip(path, directory["size_buckets"], framerate) for path in media]
    return found


def _clip(path: Path, size_buckets: list[list[int]], framerate: int) -> TrainedClip:
    assert path.suffix in _VIDEOS, path
    frames, rate = decoded(path)
    width, height, length = _bucket(size_buckets, frames[0].size, len(frames))
    # to the model's rate by the mean rate of the file: frames at even distances from the first to the last
    count = int(len(frames) * framerate / float(rate))
    kept = [frames[int(i)] for i in np.linspace(0, len(frames) - 1, count)]
    assert len(kept) >= length, f"{path}: {len(kept)} frames at {framerate} frames/s, fewer than the target ({length})"
    caption = path.with_suffix(".txt").read_text().strip()
    return TrainedClip(path=path, caption=caption, frames_THWC=fitted(kept[:length], (width, height)))


def _bucket(size_buckets: list[list[int]], size: tuple[int, int], frames: int) -> Any:
    """The first bucket that is not longer than the video, by distance of the aspect ratio, longest first."""
    longest_first = sorted(size_buckets, key=lambda bucket: -bucket[2])
    ratio = math.log(size[0] / size[1])
    nearest = sorted(longest_first, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - ratio))
    fitting = [bucket for bucket in nearest if 1 < bucket[2] <= frames]
    assert fitting, f"a video with {frames} frames is skipped because it is too short"
    return fitting[0]
