"""Rows of clips as a scan would write them, without a video."""

from typing import Any

SHAPE = {
    "codec": "h264",
    "pixel_format": "yuv420p",
    "width": 64,
    "height": 48,
    "rotation": 0,
    "mirrored": False,
    "sample_aspect_ratio": "1:1",
    "crop": [0, 0, 0, 0],
}
"""Of an extracted clip."""


def clip_row(source: str, clip: int, **changes: Any) -> dict[str, Any]:
    """A row of the joined view: a remuxed second of 64 x 48 pixels at 24 frames/s."""
    start_pts = 24 * clip
    bounds = {"start": start_pts, "end": start_pts + 24}
    return {
        "clip_id": f"{source}-{start_pts}-{start_pts + 24}",
        "source_id": source,
        "uri": f"/home/alice/videos/{source}.mp4",
        "extraction": "remux",
        "timestamps": "container",
        "resume": None,
        "time_base_num": 1,
        "time_base_den": 24,
        **{f"{cut}{name}_pts": pts for cut in ("cut_", "") for name, pts in bounds.items()},
        **{f"{cut}{name}_s": pts / 24 for cut in ("cut_", "") for name, pts in bounds.items()},
        "duration_s": 1.0,
        "start_frame": start_pts,
        "frames": 24,
        "fps": 24.0,
        "variable_fps": False,
        "distinct_fps": 24.0,
        "distinct_frames": None,
        "width": 64,
        "height": 48,
        **{f"crop_{side}": 0 for side in ("left", "top", "right", "bottom")},
        "codec": "h264",
        "interlaced": "progressive",
        "captions": [],
        "metadata": None,
        "motion": 5.0,
        "motion_error": None,
        "motion_error_kind": None,
        "motion_bucket": 63,
        "fps_id": 23,
        "aesthetic": None,
        "aesthetic_error": None,
        "aesthetic_error_kind": None,
        "thumbnail_pts": [start_pts, start_pts + 12, start_pts + 23],
        **changes,
    }
