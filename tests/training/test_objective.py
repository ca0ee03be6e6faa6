"""Noise of each sample's own, conditions as the paper has them, and what is dropped of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from svd.clip import ImageEncoder, ImageEncoderConfig
from svd.conditioning import Ids
from svd.sampler import SeededNoise
from tests.svd.networks import randomise
from tests.training.world import Stream, tiny_model, tiny_stage
from training.objective import Objective, _ids, draw
from training.seeds import seed_of
from training.stages import overlay

Call = dict[str, Tensor]


class Recorder(nn.Module):
    """A network that remembers what it was called with, and answers with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.call: dict[str, Any] = {}

    def forward(self, x_BTCHW: Tensor, c_noise_B: Tensor, **rest: Tensor) -> Tensor:
        self.call = {"x": x_BTCHW, "c_noise": c_noise_B, **rest}
        return torch.zeros_like(x_BTCHW[:, :, :4])


def called(name: str, change: Callable[[Any], Any] = lambda stage: stage, seeds: tuple[int, ...] = (1, 2)) -> Call:
    stage = change(tiny_stage(name))
    recorder = Recorder()
    Objective(tiny_model(stage), stage)(recorder, Stream(stage).batch([0, 1]), seeds)
    return recorder.call


def dropping(context: float, concat: float) -> Callable[[Any], Any]:
    return lambda stage: overlay(stage, {"conditioning_dropout": {"context": context, "concat": concat}})


def test_a_sample_s_draws_are_its_own() -> None:
    schedule = tiny_stage().noise.build()
    like = torch.empty(3, 2, 4, 4, 6)
    together = draw(schedule, [5, 6, 7])
    alone = draw(schedule, [6])
    assert together.sigma_B[1] == alone.sigma_B[0]
    assert together.augmentation_B[1] == alone.augmentation_B[0]
    assert torch.equal(together.noise(like)[1], alone.noise(like[:1])[0])
    assert len(set(together.sigma_B.tolist())) == 3
    assert together.noise(like.double()).dtype == torch.float64
    # A resumed run draws the same, also with a later release.
    assert torch.equal(draw(schedule, [6]).noise(like[:1]), SeededNoise([seed_of(6, 1)])(like[:1]))


def test_noise_is_independent_of_the_draws_and_of_other_samples() -> None:
    like = torch.empty(2, 64)
    draws = draw(tiny_stage().noise.build(), [5, 6])
    first, second = draws.noise(like)
    of_the_draws = torch.randn(64, generator=torch.Generator().manual_seed(seed_of(5, 0)))
    for other in (second, of_the_draws, draws.noise(like)[0]):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.5
    again = draw(tiny_stage().noise.build(), [5]).sigma_B
    stream = torch.Generator().manual_seed(seed_of(5, 0))
    assert torch.equal(again, tiny_stage().noise.build().sample_sigma(1, generator=stream))


def test_latents_are_mean_plus_standard_deviation_times_noise() -> None:
    stage = tiny_stage()
    model, batch = tiny_model(stage), Stream(stage).batch([0, 1])
    assert batch.mean_BTCHW is not None
    assert batch.logvar_BTCHW is not None
    logvar_BTCHW = torch.full_like(batch.logvar_BTCHW, 2 * math.log(3))
    batch = replace(batch, logvar_BTCHW=logvar_BTCHW)
    noise = torch.full_like(batch.mean_BTCHW, 2.0)
    latents = Objective(model, stage)._latents(batch, cast("Any", lambda like: noise))
    torch.testing.assert_close(latents, model.autoencoder.config.scale_factor * (batch.mean_BTCHW + 3 * 2))


def test_each_sample_has_its_own_ids() -> None:
    batch = Stream(tiny_stage()).batch([0, 1])
    told = {"fps": [0.5, 30.0], "motion_bucket": [3.0, 250.0], "elevation": [-10.0, 20.0]}
    batch = replace(batch, **{name: torch.tensor(values) for name, values in told.items()})
    assert _ids(batch, torch.tensor([0.25, 0.5])) == [
        Ids(fps=1.0, motion_bucket=3.0, noise_augmentation=0.25, elevation=-10.0),
        Ids(fps=30.0, motion_bucket=250.0, noise_augmentation=0.5, elevation=20.0),
    ]


def test_what_is_known_of_a_sample_stays_where_it_is_read() -> None:
    """A step that reads it from a GPU would wait for all that the GPU has yet to do."""
    batch = Stream(tiny_stage()).batch([0, 1]).to("meta")
    assert batch.mean_BTCHW is not None
    assert batch.mean_BTCHW.is_meta
    assert {each.device.type for each in (batch.fps, batch.motion_bucket, batch.elevation)} == {"cpu"}


def test_draws_follow_their_distributions() -> None:
    stage = overlay(tiny_stage(), {"noise": {"p_mean": 0.7, "p_std": 1.6}})
    draws = draw(stage.noise.build(), [seed_of(0, i) for i in range(4000)])
    ln_sigma, ln_augmentation = draws.sigma_B.log(), draws.augmentation_B.log()
    assert float(ln_sigma.mean()) == pytest.approx(0.7, abs=0.1)
    assert float(ln_sigma.std()) == pytest.approx(1.6, abs=0.1)
    assert float(ln_augmentation.mean()) == pytest.approx(-3.0, abs=0.05)
    assert float(draws.share_B.mean()) == pytest.approx(0.5, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack([ln_sigma, draws.share_B]))[0, 1])) < 0.06


