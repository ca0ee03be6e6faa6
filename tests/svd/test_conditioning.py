"""Conditions: each number and each latent as the released network expects it."""

import pytest
import torch

from svd.conditioning import (
    Conditioning,
    Ids,
    concat_ends,
    concat_picture,
    encode_picture,
    ids_tensor,
    image_context,
    sample_augmentation,
)
from svd.config import PRESETS
from tests.svd.models import pictures, tiny_model

IDS = Ids(fps=7, motion_bucket=127, noise_augmentation=0.02, elevation=10)


def conditioning(batch: int = 3) -> Conditioning:
    return Conditioning(
        context_BNC=torch.randn(batch, 2, 4),
        ids_BK=torch.randn(batch, 3),
        concat_BTCHW=concat_ends(torch.randn(batch, 4, 2, 2), torch.randn(batch, 4, 2, 2), 3),
    )


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("svd", [6, 127, 0.02]),
        ("t2v", [6, 127]),
        ("interpolation", [6, 127, 0.02]),
        ("multiview", [6, 127, 0.02, 10]),
    ],
)
def test_ids_are_in_the_order_of_the_network(preset, expected):
    ids = ids_tensor([IDS, Ids(fps=2)], PRESETS[preset].ids)
    assert ids is not None
    assert ids.dtype == torch.float32
    torch.testing.assert_close(ids[0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0)
    assert ids[1, :2].tolist() == [1, 127]


def test_an_image_network_takes_no_ids():
    assert ids_tensor([IDS], PRESETS["sd21"].ids) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": 0.5}, "fps must be at least 1, got 0.5"),
        ({"fps": 7, "motion_bucket": 256}, "between 0 and 255, got 256"),
        ({"fps": 7, "noise_augmentation": -1}, "at least 0, got -1"),
        ({"fps": 7, "elevation": 100}, "between -90 and 90 degrees, got 100"),
        ({"fps": float("nan")}, "got nan"),
    ],
)
def test_ids_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Ids(**values)


def test_an_unknown_id_is_named():
    with pytest.raises(ValueError, match="unknown id 'fps'"):
        ids_tensor([IDS], ["fps"])


def test_noise_augmentation_is_log_normal():
    s = sample_augmentation(100_000, generator=torch.Generator().manual_seed(0)).log()
    assert s.mean().item() == pytest.approx(-3, abs=0.01)
    assert s.std().item() == pytest.approx(0.5, abs=0.01)


@torch.inference_mode()
def test_the_picture_is_noised_in_pixels_and_its_latent_is_the_unscaled_mean():
    autoencoder = tiny_model("image-to-video").autoencoder
    frames, noise, s = pictures(2), torch.randn(2, 3, 64, 96), torch.tensor([0.0, 0.3])
    latent = encode_picture(autoencoder, frames, noise, s)
    posterior = autoencoder.encode((frames + s[:, None, None, None] * noise)[:, None])
    assert torch.equal(latent, posterior.mean[:, 0])
    alone = autoencoder.encode(frames[:1, None]).mean[:, 0]
    torch.testing.assert_close(latent[:1], alone, rtol=0, atol=1e-5)  # a batch of two may round otherwise
    target = autoencoder.encode_target(frames[:, None], generator=torch.Generator().manual_seed(0))[:, 0]
    assert autoencoder.config.scale_factor == 0.18215
    assert (latent[0] - target[0] / 0.18215).abs().max() > 0.01  # the target is a sample, times the factor
    assert (latent[0] - target[0]).abs().max() > 0.1


def test_the_picture_s_latent_stands_beside_every_frame():
    latent = torch.randn(2, 4, 3, 5)
    concat = concat_picture(latent, 6)
    assert concat.shape == (2, 6, 4, 3, 5)
    assert all(torch.equal(concat[:, t], latent) for t in range(6))


def test_interpolation_gives_first_and_last_frame_and_a_mask():
    first, last = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    concat = concat_ends(first, last, 5)
    assert concat.shape == (2, 5, 5, 3, 5)
    assert torch.equal(concat[:, 0, :4], first)
    assert torch.equal(concat[:, 4, :4], last)
    assert concat[:, :, 4].flatten(2).unique(dim=2).flatten(1).tolist() == [[1, 0, 0, 0, 1]] * 2
    assert not concat[:, 1:4].any()
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        concat_ends(first, last, 1)


def test_context_of_pictures_is_a_token_each():
    first, last = torch.randn(2, 8), torch.randn(2, 8)
    assert torch.equal(image_context(first), first[:, None])
    assert torch.equal(image_context(first, last)[:, 1], last)


def test_dropping_is_per_sample_and_per_condition():
    given = conditioning()
    left = given.drop(context_B=torch.tensor([True, False, False]), concat_B=torch.tensor([False, False, True]))
    assert not left.context_BNC[0].any()
    assert not left.concat_BTCHW[2].any()
    assert torch.equal(left.context_BNC[1:], given.context_BNC[1:])
    assert torch.equal(left.concat_BTCHW[:2], given.concat_BTCHW[:2])
    assert torch.equal(left.ids_BK, given.ids_BK)


def test_nothing_of_what_is_dropped_stays():
    given = conditioning()
    given.context_BNC[1], given.concat_BTCHW[1] = torch.nan, torch.inf
    left = given.dropped()
    assert not left.context_BNC.any()
    assert not left.concat_BTCHW.any()


def test_a_dropped_text_is_the_empty_text():
    empty = torch.randn(2, 4)
    text = Conditioning(context_BNC=torch.randn(3, 2, 4))
    left = text.drop(context_B=torch.tensor([False, True, True]), empty_NC=empty)
    assert torch.equal(left.context_BNC[0], text.context_BNC[0])
    assert torch.equal(left.context_BNC[1:], empty.expand(2, -1, -1))
    assert text.arguments().keys() == {"context_BNC"}


@torch.inference_mode()
def test_without_its_pictures_interpolation_sees_the_learned_embedding_everywhere():
    unet = tiny_model("interpolation").unet
    x, ids, context = torch.randn(1, 4, 4, 8, 12), torch.ones(1, 3), torch.randn(1, 2, 32)

    def run(first: torch.Tensor) -> torch.Tensor:
        given = Conditioning(context_BNC=context, concat_BTCHW=concat_ends(first, first, 4))
        left = given.drop(concat_B=torch.tensor([True]))
        return unet(torch.cat([x, left.concat_BTCHW], dim=2), torch.zeros(1), context_BNC=context, ids_BK=ids)

    result = run(torch.randn(1, 4, 8, 12))
    assert torch.equal(result, run(torch.randn(1, 4, 8, 12)))
    embedding = unet.mask_embedding.clone()
    try:
        unet.mask_embedding.copy_(embedding + 1)
        assert (run(torch.zeros(1, 4, 8, 12)) - result).abs().max() > 1e-3
    finally:
        unet.mask_embedding.copy_(embedding)
