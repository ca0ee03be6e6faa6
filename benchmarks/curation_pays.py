"""The paper's claim in miniature (section 3.3): the same model and steps on all footage and on the selection.

    python -m benchmarks.curation_pays [--out FOLDER] [--videos N] [--seeds N] [--steps IMAGES VIDEOS] [--prompts N]

A rendered collection is full of cuts, stills, text, degraded images and wrong captions. `everything` is all of it, cut
into pieces of equal length; `selected` is what `clipmill curate` and the demo's pretraining rules keep. A tiny
text-to-video model is trained on each, on images first, with several seeds. Each generates a video for every caption of
held-out clips, which this project's scorers evaluate: see docs/curation-pays.md. Results in FOLDER are reused.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import report
from benchmarks.curation_pays_data import PROMPTED_FPS, HeldBack, held_back, write_everything, write_selected
from benchmarks.curation_pays_scores import FIGURES, score, write_videos
from demo.collection import collection
from demo.parts import FRAMES, HEIGHT_PX, UNET, WIDTH_PX, load_autoencoder, write_initial
from pipelines.cache_latents import cache_latents
from pipelines.cluster import connected
from svd.checkpoint import load_model
from svd.conditioning import Ids
from svd.tasks import Sampling, text_to_video
from training.contact_sheet import to_bytes
from training.data import loader
from training.run_stage import finished, run_stage
from training.stages import Stage, overlay

ARMS = ("everything", "selected")
COLLECTION_SEED = 11
GUIDANCE, SAMPLER_STEPS = 3.0, 16
IMAGE_STAGE, VIDEO_STAGE = "tiny-image", "tiny-text-to-video"
_AUGMENTATIONS = 3
"""Draws of frames per clip."""
_MADE_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model: its training data, seed, steps and folder."""

    folder: Path
    arm: str
    seed: int
    steps: tuple[int, int]

    @property
    def out(self) -> Path:
        return self.folder / "runs" / f"{self.arm}-{self.seed}"

    @property
    def videos(self) -> Path:
        return self.folder / "videos" / f"{self.arm}-{self.seed}"


