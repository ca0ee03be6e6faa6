"""Training data of the demo's CLIP: images of rendered shots as the pipeline sees them, and their captions.

Each clip is rendered, encoded, decoded, stored as JPEG and preprocessed as in a real run: three images of the original,
three of a re-uploaded copy, and degraded ones. Sizes: N clips, S = `SIZE_PX`.
"""

import io
import itertools
import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from clipmill.video_writer import Encoding, write_video
from curation.video.decode import Video
from footage.altered import DEGRADATIONS, Copy, copied, degraded, upright
from footage.corpus import corpus_specs
from footage.scenes import SHAPE_COLORS, Picture
from footage.shots import Shot, ShotPainter
from footage.timeline import VideoSpec

SIZE_PX = 96
TRAINING_SEED = 1_000_000
"""Corpora with this seed and above are for training. Demo and tests use small seeds, held-out figures 2,000,000."""

PICTURE_LONG_SIDE_PX = 640
"""Default long side of the thumbnails that a scan keeps."""

_JPEG_QUALITY = 92
_SHORT_SIDES_PX = (180, 180, 180, 180, 240, 240, 180, 360, 180, 240, 180, 300, 180, 180, 240, 180, 360, 180, 180, 720)
_SPECS_PER_SEED = 4


@dataclass(frozen=True, kw_only=True)
class TrainingClips:
    """Preprocessed first, middle and last images of clips, (S, S, 3) uint8 RGB, and their labels."""

    originals: NDArray[np.uint8]
    """(N, 3, S, S, 3)."""
    copies: NDArray[np.uint8]
    """(N, 3, S, S, 3): the same clips, as re-uploads."""
    worse: NDArray[np.uint8]
    """(N, 4, S, S, 3): one image per clip for each of `DEGRADATIONS`."""
    strengths: NDArray[np.float32]
    """(N, 4) strengths of the degradations, from 0 to 1."""
    captions: NDArray[np.str_]
    """(N,)."""
    places: NDArray[np.str_]
    """(N,): background and its color; clips that share both are hard to tell apart."""


def training_clips(folder: Path, *, clips: int) -> TrainingClips:
    """The first `clips` clips of the training footage; generated once, then read from `folder`."""
    path = folder / f"clips-{clips}-{SIZE_PX}px.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool() as pool:
            rows = list(pool.imap(_training_clip, itertools.islice(training_shots(), clips), chunksize=8))
        parts = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.savez(file, **parts)  # type: ignore[arg-type]
        Path(file.name).replace(path)
    with np.load(path) as parts:
        return TrainingClips(**parts)