def test_the_loss_of_a_network_that_says_nothing_is_known() -> None:
    """With F = 0, D is c_skip x, and the weighted error has the closed form below for unit data."""
    stage = tiny_stage()
    model, stream = tiny_model(stage), Stream(stage)
    objective = Objective(model, stage)
    losses = objective(Recorder(), stream.batch(list(range(64))), [seed_of(i) for i in range(64)])
    sigma_B = losses.sigma_B
    scale = model.autoencoder.config.scale_factor
    c_skip = 1 / (sigma_B**2 + 1)
    variance = scale**2 * (1 + torch.tensor(-4.0).exp())
    expected_B = (1 + sigma_B**2) / sigma_B**2 * ((1 - c_skip) ** 2 * variance + c_skip**2 * sigma_B**2)
    assert float((losses.loss_B / expected_B).mean()) == pytest.approx(1, abs=0.05)


def test_a_text_is_the_context_and_its_absence_the_empty_text() -> None:
    tokens = Stream(tiny_stage()).batch([0, 1]).text_tokens_BNC
    assert tokens is not None
    assert torch.equal(called("tiny-video", dropping(0, 0))["context_BNC"], tokens)
    assert not called("tiny-video", dropping(1, 0))["context_BNC"].any()


def test_a_picture_is_told_twice_and_dropped_together() -> None:
    """CLIP's embedding as one token; the latent, without scale factor, beside every frame (traps of the release)."""
    whole, none = called("tiny-image-to-video", dropping(0, 0)), called("tiny-image-to-video", dropping(1, 1))
    embeddings = Stream(tiny_stage("tiny-image-to-video")).batch([0, 1]).image_embeddings_BEC
    assert embeddings is not None
    assert torch.equal(whole["context_BNC"], embeddings[:, :1])
    concat = whole["x"][:, :, 4:]
    assert concat.any()
    assert all(torch.equal(concat[:, 0], concat[:, t]) for t in range(concat.shape[1]))
    assert not none["context_BNC"].any()
    assert not none["x"][:, :, 4:].any()
    assert torch.equal(none["ids_BK"], whole["ids_BK"])


def test_one_draw_drops_both_conditions() -> None:
    """With equal shares a sample loses both or none; with others, the context alone between the two."""
    schedule, lost = tiny_stage().noise.build(), set()
    for at in range(10):
        seeds = (seed_of(at, 0), seed_of(at, 1))
        share_B = draw(schedule, seeds).share_B
        itself = share_B[0].item()  # a draw equal to the rate drops nothing
        for context, concat in ((0.5, 0.5), (0.7, 0.3), (itself, itself)):
            call = called("tiny-image-to-video", dropping(context, concat), seeds=seeds)
            dropped_context = ~call["context_BNC"].flatten(1).any(1)
            dropped_concat = ~call["x"][:, :, 4:].flatten(1).any(1)
            assert torch.equal(dropped_context, share_B < context)
            assert torch.equal(dropped_concat, share_B < concat)
            lost |= set(zip(dropped_context.tolist(), dropped_concat.tolist(), strict=True))
    assert lost == {(False, False), (True, True), (True, False)}


def test_ids_are_the_rate_less_one_the_bucket_and_the_noise_on_the_picture() -> None:
    ids = called("tiny-image-to-video")["ids_BK"]
    draws = draw(tiny_stage().noise.build(), [1, 2])
    assert ids[:, :2].tolist() == [[7.0, 127.0]] * 2
    torch.testing.assert_close(ids[:, 2], draws.augmentation_B)


def test_a_network_without_ids_is_given_none() -> None:
    assert "ids_BK" not in called("tiny-image")


def test_interpolation_is_told_of_both_ends() -> None:
    call = called("tiny-interpolation", dropping(0, 0))
    assert call["context_BNC"].shape[1] == 2
    mask = call["x"][:, :, 8]
    assert mask.flatten(2).amax(2).tolist() == [[1.0, 0.0, 1.0]] * 2


def test_pictures_among_videos_are_marked() -> None:
    stage = tiny_stage()
    recorder, batch = Recorder(), Stream(stage).batch([0, 1])
    Objective(tiny_model(stage), stage)(recorder, replace(batch, image_only=True), [1, 2])
    assert recorder.call["image_only_B"].tolist() == [True, True]
    assert recorder.call["image_only_B"].dtype == torch.bool
    Objective(tiny_model(stage), stage)(recorder, batch, [1, 2])
    assert "image_only_B" not in recorder.call


