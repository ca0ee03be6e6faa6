"""Train the demo's CLIP and its aesthetic head from scratch on rendered footage and its captions.

    python -m demo.train_clip [--out FOLDER] [--steps N] [--clips N]

The same arguments give the same model on the same machine. The model exists to run the real pipeline; its scores are
meaningless for real videos. Sizes: B clips, V views of each, D = embed_dim, C distinct captions.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from demo.clip_check import FOLDER, report
from demo.clip_data import SIZE_PX, TRAINING_SEED, TrainingClips, training_clips

NOTICE = (
    "clipmill's demo model: trained on rendered footage only, so that demo and tests run offline. "
    "Its scores mean nothing on real videos."
)
MODEL_CFG = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": SIZE_PX, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
PREPROCESS_CFG = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

Weights = dict[str, Tensor]

_BATCH_CLIPS = 64
_WEIGHT_DECAY, _WARM_UP_STEPS = 0.05, 60
_INSTANCE_TEMPERATURE = 0.07
_AESTHETIC_WEIGHT = 0.3
_GOOD, _WORST_SEEN, _WORST = 7.0, 4.5, 1.5
_LEAST_LOSS_OF_SCORE = 1.5
_SHIFT_PX = 4
_REPORT_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings of one training stage. A stage starts from the weights of the previous one as saved."""

    steps: int
    learning_rate: float
    """Peak learning rate; it warms up and decays within the stage."""
    neighbours: int
    """Group clips with this many nearest neighbors according to the model so far; 0: group clips with the same
    background and color.
    """
    groups: int
    group_clips: int
    """Clips of a batch that come from groups; the rest are random."""
    instance_weight: float
    head_gain: float
    """The higher, the smaller the part of an embedding that encodes quality."""


STAGES = (
    Stage(
        steps=600,
        learning_rate=2e-3,
        neighbours=0,
        groups=4,
        group_clips=8,
        instance_weight=0.5,
        head_gain=10.0,
    ),
    Stage(
        steps=240,
        learning_rate=1e-3,
        neighbours=40,
        groups=4,
        group_clips=12,
        instance_weight=2.0,
        head_gain=40.0,
    ),
)


class AestheticHead(nn.Module):
    """A linear score of normalized image embeddings, from about 1 (worst) to 10; undamaged images get about 7."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self._gain = gain
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.full((1,), (_GOOD + _WORST_SEEN) / 2 / gain))

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        return self._gain * functional.linear(embeddings_BD, self.weight, self.bias).squeeze(-1)

    def plain(self) -> Weights:
        """weight (1, D) and bias (1,), float32, such that the score is `embedding @ weight.T + bias`."""
        return {"weight": self.weight.detach() * self._gain, "bias": self.bias.detach() * self._gain}

    def load_plain(self, weights: Weights) -> None:
        """The inverse of `plain`."""
        self.load_state_dict({name: value / self._gain for name, value in weights.items()})


def fit(
    clips: TrainingClips, stage: Stage, *, seed: int, start: tuple[Weights, Weights] | None = None
) -> tuple[Weights, Weights]:
    """Train the model and its head for one stage, from `start` or from random weights; returns their weights."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**MODEL_CFG)
    head = AestheticHead(MODEL_CFG["embed_dim"], stage.head_gain)  # type: ignore[arg-type]
    if start is not None:
        model.load_state_dict(start[0])
        head.load_plain(start[1])
    model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, head)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.learning_rate, total_steps=stage.steps, pct_start=min(0.3, _WARM_UP_STEPS / stage.steps)
    )
    pools = _neighbours(model, clips, stage.neighbours) if stage.neighbours else _same_places(clips)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])  # type: ignore[index]
    started_s, sums = time.monotonic(), np.zeros(3)
    for step, chosen in zip(range(1, stage.steps + 1), _batches(pools, len(clips.captions), stage, seed), strict=False):
        parts = _losses(model, head, tokenizer, clips, chosen, np.random.default_rng([seed, step]))
        loss = parts[0] + stage.instance_weight * parts[1] + _AESTHETIC_WEIGHT * parts[2]
        assert loss.isfinite(), f"the loss is {loss.item()} at step {step}"
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        sums += [part.item() for part in parts]
        if step % _REPORT_STEPS == 0:
            caption, instance, aesthetic = sums / _REPORT_STEPS
            print(
                f"step {step}/{stage.steps}, {time.monotonic() - started_s:.0f} s: "
                f"caption {caption:.3f}, instance {instance:.3f}, aesthetic {aesthetic:.3f}",
                flush=True,
            )
            sums[:] = 0
    return _stored(model.state_dict()), head.plain()


