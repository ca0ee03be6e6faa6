"""Altered footage: images degraded in known ways, and copies of videos as after a re-upload."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.video_writer import Encoding, write_video
from curation.video.decode import Video
from curation.video.resize import FrameResizer
from footage.scenes import Picture, shape_sprite

DEGRADATIONS = ("blur", "noise", "low contrast", "compression")

_SHORT_SIDE_PX = 180
"""Blur and grain are specified for images with this short side, and scale with the image."""
_WHOLE_PX = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Changes to the frames of a re-upload before it is encoded again. Shares are relative to the frame's sides."""

    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Share cropped at the left, top, right and bottom."""
    scale: float = 1.0
    logo_color: str | None = None
    """Color of a small star in a corner; None: no logo."""
    logo_corner: tuple[int, int] = (1, 0)
    """(right, bottom) as 0 or 1."""
    logo_size: float = 0.12
    """Width of the logo as a share of the short side."""
    gain: float = 1.0


def degraded(picture_HWC: Picture, kind: str, *, strength: float, rng: np.random.Generator) -> Picture:
    """A degraded (height, width, 3) uint8 copy. strength: 0 (visible) to 1 (barely watchable).

    Raises ValueError for an unknown kind of degradation.
    """
    unit_px = min(picture_HWC.shape[:2]) / _SHORT_SIDE_PX
    if kind == "blur":
        return cv2.GaussianBlur(picture_HWC, (0, 0), (1.6 + 3.4 * strength) * unit_px)  # type: ignore[return-value]
    if kind == "noise":
        return _noisy(picture_HWC, deviation=16 + 34 * strength, grain_px=rng.uniform(1, max(1.0, unit_px)), rng=rng)
    if kind == "low contrast":
        contrast = 0.58 - 0.33 * strength
        return cv2.convertScaleAbs(picture_HWC, alpha=contrast, beta=(1 - contrast) * 128)  # type: ignore[return-value]
    if kind == "compression":
        return jpeg(picture_HWC, round(14 - 11 * strength))
    raise ValueError(f"unknown degradation {kind!r}, expected one of {', '.join(DEGRADATIONS)}")


def jpeg(picture_HWC: Picture, quality: int) -> Picture:
    """Compress an image as JPEG and decompress it. quality: 1 to 100."""
    _, content = cv2.imencode(".jpg", picture_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(content, cv2.IMREAD_COLOR)  # type: ignore[return-value]


def copied(picture_HWC: Picture, copy: Copy) -> Picture:
    """Crop and scale a frame and apply its logo and gain; its sides stay even."""
    height, width = picture_HWC.shape[:2]
    left, top, right, bottom = copy.crop
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(left * width), width - round(right * width))
    cropped = picture_HWC[rows, columns]
    size = tuple(max(2, round(side * copy.scale / 2) * 2) for side in cropped.shape[1::-1])
    scaled = cv2.resize(cropped, size, interpolation=cv2.INTER_AREA if copy.scale < 1 else cv2.INTER_CUBIC)
    changed = cv2.convertScaleAbs(scaled, alpha=copy.gain)
    if copy.logo_color is not None:
        _lay_logo(changed, copy)  # type: ignore[arg-type]
    return changed  # type: ignore[return-value]


def transcoded(
    source: Path, folder: Path, name: str, change: Callable[[Picture], Picture], encoding: Encoding | None = None
) -> Path:
    """Write `folder`/NAME.mp4 (or .webm, ...): the decoded frames of `source`, changed, with the same timestamps."""
    encoding = encoding or Encoding()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{encoding.suffix}"
    with source.open("rb") as file, Video(file) as video:
        pts, pictures = [], []
        for stamp, picture in upright(video):
            pts.append(stamp)
            pictures.append(change(picture))
        info = video.info
    rate = Fraction(max(1, len(pts) - 1), max(1, pts[-1] - pts[0])) / info.time_base
    height, width = pictures[0].shape[:2]
    write_video(
        path,
        pictures,
        pts,
        time_base=info.time_base,
        fps=rate.limit_denominator(1001),
        width=width,
        height=height,
        encoding=replace(encoding, rotation=0),
    )
    return path


def upright(video: Video, *, long_side_px: int = _WHOLE_PX) -> Iterator[tuple[int, Picture]]:
    """pts and (height, width, 3) uint8 BGR of every frame, as displayed."""
    resizer = FrameResizer()
    for frame in video.frames():
        yield frame.pts, resizer.upright_bgr(frame.av_frame, video.info, long_side_px=long_side_px)


def _noisy(picture_HWC: Picture, *, deviation: float, grain_px: float, rng: np.random.Generator) -> Picture:
    height, width = picture_HWC.shape[:2]
    rows, columns = max(2, round(height / grain_px)), max(2, round(width / grain_px))
    grain: NDArray[np.float32] = rng.standard_normal((rows, columns, 3), np.float32)
    if (rows, columns) != (height, width):
        grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
    return np.clip(picture_HWC + grain * deviation + 0.5, 0, 255).astype(np.uint8)


def _lay_logo(picture_HWC: Picture, copy: Copy) -> None:
    height, width = picture_HWC.shape[:2]
    assert copy.logo_color is not None
    logo = shape_sprite("star", copy.logo_color, size_px=copy.logo_size * min(height, width))
    side, edge = logo.shape[0], round(0.03 * min(height, width))
    left = (width - side - edge) if copy.logo_corner[0] else edge
    top = (height - side - edge) if copy.logo_corner[1] else edge
    under = picture_HWC[top : top + side, left : left + side]
    under[:] = (under * (1 - logo[:, :, 3:]) + logo[:, :, :3] + 0.5).astype(np.uint8)
