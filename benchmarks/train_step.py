"""Time of a training step, compared with a loop written with diffusers and accelerate: same weights, shapes and work.

    python -m benchmarks.train_step [--compile] [--steps N]

Each step is EDM's loss, forward and backward, clipping, AdamW and the weight average, on precomputed latents, without
logging or saving. Ours is `training.loop.run_loop`, timed from outside by the batches that it requests. On the CPU:
`tiny-image-to-video` in float32 on one thread, one step of each in turn, CPU seconds. With a GPU also the full network
in bfloat16 with float32 weights, one loop after the other: seconds, peak memory, and utilization, not counting
recomputation. Ratios are their time divided by ours.

First both take one step with the same draws: the differences of losses and gradient norms show that they do the same
work.
"""

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import cpu_s, report
from benchmarks.diffusers_loop import Step, diffusers_loop
from svd.autoencoder import Autoencoder
from svd.model import Model, ModelConfig
from svd.unet import UNet
from tests.svd.networks import randomise
from training.batch import Batch
from training.contents import Contents
from training.distributed import join, leave
from training.estimate import estimate
from training.loop import Hooks, run_loop
from training.metrics import peak_flops
from training.objective import draw
from training.seeds import seed_of
from training.stages import Stage, overlay

WARM_UP = 3
"""Steps before the measurement."""
CPU_STAGE = ("tiny-image-to-video", 4, False)
GPU_STAGES = {
    "14x320x576, batch 1": ("image-to-video-base", 1, False),
    "14x320x576, batch 4, checkpointing": ("image-to-video-base", 4, True),
    "25x576x1024, batch 1, checkpointing": ("image-to-video-xt", 1, True),
}
"""Stage, batch size, and whether activations are recomputed."""

Row = tuple[Any, ...]


class Encoded(Autoencoder):
    """Stand-in for an encoder whose results are precomputed, so that neither loop pays for encoding: every eighth
    pixel.
    """

    def encode_condition(self, frames_BTCHW: Tensor) -> Tensor:  # type: ignore[override]
        return frames_BTCHW[:, :, [0, 1, 2, 0], ::8, ::8]


def stage_of(preset: str, samples: int, checkpointing: bool, *, compiled: bool) -> Stage:
    """The whole network is trained and averaged; no measured step logs or saves."""
    stage, never = Stage.preset(preset), 1_000_000
    run = {"steps": never, "log_every": never, "save_every": never, "sample_every": None}
    changes = {
        "model": {"checkpointing": checkpointing},
        "data": {"batch_size": samples},
        "run": {"batch_size": samples, "compile": compiled, **run},
        "optimizer": {"ema": stage.optimizer.ema or 0.9999},
    }
    return overlay(stage, changes)


def random_network(stage: Stage) -> UNet:
    with torch.device("meta"):
        unet = UNet(stage.model.config())
    unet = unet.to_empty(device="cpu")
    randomise(unet)
    return unet


