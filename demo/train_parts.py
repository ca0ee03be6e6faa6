"""Train the autoencoder and the image encoder of the demo's video model on rendered footage.

    python -m demo.train_parts [--out FOLDER]

The autoencoder is trained on crops of images, then on videos. The image encoder predicts the demo CLIP's
192-dimensional embeddings in 48 dimensions. The text encoder is the text tower of the demo's CLIP and needs no
training. Sizes: N clips of T frames, B a batch.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from curation.scores import openclip
from demo.clip_data import training_shots
from demo.model import FOLDER as CLIP
from demo.parts import (
    AUTOENCODER,
    FRAMES,
    IMAGE_ENCODER,
    RATE_FPS,
    WEIGHTS,
    save_part,
)
from demo.small import small_frames
from footage.altered import DEGRADATIONS, degraded
from footage.shots import Shot
from footage.timeline import VideoSpec
from svd.autoencoder import Attention, Autoencoder, Downsample, ResBlock, TimeResidual, Upsample
from svd.blocks import TemporalConv
from svd.clip import ImageEncoder

SEED = 0
_DEGRADED_SHARE, _MIXED_SHARE = 0.1, 0.08
_KL_WEIGHT, _EDGE_WEIGHT = 1e-4, 0.25
_FIRST_LOGVAR = -6.0
_REPORT_STEPS = 250
_CHECKED = 32
"""Clips held out from training."""


def footage(folder: Path, *, clips: int) -> NDArray[np.uint8]:
    """(N, T, H, W, 3) RGB of shots from the training corpora; rendered once, then read from `folder`."""
    path = folder / f"frames-{clips}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tasks = itertools.islice(training_shots(), clips)
        with multiprocessing.get_context("spawn").Pool() as pool:
            frames = np.stack(list(pool.imap(_frames, tasks, chunksize=8)))
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.save(file, frames)
        Path(file.name).replace(path)
    return np.load(path, mmap_mode="r")


def _frames(task: tuple[VideoSpec, Shot, int]) -> NDArray[np.uint8]:
    """(T, H, W, 3) RGB: frames of a shot as the trainer would see them, sometimes a degraded copy."""
    spec, shot, number = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng([SEED, number])
    frames = small_frames(spec, shot, rate_fps=RATE_FPS, start=rng.uniform())
    if rng.random() < _DEGRADED_SHARE:
        kind = str(rng.choice(DEGRADATIONS))
        frames = np.stack([degraded(frame, kind, strength=0.6, rng=rng) for frame in frames])
    return frames[..., ::-1]


def train_autoencoder(frames: NDArray[np.uint8], *, steps: tuple[int, int], batch: int) -> Autoencoder:
    """Train on crops of half the height and width first, which cost a quarter, then on whole videos."""
    torch.manual_seed(SEED)
    autoencoder = Autoencoder(AUTOENCODER)
    _start_simple(autoencoder)
    cuttings = (_cutting(x_BTCHW) for x_BTCHW in _batches(frames[:-_CHECKED], batch, 1))
    _fit(autoencoder, cuttings, steps=steps[0], lr=2e-3, checked=frames[-_CHECKED:])
    videos = _batches(frames[:-_CHECKED], max(1, batch // FRAMES), FRAMES)
    _fit(autoencoder, videos, steps=steps[1], lr=5e-4, checked=frames[-_CHECKED:])
    _to_unit_deviation(autoencoder, frames[:256])
    return autoencoder


def _start_simple(autoencoder: Autoencoder) -> None:
    """Initialize as a chain of plain convolutions that preserve the magnitude of activations, with little noise in the
    middle: colors are learned in a tenth of the steps.
    """
    for module in autoencoder.modules():
        if isinstance(module, ResBlock | TimeResidual):
            _zero(module.conv2)
        elif isinstance(module, Attention):
            _zero(module.out)
        elif isinstance(module, Downsample | Upsample):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, TemporalConv):
            _look_at_one_frame(module)
    for layer in (autoencoder.encoder.conv_in, autoencoder.decoder.conv_in, autoencoder.quant_conv):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.constant_(autoencoder.quant_conv.bias[AUTOENCODER.latent_channels :], _FIRST_LOGVAR)  # type: ignore[index]


@torch.no_grad()
def _look_at_one_frame(layer: TemporalConv) -> None:
    """Zero the weights of neighboring frames: images do not train them, and at zero they do not affect videos."""
    layer.weight[:, :, [0, -1]] = 0


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def _to_unit_deviation(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
    """Fold the scale of the latents into the weights on both sides, so that the scale factor is 1."""
    deviation = autoencoder.encode(_signed(frames[:, :1])).mean.std()
    channels = AUTOENCODER.latent_channels
    autoencoder.quant_conv.weight[:channels] /= deviation
    autoencoder.quant_conv.bias[:channels] /= deviation  # type: ignore[index]
    autoencoder.quant_conv.bias[channels:] -= 2 * deviation.log()  # type: ignore[index]
    autoencoder.decoder.conv_in.weight *= deviation


def _fit(
    autoencoder: Autoencoder,
    batches: Iterator[Tensor],
    *,
    steps: int,
    lr: float,
    checked: NDArray[np.uint8],
) -> None:
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(2, steps), pct_start=0.1)
    started_s = time.monotonic()
    for step, x_BTCHW in zip(range(1, steps + 1), batches, strict=False):
        posterior = autoencoder.encode(x_BTCHW)
        y_BTCHW = autoencoder.decode(posterior.sample())
        loss = (y_BTCHW - x_BTCHW).abs().mean() + _EDGE_WEIGHT * _edges(y_BTCHW - x_BTCHW)
        loss = loss + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % _REPORT_STEPS == 0 or step == steps:
            print(
                f"autoencoder: step {step}/{steps}, {time.monotonic() - started_s:.0f} s: loss {loss.item():.4f}, "
                f"{psnr_db(autoencoder, checked):.1f} dB on held-out clips",
                flush=True,
            )


def _edges(x_BTCHW: Tensor) -> Tensor:
    """Mean absolute difference of neighboring pixels, which a per-pixel mean error leaves blurred."""
    return x_BTCHW.diff(dim=-1).abs().mean() + x_BTCHW.diff(dim=-2).abs().mean()


@torch.no_grad()
def psnr_db(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> float:
    """Mean PSNR in dB of (N, T, H, W, 3) frames after encoding and decoding."""
    x_BTCHW = _signed(frames)
    y_BTCHW = autoencoder.decode(autoencoder.encode(x_BTCHW, chunk_frames=64).mode()).clamp(-1, 1)
    error_BT = ((y_BTCHW - x_BTCHW) / 2).square().mean((2, 3, 4))
    return float(-10 * error_BT.log10().mean())


def _batches(frames: NDArray[np.uint8], size: int, length: int) -> Iterator[Tensor]:
    """Endless (B, T, 3, H, W) batches: consecutive frames, sometimes flipped, blended with another clip as in a
    dissolve, or darkened as in a fade.
    """
    rng = np.random.default_rng([SEED, length])
    while True:
        chosen = rng.integers(0, len(frames), size)
        starts = rng.integers(0, FRAMES - length + 1, size)
        x_BTCHW = _signed(np.stack([frames[i, s : s + length] for i, s in zip(chosen, starts, strict=True)]))
        for i in range(size):
            if rng.random() < _MIXED_SHARE:
                other = x_BTCHW[(i + 1) % size] if rng.random() < 0.6 else torch.tensor(-1.0)
                x_BTCHW[i].lerp_(other.expand_as(x_BTCHW[i]).clone(), float(rng.uniform(0.1, 0.9)))
            if rng.random() < 0.5:
                x_BTCHW[i] = x_BTCHW[i].flip(-1)
        yield x_BTCHW


def _cutting(x_BTCHW: Tensor) -> Tensor:
    """A random crop of half the height and width, the same for all images, at multiples of the factor."""
    height, width = (side // 2 for side in x_BTCHW.shape[-2:])
    top, left = (
        int(torch.randint(side // AUTOENCODER.factor + 1, ())) * AUTOENCODER.factor for side in (height, width)
    )
    return x_BTCHW[..., top : top + height, left : left + width]


def _signed(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(frames)).movedim(-1, -3).float() / 127.5 - 1


def train_image_encoder(frames: NDArray[np.uint8], *, steps: int, batch: int) -> ImageEncoder:
    """Train a small network to predict the demo CLIP's embeddings projected on their 48 principal directions, with unit
    variance.
    """
    torch.manual_seed(SEED)
    encoder, width = ImageEncoder(IMAGE_ENCODER), IMAGE_ENCODER.embedding_width
    pictures = frames[:, [0, -1]].reshape(-1, *frames.shape[2:])
    embeddings_ND = _clip_embeddings(pictures)
    centred = embeddings_ND - embeddings_ND.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width].T
    targets_NC = centred @ directions
    targets_NC = targets_NC / targets_NC.std()
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(2, steps), pct_start=0.1)
    rng, train_count = np.random.default_rng([SEED, 2]), len(pictures) - 2 * _CHECKED
    for step in range(1, steps + 1):
        chosen = rng.integers(0, train_count, batch)
        loss = F.mse_loss(encoder(_signed(pictures[chosen])), targets_NC[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _REPORT_STEPS == 0 or step == steps:
            with torch.no_grad():
                missed = F.mse_loss(encoder(_signed(pictures[train_count:])), targets_NC[train_count:])
            explained = 1 - missed / targets_NC[train_count:].square().mean()
            print(f"image encoder: step {step}/{steps}: loss {loss:.3f}, explains {explained:.0%} on held-out clips")
    return encoder


@torch.no_grad()
def _clip_embeddings(pictures_NHWC: NDArray[np.uint8]) -> Tensor:
    """Normalized embeddings (N, D) of the demo's CLIP."""
    clip = openclip.load(str(CLIP), None)
    parts = [
        clip.model.encode_image(
            torch.stack([clip.preprocess(Image.fromarray(image)) for image in part]), normalize=True
        )
        for part in np.array_split(pictures_NHWC, len(pictures_NHWC) // 64 + 1)
    ]
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train_parts", description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="output folder for the weights (default: the demo's)")
    known = ("autoencoder", "image_encoder")
    parser.add_argument("--parts", nargs="+", choices=known, default=known, help="parts to train (default: both)")
    parser.add_argument("--clips", type=int, default=1600, help="number of clips to render (default: 1600)")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(3500, 400), help="autoencoder steps on crops and on videos"
    )
    parser.add_argument("--batch", type=int, default=16, help="crops per batch (default: 16)")
    parser.add_argument("--encoder-steps", type=int, default=1500, help="steps of the image encoder")
    default_cache = Path(tempfile.gettempdir()) / "clipmill-parts"
    parser.add_argument("--cache", type=Path, default=default_cache, help=f"cache of rendered frames ({default_cache})")
    arguments = parser.parse_args()
    print(f"rendering {arguments.clips} clips, unless cached in {arguments.cache}", flush=True)
    frames = footage(arguments.cache, clips=arguments.clips)
    if "autoencoder" in arguments.parts:
        autoencoder = train_autoencoder(frames, steps=tuple(arguments.steps), batch=arguments.batch)
        save_part("autoencoder", autoencoder, arguments.out)
    if "image_encoder" in arguments.parts:
        encoder = train_image_encoder(frames, steps=arguments.encoder_steps, batch=32)
        save_part("image_encoder", encoder, arguments.out)


if __name__ == "__main__":
    main()