def stage_of(name: str, *, seed: int, steps: int) -> Stage:
    """A tiny stage at the demo's size without micro-conditioning, so that only the choice of clips differs."""
    video = name == VIDEO_STAGE
    changes = {key: list(value) if isinstance(value, tuple) else value for key, value in UNET.items()}
    return overlay(
        Stage.preset(name),
        {
            "model": {"overrides": changes | {"ids": []}},
            "data": {
                "frames": FRAMES if video else 1, "height_px": HEIGHT_PX, "width_px": WIDTH_PX,
                "fps": [PROMPTED_FPS], "batch_size": 8 if video else 32, "workers": 0, "seed": seed,
            },
            "optimizer": {"lr": 1e-3, "warmup_steps": 50, "decay": "cosine", "ema": 0.995},
            "run": {
                "steps": steps, "batch_size": 8 if video else 32, "seed": seed, "log_every": 50,
                "save_every": max(1, steps // 2), "sample_every": None,
            },
        },
    )  # fmt: skip


def prepare(folder: Path, videos: int) -> dict[str, int]:
    """Write the collection, the clips of both arms, and their latents; returns the number of clips per arm."""
    footage, initial = folder / "footage", folder / "initial"
    if not (folder / "prepared.json").exists():
        with connected():
            collection(footage, videos=videos, seed=COLLECTION_SEED)
            write_everything(footage, folder / "everything")
            write_selected(footage, folder / "selected")
            write_initial(initial)
            counts = {}
            for arm in ARMS:
                for name in (IMAGE_STAGE, VIDEO_STAGE):
                    stage, latents = stage_of(name, seed=0, steps=1), folder / "latents" / f"{arm}-{name}"
                    run = cache_latents(
                        stage, str(folder / arm), latents, init=initial, augmentations_per_clip=_AUGMENTATIONS
                    )
                    counts[arm] = run.samples // _AUGMENTATIONS
        (folder / "prepared.json").write_text(json.dumps(counts))
    return dict(json.loads((folder / "prepared.json").read_text()))


def train_run(run: Run) -> Path:
    """Train both stages of a run in this process; returns the model."""
    torch.set_num_threads(1)
    model = run.folder / "initial"
    for name, steps in zip((IMAGE_STAGE, VIDEO_STAGE), run.steps, strict=True):
        out = run.out / name
        done = finished(out)
        if done is None:
            stage = stage_of(name, seed=run.seed, steps=steps)
            done = run_stage(stage, run.folder / "latents" / f"{run.arm}-{name}", out, init=model, device="cpu").model
        model = done
    return model


def make_videos(run: Run, prompts: list[str]) -> None:
    """Train, then generate a video per prompt; all models get the same noise."""
    model = load_model(train_run(run))
    if (run.videos / "done").exists():
        return
    videos = []
    for start in range(0, len(prompts), _MADE_AT_ONCE):
        texts = prompts[start : start + _MADE_AT_ONCE]
        frames_BTCHW = text_to_video(
            model,
            texts,
            [Ids(fps=PROMPTED_FPS)] * len(texts),
            seeds=range(start, start + len(texts)),
            sampling=Sampling(steps=SAMPLER_STEPS, guidance=(GUIDANCE, GUIDANCE)),
        )
        videos += [to_bytes(frames_TCHW) for frames_TCHW in frames_BTCHW]
        print(f"{run.arm}, seed {run.seed}: {len(videos)} of {len(prompts)} videos", flush=True)
    write_videos(run.videos, np.stack(videos), prompts)
    (run.videos / "done").touch()


def shown(folder: Path, arm: str, count: int) -> Path:
    """The training clips of an arm, decoded from their latents."""
    target = folder / "videos" / f"shown-{arm}"
    if not (target / "done").exists():
        stage, autoencoder = stage_of(VIDEO_STAGE, seed=0, steps=1), load_autoencoder()
        frames, captions = [], []
        for batch in loader(folder / "latents" / f"{arm}-{VIDEO_STAGE}", stage.data):
            assert batch.mean_BTCHW is not None
            with torch.no_grad():
                frames += [to_bytes(video.clamp(-1, 1)) for video in autoencoder.decode(batch.mean_BTCHW)]
            captions += batch.captions
            if len(frames) >= count:
                break
        write_videos(target, np.stack(frames[:count]), captions[:count])
        (target / "done").touch()
    return target


def measure(folder: Path, runs: list[Run], reference: HeldBack, prompts: int) -> dict[str, dict[str, float]]:
    """The figures of every run, of the training clips of both arms, and of held-out good clips."""
    held_back_videos = folder / "videos" / "kept-back"
    write_videos(held_back_videos, reference.frames, reference.captions)
    half = folder / "videos" / "other-kept-back"
    write_videos(half, reference.other_frames, reference.other_captions)
    folders = {f"{run.arm}, seed {run.seed}": run.videos for run in runs}
    folders |= {f"shown: {arm}": shown(folder, arm, prompts) for arm in ARMS}
    with connected():
        against = score(half, folder / "scores" / "other")
        scored = {
            name: score(path, folder / "scores" / path.name)
            for name, path in (folders | {"kept": held_back_videos}).items()
        }
    return {name: scores.figures(against) for name, scores in scored.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="work folder; an existing one is resumed (default: a new one)")
    parser.add_argument("--videos", type=int, default=48, help="number of good videos in the collection")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(800, 400), help="steps of the image and the video stage")
    parser.add_argument("--prompts", type=int, default=96, help="videos generated by each model")
    parser.add_argument("--processes", type=int, default=2, help="models to train in parallel, one thread each")
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="curation-pays-"))
    clips = prepare(folder, arguments.videos)
    reference = held_back(arguments.prompts)
    runs = [
        Run(folder=folder, arm=arm, seed=seed, steps=tuple(arguments.steps))
        for seed in range(arguments.seeds)
        for arm in ARMS
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        pool.map(partial(make_videos, prompts=reference.captions), runs, chunksize=1)
    measured = measure(folder, runs, reference, arguments.prompts)
    figures: dict[str, Any] = {"clips": clips}
    rows = []
    for figure, label in FIGURES.items():
        of_arms = {arm: [measured[f"{arm}, seed {seed}"][figure] for seed in range(arguments.seeds)] for arm in ARMS}
        figures[figure] = {
            arm: {"mean": statistics.mean(values), "least": min(values), "most": max(values)}
            for arm, values in of_arms.items()
        }
        spread = [
            f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in of_arms.values()
        ]
        others = [f"{measured[name][figure]:.3f}" for name in (*(f"shown: {arm}" for arm in ARMS), "kept")]
        rows.append((label, *spread, *others))
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    columns = ("", *(f"trained on {arm}" for arm in ARMS), *(f"{arm} itself" for arm in ARMS), "kept back")
    report(f"{arguments.seeds} seeds, mean and range; {arguments.prompts} videos each", columns, rows, figures)


if __name__ == "__main__":
    main()
