"""The CLIP that travels with the project does its job on rendered clips that it was not trained on."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from safetensors.torch import load_file

from demo.clip_check import (
    COPIES,
    FOLDER,
    HELD_BACK_SEED,
    DemoClip,
    Floats,
    HeldBack,
    caption_ranks,
    clip_embeddings,
    decoded,
    degradations,
    duplicates,
    held_back,
)
from demo.clip_data import TRAINING_SEED
from footage.altered import DEGRADATIONS
from footage.corpus import corpus_specs
from footage.timeline import Cut, VideoSpec

pytestmark = pytest.mark.slow

VIDEOS = 18
TESTED_COPIES = ("low bitrate", "half the size", "cropped by 5 %", "with a logo")
THRESHOLD = 0.88


def quick(spec: VideoSpec) -> VideoSpec:
    """The same scenes in few frames: shots of one second, hard cuts."""
    fps = Fraction(4)
    shots = tuple(
        replace(shot, duration_s=1.0, flash_at_s=None, speed_px=shot.speed_px * float(spec.fps / fps))
        for shot in spec.shots
    )
    return replace(
        spec, shots=shots, cuts=(Cut(),) * (len(shots) - 1), opening=None, ending=None, fps=fps, variable_fps=False
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> HeldBack:
    specs = [quick(spec) for spec in corpus_specs(seed=HELD_BACK_SEED, videos=VIDEOS)]
    changes = {**degradations(), **{name: COPIES[name] for name in TESTED_COPIES}}
    return held_back(specs, changes, tmp_path_factory.mktemp("held-back"), look=decoded)


@pytest.fixture(scope="module")
def model() -> DemoClip:
    return DemoClip()


@pytest.fixture(scope="module")
def embedded(model: DemoClip, clips: HeldBack) -> dict[str, Floats]:
    """(N, 3, D) embeddings of the originals, by "", and of each altered copy, by its name."""
    return {name: model.embed_images(pictures) for name, pictures in {"": clips.originals, **clips.altered}.items()}


def test_it_is_small_and_says_what_it_is() -> None:
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size <= 8_000_000
    notice = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))["notice"]
    assert "demo model" in notice
    assert "rendered footage only" in notice
    assert "mean nothing on real videos" in notice


def test_training_and_held_back_footage_share_no_seed() -> None:
    assert 1_000 < TRAINING_SEED < HELD_BACK_SEED


def test_the_head_fits_the_model() -> None:
    config = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    head = load_file(FOLDER / "aesthetic.safetensors")
    assert tuple(head["weight"].shape) == (1, config["model_cfg"]["embed_dim"])
    assert tuple(head["bias"].shape) == (1,)
    assert {str(tensor.dtype) for tensor in head.values()} == {"torch.float32"}


def test_the_right_caption_is_first_among_sixteen(
    model: DemoClip, clips: HeldBack, embedded: dict[str, Floats]
) -> None:
    assert len(clips.captions) >= 60
    ranks = caption_ranks(embedded[""], model.embed_captions(clips.captions), clips.captions)
    assert (ranks == 0).mean() >= 0.8


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degraded_copy_scores_lower(kind: str, model: DemoClip, embedded: dict[str, Floats]) -> None:
    assert (model.aesthetic(embedded[kind]) < model.aesthetic(embedded[""])).mean() >= 0.9


def test_degraded_clips_fall_into_the_lowest_quarter(model: DemoClip, embedded: dict[str, Floats]) -> None:
    scores = model.aesthetic(embedded[""])
    for i, kind in enumerate(DEGRADATIONS):  # a fifth of the corpus, one kind after the other
        scores[5 * i :: 20] = model.aesthetic(embedded[kind])[5 * i :: 20]
    is_degraded = np.arange(len(scores)) % 5 == 0
    assert (scores[is_degraded] <= np.quantile(scores, 0.25)).mean() >= 0.95


def test_copies_are_nearer_than_other_scenes(embedded: dict[str, Floats]) -> None:
    copies = np.stack([clip_embeddings(embedded[name]) for name in TESTED_COPIES])
    figures = duplicates(clip_embeddings(embedded[""]), copies, THRESHOLD)
    assert figures.copies_found >= 0.95
    assert figures.pairs_apart >= 0.998
    assert figures.clips_apart >= 0.95