def random_batch(stage: Stage) -> Batch:
    data, samples, generator = stage.data, stage.data.batch_size, torch.Generator().manual_seed(0)
    latents = (samples, data.frames, 4, data.height_px // 8, data.width_px // 8)
    ends = (samples, 2, 3, data.height_px, data.width_px)
    return Batch(
        keys=[f"random/{i}" for i in range(samples)],
        captions=[""] * samples,
        fps=torch.full((samples,), 8.0),
        motion_bucket=torch.full((samples,), 127.0),
        elevation=torch.zeros(samples),
        image_only=False,
        mean_BTCHW=5 * torch.randn(latents, generator=generator),
        logvar_BTCHW=torch.full(latents, -4.0),
        ends_BECHW=torch.randint(256, ends, generator=generator, dtype=torch.uint8),
        image_embeddings_BEC=torch.randn(samples, 2, stage.model.config().context_width, generator=generator),
    )


@dataclass(frozen=True)
class Batches:
    """A loader of these batches alone; the loop is never resumed."""

    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def contents(self) -> Contents:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    def skip(self, samples: int) -> None:
        raise NotImplementedError


def our_loop(stage: Stage, unet: UNet, device: str, batches: Iterable[Batch], hooks: Hooks | None = None) -> None:
    """Run our loop on a copy of `unet` until the batches end, before its first checkpoint."""
    shapes = ModelConfig.tiny(unet.config).replace(image_encoder=None)
    model = Model(config=shapes, unet=copy.deepcopy(unet), autoencoder=Encoded(shapes.autoencoder).to(device))
    process = join(device)
    with tempfile.TemporaryDirectory() as out, suppress(StopIteration):
        run_loop(stage, model, Batches(batches), Path(out), process, hooks=hooks)
    leave()


def their_loop(stage: Stage, unet: UNet, device: str) -> Step:
    autoencoder = Encoded(ModelConfig.tiny(unet.config).autoencoder).to(device)
    return diffusers_loop(stage, unet, autoencoder, random_batch(stage), device)


def difference(stage: Stage, unet: UNet, device: str) -> dict[str, float]:
    """Relative differences of losses and gradient norms of the two loops, in a step with the same draws."""
    batch, records = random_batch(stage), list[Mapping[str, Any]]()
    logged = overlay(stage, {"run": {"log_every": 1, "compile": False}})
    our_loop(logged, unet, device, [batch], Hooks(on_log=records.append))
    seeds = [seed_of(stage.run.seed, 0, i) for i in range(len(batch))]
    theirs = their_loop(stage, unet, device)(draw(stage.noise.build(), seeds))
    ours = (records[0]["loss"], records[0]["grad_norm"])
    apart = [abs(float(b) / a - 1) for a, b in zip(ours, theirs, strict=True)]
    return {"loss_difference": apart[0], "norm_difference": apart[1]}


def clock(device: str) -> float:
    """CPU seconds, or wall seconds after synchronizing the GPU."""
    if device == "cpu":
        return cpu_s()
    torch.cuda.synchronize()
    return time.perf_counter()


def time_ours(
    stage: Stage, unet: UNet, device: str, steps: int, between: Callable[[], Any] = lambda: None
) -> list[float]:
    """Seconds of each step; `between` is called before each and does not count."""
    seconds: list[float] = []

    def batches(batch: Batch) -> Iterator[Batch]:
        for _ in range(WARM_UP + steps):
            between()
            before = clock(device)
            yield batch
            seconds.append(clock(device) - before)

    our_loop(stage, unet, device, batches(random_batch(stage)))
    return seconds[WARM_UP:]


def timed(step: Step, device: str) -> float:
    before = clock(device)
    step()
    return clock(device) - before


def time_theirs(stage: Stage, unet: UNet, device: str, steps: int) -> list[float]:
    step = their_loop(stage, unet, device)
    return [timed(step, device) for _ in range(WARM_UP + steps)][WARM_UP:]


def on_cpu(steps: int, *, compiled: bool) -> tuple[list[Row], dict[str, Any]]:
    torch.set_num_threads(1)
    stage = stage_of(*CPU_STAGE, compiled=compiled)
    unet = random_network(stage)
    apart = difference(stage, unet, "cpu")
    theirs_s: list[float] = []
    step = their_loop(stage, unet, "cpu")
    ours_s = time_ours(stage, unet, "cpu", steps, between=lambda: theirs_s.append(timed(step, "cpu")))
    theirs_s = theirs_s[WARM_UP:]
    ours, theirs = statistics.median(ours_s), statistics.median(theirs_s)
    low, _, high = statistics.quantiles((b / a for a, b in zip(ours_s, theirs_s, strict=True)), n=4)
    rows: list[Row] = [
        ("tiny, CPU: step, CPU s", ours, theirs, round(theirs / ours, 3)),
        ("  quartiles of the ratio, step by step", "", "", f"{low:.2f} to {high:.2f}"),
        ("  relative difference of the first loss", "", "", f"{apart['loss_difference']:.0e}"),
        ("  relative difference of its gradient's norm", "", "", f"{apart['norm_difference']:.0e}"),
    ]
    figures = {"vs_diffusers": round(theirs / ours, 3), "quartiles": [round(low, 3), round(high, 3)], **apart}
    return rows, figures


def alone(run: Callable[[], list[float]]) -> tuple[float | None, float]:
    """Median seconds of a step (None if out of memory) and peak GiB, with the GPU to itself."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds = statistics.median(run())
    except torch.OutOfMemoryError:
        seconds = None
    return seconds, round(torch.cuda.max_memory_allocated() / 2**30, 1)


def on_gpu(steps: int, *, compiled: bool) -> tuple[list[Row], dict[str, Any]]:
    peak, rows = peak_flops(torch.device("cuda")), list[Row]()
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for name, settings in GPU_STAGES.items():
        stage = stage_of(*settings, compiled=compiled)
        unet, flops = random_network(stage), 3 * stage.data.batch_size * estimate(stage).forward_flops
        ours_s, ours_gib = alone(partial(time_ours, stage, unet, "cuda", steps))
        theirs_s, theirs_gib = alone(partial(time_theirs, stage, unet, "cuda", steps))
        ratio = round(theirs_s / ours_s, 3) if ours_s and theirs_s else None
        shares = [round(flops / step_s / peak, 3) if step_s and peak else None for step_s in (ours_s, theirs_s)]
        rows += [
            (f"{name}: step, s", ours_s, theirs_s, ratio),
            ("  share of the GPU's peak", *shares, ""),
            ("  peak GiB", ours_gib, theirs_gib, ""),
        ]
        figures[name] = {"vs_diffusers": ratio, "s": ours_s, "mfu": shares[0], "gib": ours_gib}
    return rows, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of each loop; the median is reported")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile for our blocks (takes minutes on a CPU)"
    )
    arguments = parser.parse_args()
    rows, cpu = on_cpu(arguments.steps, compiled=arguments.compile)
    figures: dict[str, Any] = {"cpu": cpu, "gpu": None, "compiled": arguments.compile}
    if torch.cuda.is_available():
        gpu_rows, figures["gpu"] = on_gpu(arguments.steps, compiled=arguments.compile)
        rows += gpu_rows
    title = "A training step beside diffusers and accelerate" + (", our blocks compiled" if arguments.compile else "")
    report(title, ("", "ours", "diffusers", "ratio"), rows, figures)


if __name__ == "__main__":
    main()
