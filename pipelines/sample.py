"""`clipmill sample`: generate a video and its contact sheet with a model, for each task."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from clipmill.atomic import atomic_path
from clipmill.errors import UserError
from clipmill.video_writer import Encoding, write_video
from pipelines.progress import Reporter
from svd import tasks
from svd.checkpoint import load_model, read_config
from svd.conditioning import Ids
from svd.lora import load_lora, merge_lora
from svd.model import Model, ModelConfig, Task
from svd.tensor_files import dtype_of
from training.contact_sheet import contact_sheet, to_bytes

_NEEDED: dict[Task, tuple[str, ...]] = {
    "image-to-video": ("image",),
    "multi-view": ("image",),
    "interpolation": ("image", "last_image"),
    "text-to-video": ("prompt",),
}
_TAKEN: dict[Task, tuple[str, ...]] = {**_NEEDED, "multi-view": ("image", "elevation")}


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Sampling parameters. A task takes some of image, last_image, prompt and elevation, and rejects the others."""

    image: Path | None = None
    last_image: Path | None = None
    prompt: str | None = None
    elevation: float | None = None
    """Degrees above the object."""
    seed: int = 0
    frames: int | None = None
    fps: float = 7.0
    motion: float = 127.0
    noise_augmentation: float = 0.02
    steps: int = 25
    guidance: str | None = None
    """`SCALE`, or `FIRST:LAST` over the frames."""
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels; defaults to the model's size."""
    decode_frames: int | None = None
    lora: Path | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The generated video and its files."""

    video: Path
    sheet: Path
    task: Task
    frames: int
    width_px: int
    height_px: int
    seconds: float


def sample(checkpoint: Path, out: Path, request: SampleRequest, *, quiet: bool = False) -> Sample:
    """Generate a video with the model at `checkpoint`: `out` (.mp4) and a contact sheet next to it (.png).

    Raises UserError for a request that does not fit the model, and for files that cannot be read or written.
    """
    started_s = time.monotonic()
    if out.suffix != ".mp4":
        raise UserError(f"expected --out to end in .mp4, got {out.name!r}")
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_of(request.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    try:
        config = read_config(checkpoint)
        _check(config, request)
        width_px, height_px = parse_size(request.size) if request.size else (config.width_px, config.height_px)
        sampling = tasks.Sampling(
            frames=request.frames,
            steps=request.steps,
            guidance=parse_guidance(request.guidance) if request.guidance else None,
            decode_frames=request.decode_frames,
        )
        ids = Ids(
            fps=request.fps,
            motion_bucket=request.motion,
            noise_augmentation=request.noise_augmentation,
            elevation=request.elevation or 0.0,
        )
        images = [
            open_image(path, width_px, height_px) for path in (request.image, request.last_image) if path is not None
        ]
        model = load_model(checkpoint, device=device, dtype=dtype)
        if request.lora is not None:
            load_lora(model.unet, request.lora)
            merge_lora(model.unet)
        with Reporter(config.task, request.steps, unit="steps", quiet=quiet) as reporter:
            run = _task(model, request, images, (width_px, height_px))
            frames_THWC = to_bytes(
                run(ids=[ids], seeds=[request.seed], sampling=sampling, on_step=lambda *_: reporter.advance())[0]
            )
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{device} is out of memory: try fewer --frames, a smaller --size, or --decode-frames 1"
        ) from error
    except (ValueError, OSError) as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    sheet = out.with_suffix(".png")
    _write(out, lambda path: _write_mp4(path, frames_THWC, request.fps))
    _write(sheet, lambda path: contact_sheet(frames_THWC, request.fps).save(path, format="PNG"))
    return Sample(
        video=out,
        sheet=sheet,
        task=config.task,
        frames=len(frames_THWC),
        width_px=width_px,
        height_px=height_px,
        seconds=time.monotonic() - started_s,
    )


def parse_guidance(text: str) -> tuple[float, float]:
    """Parse guidance: `1.0:3.0` interpolates over the frames, `2.5` is constant. Raises UserError."""
    first, colon, last = text.partition(":")
    try:
        return float(first), float(last if colon else first)
    except ValueError as error:
        raise UserError(f"expected guidance as a number or FIRST:LAST, such as 1.0:3.0, got {text!r}") from error


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size: `1024x576` is width and height. Raises UserError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"expected a size as WIDTHxHEIGHT in pixels, such as 1024x576, got {text!r}")
    return int(width), int(height)


def open_image(path: Path, width_px: int, height_px: int) -> Tensor:
    """Load an image upright, center-cropped to the aspect ratio and resized: (1, 3, H, W), RGB in [-1, 1].

    Raises UserError for a file that is not an image.
    """
    try:
        with Image.open(path) as opened:
            opened_image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {path} as an image: {error}") from error
    if opened_image.size != (width_px, height_px):
        opened_image = ImageOps.fit(opened_image, (width_px, height_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(opened_image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _check(config: ModelConfig, request: SampleRequest) -> None:
    """Raise UserError if the request does not fit the model's task, before any weights are read."""
    task = config.task
    if task not in _NEEDED:
        raise UserError(f"{task} models cannot generate videos; expected a model for {', '.join(_NEEDED)}")
    for option in ("image", "last_image", "prompt", "elevation"):
        given, flag = getattr(request, option) is not None, f"--{option.replace('_', '-')}"
        if option in _NEEDED[task] and not given:
            raise UserError(f"this is a model for {task}: pass {flag}")
        if option not in _TAKEN[task] and given:
            wanted = " and ".join(f"--{name.replace('_', '-')}" for name in _TAKEN[task])
            raise UserError(f"this is a model for {task}, which takes {wanted}, not {flag}")


def _task(model: Model, request: SampleRequest, images: list[Tensor], size: tuple[int, int]) -> Callable[..., Tensor]:
    """The task's sampling function with its conditioning bound; the remaining arguments are the same for all tasks."""
    if model.config.task == "text-to-video":
        prompt, (width_px, height_px) = request.prompt or "", size
        return lambda **rest: tasks.text_to_video(model, [prompt], width_px=width_px, height_px=height_px, **rest)
    if model.config.task == "interpolation":
        return lambda **rest: tasks.interpolate(model, images[0], images[1], **rest)
    return lambda **rest: tasks.image_to_video(model, images[0], **rest)


def _write_mp4(path: Path, frames_THWC: NDArray[np.uint8], fps: float) -> None:
    count, height, width, _ = frames_THWC.shape
    rate = Fraction(fps).limit_denominator(1001)
    write_video(
        path,
        (frame[:, :, ::-1] for frame in frames_THWC),
        range(count),
        time_base=1 / rate,
        fps=rate,
        width=width,
        height=height,
        encoding=Encoding(crf=14),
    )


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write atomically: to a temporary name, then rename."""
    try:
        with atomic_path(path, keep_suffix=True) as temporary:
            write(temporary)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
