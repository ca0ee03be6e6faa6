"""A small varied corpus of rendered footage: every kind of shot, cut, size, frame rate and codec in a few videos."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from footage.scenes import BACKGROUND_TONES, BACKGROUNDS, LEAST_CONTRAST, SHAPE_COLORS, SHAPES, contrast
from footage.shots import SHAPE_MOTIONS, Shot, mean_distance_px
from footage.timeline import Cut, VideoSpec

_T = TypeVar("_T")

_STORAGE: tuple[MappingProxyType[str, Any], ...] = tuple(
    MappingProxyType(settings)
    for settings in (
        {"name": "h264"},
        {"name": "ntsc-vp9", "codec": "vp9", "fps": Fraction(30000, 1001)},
        {"name": "variable", "fps": Fraction(30), "variable_fps": True, "container": "mkv"},
        {"name": "hevc", "codec": "hevc", "fps": Fraction(25), "start_offset_s": 1.6},
        {"name": "upright", "fps": Fraction(30), "rotation": 90, "aspect": Fraction(9, 16)},
        {"name": "av1", "codec": "av1", "fps": Fraction(25)},
        {"name": "sparse-keyframes", "fps": Fraction(25), "keyframe_s": 10.0, "keyframes_at_cuts": False},
        {"name": "wide-pixels", "sample_aspect_ratio": Fraction(4, 3), "fps": Fraction(12)},
        {"name": "mpeg4", "codec": "mpeg4", "fps": Fraction(25), "aspect": Fraction(4, 3)},
        {"name": "60-fps", "fps": Fraction(60), "open_gop": True, "keyframe_s": 1.0},
        {"name": "hevc-10-bit", "codec": "hevc", "pixel_format": "yuv420p10le"},
        {"name": "transport", "container": "ts", "fps": Fraction(25), "keyframe_s": 0.5},
    )
)
_LONG_SHOT_S = 23.0
_LONG_SHOT_FROM_VIDEOS = 8
_CUTS = ("hard", "dissolve", "hard", "black", "hard", "wipe", "dissolve", "hard", "white")
_CAMERAS = ("pan", "still", "pan", "zoom", "still", "pan")
_DURATIONS_S = ((2.2, 3.0), (3.0, 5.0), (0.8, 1.8), (2.2, 4.0), (4.0, 6.0))
_TEXTS = (
    "A quiet morning",
    "Meanwhile, at sea",
    "NEWS AT TEN",
    "Chapter two",
    "Where does the road\nlead from here?",
    "Don't look back now",
    "Open all night",
    "Take the last train",
)


def corpus_specs(*, seed: int, videos: int, short_side_px: int = 180) -> list[VideoSpec]:
    """Specifications of `videos` videos, the same for the same arguments; a larger corpus starts with those of a
    smaller.

    Videos are a few to about 25 seconds long. From eight videos on, one has a shot longer than 20 s.
    """
    return [_video(seed, i, short_side_px, long=i == _LONG_SHOT_FROM_VIDEOS - 1) for i in range(videos)]


def _video(seed: int, index: int, short_side_px: int, *, long: bool) -> VideoSpec:
    rng = np.random.default_rng([seed, index])
    settings = dict(_STORAGE[index % len(_STORAGE)])
    aspect = settings.pop("aspect", Fraction(16, 9))
    long_side_px = round(short_side_px * max(aspect, 1 / aspect) / 8) * 8  # eighths: wide pixels fit as well
    width, height = (long_side_px, short_side_px) if aspect > 1 else (short_side_px, long_side_px)
    settings["name"] = f"{index:03d}-{settings['name']}"
    settings.update(width=width, height=height, fps=settings.get("fps", Fraction(24)))
    shots = 2 if long else int(rng.integers(3, 6))
    kinds = _turns(rng, _CUTS)
    cuts = tuple(_cut(rng, next(kinds)) for _ in range(shots - 1))
    lengths_s = [rng.uniform(*bounds) for bounds, _ in zip(_turns(rng, _DURATIONS_S), range(shots), strict=False)]
    if long:
        lengths_s[0] = _LONG_SHOT_S
    return VideoSpec(
        **settings,
        shots=tuple(_shots(rng, lengths_s, (width, height), float(settings["fps"]))),
        cuts=cuts,
        opening=Cut(kind="black", duration_s=0.6) if index % 4 == 1 else None,
        ending=Cut(kind="black", duration_s=0.8) if index % 4 == 2 else None,
    )


def _turns(rng: np.random.Generator, items: Iterable[_T]) -> Iterator[_T]:
    """The items in random order, endlessly, without equal neighbors."""
    pool = list(items)
    order = rng.permutation(len(pool))
    while True:
        for i in order:
            yield pool[i]


def _cut(rng: np.random.Generator, kind: str) -> Cut:
    return Cut() if kind == "hard" else Cut(kind=kind, duration_s=round(float(rng.uniform(0.4, 1.5)), 2))


def _shots(rng: np.random.Generator, lengths_s: list[float], size: tuple[int, int], fps: float) -> Iterator[Shot]:
    colors, backgrounds = _turns(rng, BACKGROUND_TONES), _turns(rng, BACKGROUNDS)
    shapes, motions, cameras = _turns(rng, SHAPES), _turns(rng, SHAPE_MOTIONS), _turns(rng, _CAMERAS)
    for length_s in lengths_s:
        color, camera, duration_s = next(colors), next(cameras), round(float(length_s), 2)
        shape = next(shapes) if rng.random() < 0.65 else None
        fitting = [name for name in SHAPE_COLORS if contrast(name, color) >= LEAST_CONTRAST]
        text = str(rng.choice(_TEXTS)) if rng.random() < 0.3 else None
        title = shape is None and rng.random() < 0.5
        yield Shot(
            background=next(backgrounds),
            background_color=color,
            camera=camera,
            speed_px=round(_speed_px_per_s(rng, camera, duration_s, size) / fps, 3),
            heading_deg=float(rng.integers(0, 8) * 45),
            shape=shape,
            shape_color=str(rng.choice(fitting)),
            shape_motion=next(motions),
            shape_size=round(float(rng.uniform(0.3, 0.45)), 2),
            text=text,
            text_size=0.2 if title else 0.11,
            text_place="middle" if title else str(rng.choice(["bottom", "bottom", "top"])),
            flash_at_s=duration_s / 2 if duration_s > 2 and rng.random() < 0.15 else None,
            flash_frames=int(rng.integers(1, 3)),
            duration_s=duration_s,
            seed=int(rng.integers(1 << 31)),
        )


def _speed_px_per_s(rng: np.random.Generator, camera: str, duration_s: float, size: tuple[int, int]) -> float:
    if camera == "pan":
        return float(np.exp(rng.uniform(np.log(0.04), np.log(0.6)))) * min(size)
    if camera == "zoom":
        seconds = duration_s + 3  # as long as it can be seen, with a transition on either side
        rate = np.log(rng.uniform(1.3, 2.2)) / seconds
        return float(rate * mean_distance_px(*size) * rng.choice([-1, 1]))
    return 0.0
