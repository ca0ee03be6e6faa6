"""The training step against its definition: learning rate, clipping, AdamW, the average, and what is exported."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from svd.checkpoint import load_model
from svd.clip import CachedTexts, ImageEncoder, ImageEncoderConfig
from svd.lora import load_lora
from svd.model import Model
from tests.svd.networks import randomise
from tests.training.shards import sample, video, write_shard
from tests.training.world import Stream, tiny_model, tiny_stage
from training.distributed import Process, leave
from training.loop import Hooks, run_loop
from training.objective import Objective
from training.run_stage import run_stage
from training.seeds import seed_of
from training.stages import Stage, overlay

Weights = dict[str, torch.Tensor]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(model: Model) -> Weights:
    """A copy of what trains."""
    return {name: each.detach().clone() for name, each in model.unet.named_parameters() if each.requires_grad}


class Recorder:
    """A hook that keeps the weights after each step."""

    def __init__(self, model: Model) -> None:
        self.model, self.steps = model, list[Weights]()

    def __call__(self, record: Mapping[str, Any]) -> None:
        assert record["step"] == len(self.steps) + 1
        self.steps.append(weights(self.model))


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_learning_rate_follows_the_schedule(decay: str, tmp_path: Path, process: Process) -> None:
    """Linear over 4 steps, then constant, or half a cosine over the 8 that are left."""
    optimizer = {"lr": 2e-3, "warmup_steps": 4, "decay": decay}
    stage = overlay(tiny_stage("tiny-noise-swap", steps=12), {"optimizer": optimizer})
    run_loop(stage, tiny_model(stage), Stream(stage), tmp_path, process)
    rise = [2e-3 * step / 4 for step in (1, 2, 3, 4)]
    fall = [2e-3 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    expected = rise + (fall if decay == "cosine" else [2e-3] * 8)
    assert [record["lr"] for record in records(tmp_path)] == pytest.approx(expected)


def gradients(model: Model, stage: Stage, step: int) -> Weights:
    """Of the mean loss of a step's samples, by a copy of the network."""
    unet = copy.deepcopy(model.unet).train().requires_grad_(True)
    batch = Stream(stage).batch([2 * step, 2 * step + 1])
    seeds = [seed_of(stage.run.seed, step, i) for i in range(2)]
    Objective(model, stage)(unet, batch, seeds).loss_B.mean().backward()
    return {name: each.grad for name, each in unet.named_parameters() if each.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_two_updates_are_those_of_adamw_after_clipping(clip_norm: float, tmp_path: Path, process: Process) -> None:
    """A large eps, so that an update depends on how large a gradient is; the first step's rate is half of the second's.

    m = 0.8 m + 0.2 g, v = 0.9 v + 0.1 g^2, both divided by 1 - beta^n; w = (1 - lr decay) w - lr m / (sqrt(v) + eps).
    """
    lr, eps, decay = 0.1, 0.5, 0.3
    optimizer = {"lr": lr, "eps": eps, "betas": [0.8, 0.9], "weight_decay": decay, "warmup_steps": 2, "ema": None}
    stage = overlay(tiny_stage(steps=2), {"optimizer": {**optimizer, "clip_norm": clip_norm}})
    model = tiny_model(stage)
    randomise(model.unet)
    reference = copy.copy(model)
    reference.unet = copy.deepcopy(model.unet)
    recorder = Recorder(model)
    run_loop(stage, model, Stream(stage), tmp_path, process, hooks=Hooks(on_log=recorder))
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for step in (0, 1):
        gradient = gradients(reference, stage, step)
        norm = torch.stack([each.square().sum() for each in gradient.values()]).sum().sqrt()
        assert records(tmp_path)[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        rate = lr * (step + 1) / 2
        with torch.no_grad():
            for name, parameter in reference.unet.named_parameters():
                g = gradient[name] * min(1.0, clip_norm / float(norm))
                m, v = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
                moments[name] = m, v
                parameter.mul_(1 - rate * (decay if parameter.ndim > 1 else 0.0))
                root = (v / (1 - 0.9 ** (step + 1))).sqrt()
                parameter.sub_(rate * m / (1 - 0.8 ** (step + 1)) / (root + eps))
        for name, parameter in reference.unet.named_parameters():
            torch.testing.assert_close(recorder.steps[step][name], parameter.detach(), rtol=1e-4, atol=1e-6)
    assert norm > 0.1


def averages(start: Weights, steps: list[Weights], decay: float) -> Weights:
    """The recurrence: a = d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after step n."""
    average = dict(start)
    for n, after in enumerate(steps, 1):
        share = min(decay, (1 + n) / (10 + n))
        average = {name: share * average[name] + (1 - share) * after[name] for name in average}
    return average


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.4, 0.9999])
def test_the_average_of_thirty_steps_is_what_the_network_holds_at_the_end(
    decay: float, tmp_path: Path, process: Process
) -> None:
    stage = overlay(tiny_stage("tiny-noise-swap", steps=30), {"optimizer": {"lr": 0.01, "ema": decay}})
    model = tiny_model(stage)
    randomise(model.unet)
    model.unet.requires_grad_(False).noise_embedding.requires_grad_(True)
    start, recorder = weights(model), Recorder(model)
    run_loop(stage, model, Stream(stage), tmp_path, process, hooks=Hooks(on_log=recorder))
    held, expected = weights(model), averages(start, recorder.steps, decay)
    assert len(recorder.steps) == 30
    for name, value in held.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, recorder.steps[-1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.4, None])
@pytest.mark.parametrize("name", ["tiny-video", "tiny-camera-motion"])
def test_the_exported_weights_are_the_average_where_there_is_one(name: str, ema: float | None, tmp_path: Path) -> None:
    """Those of a model folder, and the adapters of a LoRA stage (B alone, which begins at zero; A is drawn)."""
    clip = video(24)
    write_shard(tmp_path / "clips.tar", [sample(f"{i}", clip) for i in range(4)])
    settings = {"data": {"workers": 0, "fps": 8}, "optimizer": {"lr": 0.01, "ema": ema}, "run": {"save_every": 9}}
    stage = overlay(tiny_stage(name, steps=9), settings)
    model = tiny_model(stage)
    randomise(model.unet)
    model.text_encoder = CachedTexts({text: torch.full((3, 16), 0.5) for text in ("", "a bar code")})
    model.image_encoder = ImageEncoder(ImageEncoderConfig.tiny(16)).eval().requires_grad_(False)
    start, recorder = weights(model), Recorder(model)
    try:
        finished = run_stage(
            stage, tmp_path / "clips.tar", tmp_path / "run", model=model, device="cpu", on_log=recorder
        )
    finally:
        leave()
    if stage.model.trainable == "lora":
        fresh = tiny_model(stage).unet
        load_lora(fresh, finished.model)
        exported = {key: each for key, each in fresh.named_parameters() if "lora_B" in key}
        start = {key: torch.zeros_like(value) for key, value in exported.items()}
    else:
        exported = dict(load_model(finished.model).unet.named_parameters())
    assert exported
    assert exported.keys() == start.keys()
    steps = [{key: each[key] for key in start} for each in recorder.steps]
    expected = steps[-1] if ema is None else averages(start, steps, ema)
    for key, value in exported.items():
        torch.testing.assert_close(value.detach(), expected[key], rtol=1e-4, atol=1e-5)
    raw = [torch.allclose(value, steps[-1][key], rtol=1e-3, atol=1e-4) for key, value in exported.items()]
    assert all(raw) == (ema is None)