def stored(picture_HWC: Picture) -> bytes:
    """The JPEG that a scan stores of an upright frame."""
    _, content = cv2.imencode(".jpg", picture_HWC, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return content.tobytes()


def training_shots() -> Iterator[tuple[VideoSpec, Shot, int]]:
    """Endless shots of the training footage, each with its video and its number."""
    numbers = itertools.count()
    for seed in range(TRAINING_SEED, 2 * TRAINING_SEED):
        short_side_px = _SHORT_SIDES_PX[seed % len(_SHORT_SIDES_PX)]
        # Twelve kinds of storage come in turn: four videos from each of three seeds pass through all of them.
        specs = corpus_specs(seed=seed, videos=_SPECS_PER_SEED * (1 + seed % 3), short_side_px=short_side_px)
        for spec in specs[-_SPECS_PER_SEED:]:
            for shot in spec.shots:
                yield spec, shot, next(numbers)


def _training_clip(task: tuple[VideoSpec, Shot, int]) -> dict[str, NDArray[np.generic]]:
    spec, shot, number = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng([TRAINING_SEED, number])
    times_s, painter = _moments(shot, spec, rng)
    frames = [painter.frame(time_s).copy() for time_s in times_s]
    if shot.flash_at_s is not None and rng.random() < 0.4:
        frames[1] = _toward(frames[1], 255, 0.85)
    for edge in (0, 2):
        if rng.random() < 0.12:  # a gradual transition whose end was not quite seen
            share, level = rng.uniform(0.02, 0.2), int(rng.choice([0, 0, 255, 128]))
            frames[edge] = _toward(frames[edge], level, share)
    shifts_s = rng.uniform(-0.2, 0.2, 3) if rng.random() < 0.3 else np.zeros(3)
    again = [painter.frame(max(0.0, time_s + by)).copy() for time_s, by in zip(times_s, shifts_s, strict=True)]
    copy, copy_encoding = _reupload(rng)
    strengths = rng.uniform(0, 1, len(DEGRADATIONS)).astype(np.float32)
    return {
        "originals": _as_seen(frames, spec),
        "copies": _as_seen([copied(frame, copy) for frame in again], copy_encoding),
        "worse": _worse(frames, spec, strengths, rng),
        "strengths": strengths,
        "captions": np.array(shot.caption),
        "places": np.array(f"{shot.background} {shot.background_color}"),
    }


def _toward(picture_HWC: Picture, level: int, share: float) -> Picture:
    return cv2.convertScaleAbs(picture_HWC, alpha=1 - share, beta=share * level)  # type: ignore[return-value]


def _moments(shot: Shot, spec: VideoSpec, rng: np.random.Generator) -> tuple[list[float], ShotPainter]:
    """Times of the first, middle and last frame, and the painter of a shot with its transitions."""
    before_s, after_s = rng.choice([0.0, 0.4, 1.0], 2)
    seconds, fps = before_s + shot.duration_s + after_s, float(spec.fps)
    painter = ShotPainter(shot, width=spec.width, height=spec.height, fps=fps, seconds=seconds)
    first_s = before_s + rng.uniform(0, 0.15)
    last_s = before_s + shot.duration_s - rng.uniform(0.02, 0.25)
    return [first_s, (first_s + last_s) / 2 + rng.uniform(-0.12, 0.12), last_s], painter


def _reupload(rng: np.random.Generator) -> tuple[Copy, Encoding]:
    often = rng.random(4) < 0.55
    crop = rng.uniform(0, 0.06, 4) * often[0]
    copy = Copy(
        crop=(crop[0], crop[1], crop[2], crop[3]),
        scale=float(np.exp(rng.uniform(np.log(0.5), np.log(1.5)))) if often[1] else 1.0,
        logo_color=str(rng.choice(list(SHAPE_COLORS))) if often[2] else None,
        logo_corner=(int(rng.integers(2)), int(rng.integers(2))),
        logo_size=float(rng.uniform(0.08, 0.2)),
        gain=float(rng.uniform(0.95, 1.05)) if often[3] else 1.0,
    )
    codec = str(rng.choice(["h264", "h264", "h264", "vp9", "av1", "hevc"]))
    return copy, Encoding(codec=codec, crf=int(rng.integers(20, 40)))


def _worse(
    frames: list[Picture], spec: VideoSpec, strengths: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(4, S, S, 3). Heavy compression mostly affects the video, sometimes the thumbnail."""
    chosen = [frames[i] for i in rng.integers(0, 3, len(DEGRADATIONS))]
    pictures = _as_seen(
        [
            degraded(frame, kind, strength=float(strength), rng=rng)
            for frame, kind, strength in zip(chosen, DEGRADATIONS, strengths, strict=True)
        ],
        spec,
    )
    if rng.random() < 0.7:
        pictures[-1] = _as_seen(chosen[-1:], Encoding(crf=round(41 + 10 * strengths[-1])))[0]
    return pictures


def _as_seen(frames: list[Picture], encoding: Encoding) -> NDArray[np.uint8]:
    """(frames, S, S, 3) uint8 RGB: encoded as a short video, decoded, stored as JPEG, then resized and cropped."""
    return np.stack([_preprocessed(stored(picture)) for picture in _round_trip(frames, encoding)])


def _round_trip(frames: list[Picture], encoding: Encoding) -> list[Picture]:
    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{encoding.suffix}"
        write_video(
            path,
            frames,
            range(len(frames)),
            time_base=Fraction(1, 24),
            fps=Fraction(24),
            width=width,
            height=height,
            encoding=encoding,
        )
        with path.open("rb") as file, Video(file) as video:
            return [picture for _, picture in upright(video, long_side_px=PICTURE_LONG_SIDE_PX)]


def _preprocessed(content: bytes) -> NDArray[np.uint8]:
    """open_clip's preprocessing up to uint8: resize the shorter side, then center-crop."""
    return np.asarray(_resize_and_crop()(Image.open(io.BytesIO(content)).convert("RGB")))


@cache
def _resize_and_crop() -> Compose:
    return Compose([Resize(SIZE_PX, InterpolationMode.BICUBIC), CenterCrop(SIZE_PX)])