def _stored(weights: Weights) -> Weights:
    """Matrices as fp16, to save space; open_clip loads them as float32."""
    return {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in weights.items()}


def save(model: Weights, head: Weights, folder: Path) -> None:
    """Save the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"notice": NOTICE, "model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, weights in (("open_clip_model", model), ("aesthetic", head)):
        save_file(weights, folder / f"{name}.safetensors", metadata={"notice": NOTICE})


def _optimizer(model: open_clip.CLIP, head: AestheticHead) -> torch.optim.Optimizer:
    parameters = [(name, value) for name, value in model.named_parameters() if "token_embedding" not in name]
    matrices = [value for _, value in parameters if value.ndim > 1]
    others = [value for _, value in parameters if value.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": _WEIGHT_DECAY},
            {"params": [*others, model.token_embedding.weight, *head.parameters()], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )


def _same_places(clips: TrainingClips) -> list[NDArray[np.int64]]:
    place_ids = np.unique(clips.places, return_inverse=True)[1]
    return [np.flatnonzero(place_ids == place) for place in range(place_ids.max() + 1)]


def _neighbours(model: open_clip.CLIP, clips: TrainingClips, count: int) -> list[NDArray[np.int64]]:
    """For each clip, the `count` clips it is most easily confused with, by the middle and the last image."""
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        flat = [
            model.encode_image(_normalized(part.reshape(-1, *part.shape[2:])), normalize=True).float()
            for part in np.array_split(clips.originals[:, 1:], len(clips.originals) // 64 + 1)
        ]
    model.train()
    embeddings_ND = functional.normalize(torch.cat(flat).unflatten(0, (-1, 2)).mean(1), dim=-1)
    return list((embeddings_ND @ embeddings_ND.T).topk(count + 1).indices.numpy())


def _batches(pools: list[NDArray[np.int64]], number: int, stage: Stage, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless index batches (B,): groups of clips that are hard to tell apart, each from one of `pools`, and random
    ones.
    """
    rng = np.random.default_rng([seed, 1])
    large = [pool for pool in pools if len(pool) >= stage.group_clips]
    while True:
        groups = rng.choice(len(large), stage.groups, replace=False)
        alike = np.concatenate([rng.choice(large[group], stage.group_clips, replace=False) for group in groups])
        alike = alike[np.sort(np.unique(alike, return_index=True)[1])]
        others = rng.choice(np.setdiff1d(np.arange(number), alike), _BATCH_CLIPS - len(alike), replace=False)
        yield np.concatenate([alike, others])


