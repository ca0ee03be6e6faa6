"""Small shards with known content: every frame of a video tells its number."""

import io
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from webdataset.writer import TarWriter

_BITS = 8


def numbered(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """(height, width, 3) RGB: the number as a bar code of eight columns, dark or bright."""
    columns = np.array([(number >> bit) & 1 for bit in range(_BITS)]) * 200 + 28
    return np.broadcast_to(np.repeat(columns, width // _BITS)[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(frame_HWC: np.ndarray) -> int:
    """What `numbered` wrote, also after a resize; the frame has to show the whole width."""
    levels = frame_HWC.mean((0, 2)).reshape(_BITS, -1)
    middle = levels[:, levels.shape[1] // 4 : -(levels.shape[1] // 4) or None].mean(1)
    return int(sum(1 << bit for bit in range(_BITS) if middle[bit] > 128))


def video(
    frames: int | Iterable[np.ndarray],
    *,
    fps: Fraction | int = 24,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    sample_aspect_ratio: Fraction | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """An MP4 (H.264) of numbered frames, or of the given RGB frames. `rotation` as a phone notes it: clockwise."""
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else list(frames)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as mp4:
        stream = mp4.add_stream("libx264", rate=Fraction(fps), options=options or {"crf": "12", "preset": "veryfast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        stream.codec_context.time_base = time_base or 1 / Fraction(fps)
        if sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = pts[i] if pts else i, stream.codec_context.time_base
            mp4.mux(stream.encode(frame))
        mp4.mux(stream.encode(None))
    return _rotated(file.getvalue(), rotation)


def _rotated(mp4: bytes, rotation: int) -> bytes:
    """Write the turn into the track header's matrix, where players look for it."""
    a, b = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = np.array([a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    track = mp4.index(b"tkhd")
    return mp4[:track] + mp4[track:].replace(upright, turned, 1)


def about(**changes: Any) -> dict[str, Any]:
    """A sample's JSON as `curation.shards.write` writes it, as far as training reads it; None takes a key away."""
    captions = [{"source": "coca", "text": "a bar code", "error_kind": ""}]
    conditioning = [{"name": "fps_id", "value": 23.0}, {"name": "motion_bucket", "value": 100.0}]
    fields = {"captions": captions, "conditioning": conditioning} | changes
    return {key: value for key, value in fields.items() if value is not None}


def write_shard(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    """A tar by webdataset's writer; dictionaries become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write({k: json.dumps(v).encode() if isinstance(v, dict) else v for k, v in sample.items()})
    return path


def sample(key: str, content: bytes, suffix: str = "mp4", **changes: Any) -> dict[str, Any]:
    return {"__key__": key, suffix: content, "txt": b"a bar code", "json": about(**changes)}
