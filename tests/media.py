"""Small videos with known content, for tests of the core."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width) float32 in 0..255 with detail at every scale and no repetition, as footage has."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16, 32, 64, 128):
        grid = rng.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        layer = cv2.resize(
            grid, ((width // cell + 3) * cell, (height // cell + 3) * cell), interpolation=cv2.INTER_CUBIC
        )
        total += cell**0.5 * layer[:height, :width]
    return (total - total.min()) / (total.max() - total.min()) * 255


def panning(
    *, height: int, pixels_per_frame: float, frames: int, angle: float = 0.6, seed: int = 0
) -> list[np.ndarray]:
    """(height, 16/9 height, 3) BGR frames of a texture that moves by a known number of pixels per frame."""
    width = round(height * 16 / 9 / 2) * 2
    reach = int(pixels_per_frame * frames) + 4
    picture = texture(height + reach, width + reach, seed)
    step = pixels_per_frame * np.array([np.cos(angle), np.sin(angle)])
    shown = []
    for i in range(frames):
        shift = np.array([[1, 0, -step[0] * i], [0, 1, -step[1] * i]], np.float32)
        gray = cv2.warpAffine(picture, shift, (width, height), flags=cv2.INTER_LINEAR)
        shown.append(cv2.cvtColor(np.clip(gray, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR))
    return shown


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: Fraction | int = 24,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    sample_aspect_ratio: Fraction | None = None,
) -> Path:
    """Encode BGR frames. `pts` (in `time_base`) makes the frame rate vary, or the first timestamp not zero."""
    frames = list(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.thread_count = 1
        # x264's AVX-512 code for mbtree reads stray memory: other pictures on every run.
        repeatable = {"mbtree": "0"} if codec == "libx264" else {}
        stream.options = repeatable | ({"crf": "18", "preset": "veryfast"} if options is None else options)
        if sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        stream.codec_context.time_base = time_base or 1 / Fraction(fps)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24")
            frame.pts = pts[i] if pts else i
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