def _losses(
    model: open_clip.CLIP,
    head: AestheticHead,
    tokenizer: open_clip.SimpleTokenizer,
    clips: TrainingClips,
    chosen: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Caption, instance and aesthetic losses."""
    size = len(chosen)
    edge, kinds = rng.choice([0, 2], size), rng.integers(0, clips.worse.shape[1], size)
    views = [
        *(clips.originals[chosen, 1], clips.originals[chosen, edge]),
        *(clips.copies[chosen, 1], clips.copies[chosen, edge]),
        clips.worse[chosen, kinds],
    ]
    shifts = rng.integers(0, 2 * _SHIFT_PX + 1, (3, 2))[[0, 0, 1, 1, 2]]
    images = torch.cat([_shifted(_normalized(view), *shift) for view, shift in zip(views, shifts, strict=True)])
    captions, caption_ids = np.unique(clips.captions[chosen], return_inverse=True)
    with torch.autocast("cpu", torch.bfloat16):
        flat = model.encode_image(images)
        texts = model.encode_text(tokenizer(captions.tolist()))
    embeddings_VBD = functional.normalize(flat.float(), dim=-1).unflatten(0, (len(views), size))
    texts_CD = functional.normalize(texts.float(), dim=-1)
    original, copy, worse = embeddings_VBD[:2].mean(0), embeddings_VBD[2:4].mean(0), embeddings_VBD[4]
    similarity = torch.cat([original, copy, worse]) @ texts_CD.T * model.logit_scale.exp()
    return (
        _caption_loss(similarity, torch.from_numpy(caption_ids).repeat(3)),
        _instance_loss(original, copy),
        _aesthetic_loss(head(embeddings_VBD[:2]), head(worse), torch.from_numpy(clips.strengths[chosen, kinds])),
    )


def _normalized(pictures_BHWC: NDArray[np.uint8]) -> Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2) / 255 - mean) / std


def _shifted(images_BCHW: Tensor, down_px: int, right_px: int) -> Tensor:
    padded = functional.pad(images_BCHW, (_SHIFT_PX,) * 4, mode="reflect")
    return padded[:, :, down_px : down_px + SIZE_PX, right_px : right_px + SIZE_PX]


def _caption_loss(similarity: Tensor, caption_ids: Tensor) -> Tensor:
    """CLIP's loss, where a caption may match several images. similarity: (images, C); own: (images,)."""
    of_picture = functional.cross_entropy(similarity, caption_ids)
    true = functional.one_hot(caption_ids, similarity.shape[1]).float()
    of_caption = functional.cross_entropy(similarity.T, (true / true.sum(0)).T)
    return (of_picture + of_caption) / 2


def _instance_loss(original_BD: Tensor, copy_BD: Tensor) -> Tensor:
    """SimCLR's loss: a clip's copy should be nearer than all other clips of the batch, in both views."""
    both = functional.normalize(torch.cat([original_BD, copy_BD]), dim=-1)
    size = len(original_BD)
    logits = (both @ both.T / _INSTANCE_TEMPERATURE).fill_diagonal_(float("-inf"))
    return functional.cross_entropy(logits, torch.arange(2 * size).roll(size))


def _aesthetic_loss(good: Tensor, worse: Tensor, strength: Tensor) -> Tensor:
    """Distance from the target score, plus a margin loss between a degraded image and its original."""
    intended = _WORST_SEEN + (_WORST - _WORST_SEEN) * strength
    near = functional.relu(_LEAST_LOSS_OF_SCORE - (good.mean(0) - worse)).mean()
    reached = functional.smooth_l1_loss(good, torch.full_like(good, _GOOD))
    return reached + functional.smooth_l1_loss(worse, intended) + near


def main() -> None:
    """Generate the training images, train, save, and print the figures on held-out clips."""
    parser = argparse.ArgumentParser(prog="python -m demo.train_clip", description="Train the demo's CLIP.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="output folder (default: the demo's)")
    parser.add_argument("--steps", type=int, nargs=len(STAGES), help="steps of each stage")
    parser.add_argument("--clips", type=int, default=5000, help="number of clips to render (default: 5000)")
    parser.add_argument("--threads", type=int, default=1, help="number of training threads (default: 1)")
    default_cache = Path(tempfile.gettempdir()) / "clipmill-clip"
    parser.add_argument("--cache", type=Path, default=default_cache, help=f"cache of rendered images ({default_cache})")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    print(f"rendering {arguments.clips} clips, unless cached in {arguments.cache}", flush=True)
    clips = training_clips(arguments.cache, clips=arguments.clips)
    weights = None
    for number, stage in enumerate(STAGES):
        steps = arguments.steps[number] if arguments.steps else stage.steps
        weights = fit(clips, replace(stage, steps=steps), seed=TRAINING_SEED + number, start=weights)
        save(*weights, arguments.out)
    report(arguments.out)


if __name__ == "__main__":
    main()