@pytest.mark.parametrize("bf16", [False, True])
def test_pixels_and_their_latents_give_the_same_loss(bf16: bool) -> None:
    """What is computed once, in float32, is what the loop would have computed, also in a bf16 step."""
    stage = tiny_stage("tiny-image-to-video")
    encoder = ImageEncoder(ImageEncoderConfig.tiny(16)).eval()
    model, batch = replace(tiny_model(stage), image_encoder=encoder), Stream(stage).batch([0, 1])
    randomise(model.unet)  # a new network answers with zeros, whatever it is told
    frames = torch.randint(256, (2, 3, 3, 32, 48), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    of_pixels = {"mean_BTCHW": None, "logvar_BTCHW": None, "ends_BECHW": None, "image_embeddings_BEC": None}
    pixels = replace(batch, frames_BTCHW=frames, **of_pixels)
    ends = frames[:, [0, -1]]
    with torch.no_grad():
        posterior = model.autoencoder.encode(frames.float() / 127.5 - 1)
        embeddings = encoder(ends.flatten(0, 1).float() / 127.5 - 1).unflatten(0, (2, 2))
    latents = replace(batch, mean_BTCHW=posterior.mean, logvar_BTCHW=posterior.logvar, ends_BECHW=ends)
    latents = replace(latents, image_embeddings_BEC=embeddings)
    objective = Objective(model, stage)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        one, other = (objective(model.unet, each, [1, 2]).loss_B for each in (pixels, latents))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def without(*names: str, **changes: Any) -> tuple[Any, Any]:
    """Objective and batch of image to video, the batch without these fields."""
    stage = tiny_stage("tiny-image-to-video")
    batch = replace(Stream(stage).batch([0, 1]), **dict.fromkeys(names), **changes)
    return Objective(tiny_model(stage), stage), batch


def test_what_a_condition_lacks_is_named() -> None:
    objective, batch = without("ends_BECHW")
    with pytest.raises(
        ValueError,
        match=r"^world/0 has latents but no end frames, which conditioning requires; cache the latents again$",
    ):
        objective(Recorder(), batch, [1, 2])
    objective, batch = without("image_embeddings_BEC")
    with pytest.raises(
        ValueError, match=r"^a model for image-to-video requires an image encoder; set model.image_encoder$"
    ):
        objective(Recorder(), batch, [1, 2])
    stage = tiny_stage()
    objective = Objective(replace(tiny_model(stage), text_encoder=None), stage)
    with pytest.raises(
        ValueError, match=r"^text dropout requires a text encoder for the empty text; set model.text_encoder$"
    ):
        objective(Recorder(), Stream(stage).batch([0, 1]), [1, 2])


def test_captions_go_through_the_text_encoder_once_and_the_empty_one_for_all_steps() -> None:
    stage = dropping(0.5, 0)(tiny_stage())
    asked: list[list[str]] = []

    def encoder(texts: list[str]) -> Tensor:
        asked.append(list(texts))
        return torch.stack([torch.full((3, 16), float(len(text) + 1), dtype=torch.float64) for text in texts])

    objective = Objective(replace(tiny_model(stage), text_encoder=encoder), stage)
    batch = replace(Stream(stage).batch([0, 1]), text_tokens_BNC=None, captions=["a", "bcd"])
    contexts = set()
    for step in range(6):
        recorder = Recorder()
        objective(recorder, batch, [2 * step, 2 * step + 1])
        assert recorder.call["context_BNC"].dtype == torch.float32
        contexts |= {tuple(each) for each in recorder.call["context_BNC"][:, 0, :1].tolist()}
    assert asked == [[""], *[["a", "bcd"]] * 6]
    assert contexts <= {(1.0,), (2.0,), (4.0,)}
    assert (1.0,) in contexts  # the empty text, not zeros


@pytest.mark.parametrize("name", ["tiny-image-to-video", "tiny-interpolation"])
def test_conditions_are_made_of_the_first_and_the_last_frame(name: str) -> None:
    """Each frame has its own brightness; of it the encoder sees the mean, the autoencoder the picture."""
    stage = dropping(0, 0)(tiny_stage(name))
    levels = torch.tensor([10, 90, 250], dtype=torch.uint8)
    frames = levels.reshape(1, 3, 1, 1, 1).expand(2, 3, 3, 32, 48)
    seen: list[float] = []

    def encoder(pictures_BCHW: Tensor) -> Tensor:
        seen.append(float(pictures_BCHW.mean()))
        return torch.zeros(2, 16)

    model = replace(tiny_model(stage), image_encoder=encoder)
    batch = replace(
        Stream(stage).batch([0, 1]), frames_BTCHW=frames, mean_BTCHW=None, logvar_BTCHW=None, ends_BECHW=None,
        image_embeddings_BEC=None,
    )  # fmt: skip
    recorder = Recorder()
    Objective(model, stage)(recorder, batch, [1, 2])
    ends = [10 / 127.5 - 1, 250 / 127.5 - 1][: 2 if name == "tiny-interpolation" else 1]
    assert seen == pytest.approx(ends)
    concat = recorder.call["x"][:, :, 4:8]
    latents = [model.autoencoder.encode_condition(torch.full((1, 1, 3, 32, 48), end))[0, 0] for end in ends]
    for i, latent in enumerate(latents):
        distance = float((concat[:, -i] - latent).square().mean())
        assert all(distance < float((concat[:, -i] - each).square().mean()) for each in latents if each is not latent)
