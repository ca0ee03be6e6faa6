"""The parts that the demo's video model is built around, as they travel with the project, on shots they never saw."""

import itertools

import numpy as np
import pytest
import torch

from demo.parts import RATE_FPS, initial_image_model, load_autoencoder
from demo.small import small_frames
from demo.train import HELD_BACK_SEED
from demo.train_parts import psnr_db
from footage.corpus import corpus_specs


def unseen_frames(count: int) -> np.ndarray:
    """(N, T, H, W, 3) RGB."""
    specs = itertools.chain.from_iterable(corpus_specs(seed=HELD_BACK_SEED + i, videos=2) for i in itertools.count())
    shots = ((spec, shot) for spec in specs for shot in spec.shots)
    frames = [small_frames(spec, shot, rate_fps=RATE_FPS) for spec, shot in itertools.islice(shots, count)]
    return np.stack(frames)[..., ::-1]


@pytest.mark.slow
def test_the_autoencoder_gives_unseen_footage_back() -> None:
    assert psnr_db(load_autoencoder(), unseen_frames(8)) > 24


@pytest.mark.slow
def test_latents_have_about_unit_deviation() -> None:
    frames = torch.from_numpy(unseen_frames(24)[:, :1].copy()).movedim(-1, -3) / 127.5 - 1
    assert 0.8 < load_autoencoder().encode(frames).mean.std().item() < 1.25


@pytest.mark.slow
def test_embeddings_tell_pictures_of_a_shot_from_those_of_others() -> None:
    """The nearest embedding to that of a shot's last frame is that of its first."""
    encoder = initial_image_model().image_encoder
    assert encoder is not None
    frames = torch.from_numpy(unseen_frames(24)[:, [0, -1]].copy()).movedim(-1, -3) / 127.5 - 1
    first_NC, last_NC = (encoder(frames[:, i]) for i in (0, 1))
    nearest = torch.cdist(last_NC, first_NC).argmin(1)
    assert (nearest == torch.arange(24)).float().mean() > 0.6


def test_captions_of_different_shots_have_different_tokens() -> None:
    encoder = initial_image_model().text_encoder
    assert encoder is not None
    red, blue, red_again = encoder(
        ["a red star moves up over a green striped wall", "a blue star moves up over a green striped wall"] * 2
    )[:3]
    assert (red - blue).abs().max() > 0.1
    assert torch.equal(red, red_again)
