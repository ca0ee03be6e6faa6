"""Folder layouts that trainers read directly: the path of each clip, and the trainer's dataset configuration.

hf               data/*.tar: WebDataset shards
files            data/ID.mp4 and .txt; data/metadata.jsonl, as of a video folder of the Hub
finetrainers     data/ID.mp4 and .txt                 (a-r-r-o-w/finetrainers on GitHub, docs/dataset/README.md)
diffusion-pipe   data/WIDTHxHEIGHTxFRAMES/ID.mp4      (tdrussell/diffusion-pipe, examples/dataset.toml)
musubi           data/FRAMES/ID.mp4 and .txt          (kohya-ss/musubi-tuner, docs/dataset_config.md)

All paths are relative to the published folder, and trainers start there: they resolve paths against the working folder.
finetrainers 0.2 starts in `data`: it puts `data_root` before paths that begin with it, which only "." survives. A name
such as "data" would be looked up on the Hub first, too.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Target = Literal["hf", "finetrainers", "diffusion-pipe", "musubi", "files"]
DATA = "data"

_ASPECT_RATIOS = tuple(w / h for w, h in ((9, 21), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (21, 9)))
_MULTIPLE_PX = 32
"""Sides of buckets are multiples: what the autoencoders of LTX-Video (32), Wan and HunyuanVideo (16) take."""


@dataclass(frozen=True, order=True, kw_only=True)
class Bucket:
    """Clips that a trainer batches: it cuts them to `frames` and resizes them to this size."""

    frames: int
    width_px: int
    height_px: int


def bucket_of(
    frames: int, width_px: int, height_px: int, *, lengths: Sequence[int], resolution_px: int
) -> Bucket | None:
    """The longest of `lengths` up to `frames`, and the size of about `resolution_px` squared pixels with the nearest
    aspect ratio. None if the clip is shorter than all lengths."""
    fitting = [length for length in lengths if length <= frames]
    if not fitting:
        return None
    ratio = min(_ASPECT_RATIOS, key=lambda each: abs(math.log(each * height_px / width_px)))
    width, height = (
        max(1, round(resolution_px * side / _MULTIPLE_PX)) * _MULTIPLE_PX
        for side in (math.sqrt(ratio), 1 / math.sqrt(ratio))
    )
    return Bucket(frames=max(fitting), width_px=width, height_px=height)


def folder_of(to: Target, bucket: Bucket) -> str:
    """The folder below `data` for clips of this bucket; empty: `data` itself."""
    if to == "diffusion-pipe":
        return f"{bucket.width_px}x{bucket.height_px}x{bucket.frames}"
    return str(bucket.frames) if to == "musubi" else ""


def path_of(row: Mapping[str, Any], extension: str) -> str:
    """The path of a clip's file below `data`."""
    name = f"{row['clip_id']}.{extension}"
    return f"{row['folder']}/{name}" if row["folder"] else name


def trainer_files(
    to: Target, buckets: Mapping[Bucket, int], captions: Mapping[str, str], resolution_px: int
) -> dict[str, str]:
    """Name -> text of the files that tell the trainer about the clips. `buckets` with their number of clips; `captions`
    by clip id."""
    ordered = sorted(buckets)
    if to == "finetrainers":
        return {"training.json": _finetrainers(ordered)}
    if to == "diffusion-pipe":
        return {"dataset.toml": _diffusion_pipe(ordered, buckets, resolution_px)}
    if to == "musubi":
        return {"dataset.toml": _musubi(sorted({bucket.frames for bucket in ordered}), resolution_px)}
    if to == "files":
        rows = ({"file_name": f"{clip_id}.mp4", "text": captions[clip_id]} for clip_id in sorted(captions))
        return {f"{DATA}/metadata.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)}
    return {}


def _finetrainers(buckets: Sequence[Bucket]) -> str:
    dataset: dict[str, Any] = {
        "data_root": ".",
        "dataset_type": "video",
        "id_token": None,
        "video_resolution_buckets": [[each.frames, each.height_px, each.width_px] for each in buckets],
        "reshape_mode": "bicubic",
        "remove_common_llm_caption_prefixes": False,
    }
    return json.dumps({"datasets": [dataset]}, indent=1) + "\n"


def _diffusion_pipe(buckets: Sequence[Bucket], clips: Mapping[Bucket, int], resolution_px: int) -> str:
    lines = [
        "# Start training in this folder, or make the paths absolute.",
        f"resolutions = [{resolution_px}]",
        "enable_ar_bucket = true",
        "skip_empty_caption = false",
    ]
    for each in buckets:
        lines += [
            "",
            f"[[directory]] # clips: {clips[each]}",
            f"path = '{DATA}/{folder_of('diffusion-pipe', each)}'",
            f"size_buckets = [[{each.width_px}, {each.height_px}, {each.frames}]]",
        ]
    return "\n".join([*lines, ""])


def _musubi(lengths: Sequence[int], resolution_px: int) -> str:
    lines = [
        "# Start caching and training in this folder, or make the paths absolute.",
        "[general]",
        f"resolution = [{resolution_px}, {resolution_px}]",
        'caption_extension = ".txt"',
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = false",
    ]
    for frames in lengths:
        lines += [
            "",
            "[[datasets]]",
            f'video_directory = "{DATA}/{frames}"',
            f'cache_directory = "cache/{frames}"',
            f"target_frames = [{frames}]",
            'frame_extraction = "head"',
        ]
    return "\n".join([*lines, ""])
