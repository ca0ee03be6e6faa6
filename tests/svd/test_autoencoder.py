"""The autoencoder against diffusers' AutoencoderKLTemporalDecoder, and what holds for it by construction."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from svd.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from svd.keymap_autoencoder import from_layout, table, to_layout
from svd.tiling import Tiling, tiled

CONFIG = AutoencoderConfig(widths=(64, 96, 96, 96))
FRAMES = Tiling(size=64, overlap=32)
LATENTS = Tiling(size=8, overlap=4)


def theirs_of(config):
    return AutoencoderKLTemporalDecoder(
        down_block_types=["DownEncoderBlock2D"] * len(config.widths),
        block_out_channels=config.widths,
        layers_per_block=config.blocks_per_level,
        latent_channels=config.latent_channels,
    )


@pytest.fixture(scope="module")
def pair():
    """Ours and diffusers' with the same random weights: norms, biases and mixing factors as well."""
    torch.manual_seed(0)
    theirs = theirs_of(CONFIG).eval().requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        if "norm" in name or "mix_factor" in name:
            parameter.add_(0.5 * torch.randn_like(parameter))
    ours = Autoencoder(CONFIG).eval().requires_grad_(False)
    ours.load_state_dict(from_layout(theirs.state_dict(), CONFIG, "diffusers"))
    return ours, theirs


@pytest.fixture
def ours(pair):
    return pair[0]


@pytest.mark.parametrize(("videos", "frames", "height", "width"), [(1, 1, 64, 64), (2, 3, 72, 40), (1, 5, 32, 104)])
def test_encoding_equals_diffusers(pair, videos, frames, height, width):
    ours, theirs = pair
    video = torch.rand(videos, frames, 3, height, width) * 2 - 1
    posterior, expected = ours.encode(video), theirs.encode(video.flatten(0, 1)).latent_dist
    assert expected.mean.std() > 0.1
    torch.testing.assert_close(posterior.mean.flatten(0, 1), expected.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(posterior.logvar.flatten(0, 1), expected.logvar, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("videos", "frames", "height", "width"), [(1, 1, 8, 8), (2, 3, 9, 5), (1, 5, 4, 13)])
def test_decoding_equals_diffusers(pair, videos, frames, height, width):
    ours, theirs = pair
    latents = torch.randn(videos, frames, 4, height, width)
    expected = theirs.decode(latents.flatten(0, 1), num_frames=frames).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.decode(latents).flatten(0, 1), expected, atol=1e-5, rtol=0)
    expected = theirs.double().decode(latents.double().flatten(0, 1), num_frames=frames).sample
    exact = ours.double().decode(latents.double()).flatten(0, 1)
    ours.float(), theirs.float()
    torch.testing.assert_close(exact, expected, atol=1e-12, rtol=0)


def test_the_mixing_factor_weights_the_temporal_branch_and_starts_at_zero(ours):
    fresh = Autoencoder(CONFIG)
    mixes = [name for name in fresh.state_dict() if name.endswith(".mix")]
    assert len(mixes) == 2 + 4 * 3
    assert all(fresh.state_dict()[name].item() == 0 for name in mixes)

    spatial = Autoencoder(CONFIG).eval()
    spatial.load_state_dict(ours.state_dict() | {name: torch.tensor([-100.0]) for name in mixes})
    kernel = torch.zeros(3, 3, 3, 1, 1)
    kernel[:, :, 1, 0, 0] = torch.eye(3)
    spatial.decoder.time_conv_out.weight.data.copy_(kernel)
    latents = torch.randn(1, 3, 4, 5, 6)
    one_by_one = torch.cat([spatial.decode(latents[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(spatial.decode(latents), one_by_one, atol=1e-4, rtol=0)
    assert (ours.decode(latents) - one_by_one).abs().max() > 0.1


def test_parameter_counts():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig.preset("svd"))
        tiny = Autoencoder(AutoencoderConfig.preset("tiny"))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(counts.values()) == 97_742_847
    assert sum(n for name, n in counts.items() if name.startswith("encoder.")) == 34_163_592
    temporal = sum(n for name, n in counts.items() if ".temporal." in name or name.endswith(".mix"))
    assert temporal == pytest.approx(14.09e6, rel=1e-3)
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 2e6


def test_configurations_are_checked():
    assert AutoencoderConfig.preset("svd").factor == 8
    assert AutoencoderConfig.preset("tiny").factor == 4
    wider = AutoencoderConfig.preset("tiny", widths=[32, 64, 64, 64])
    assert wider.factor == 8
    assert AutoencoderConfig.from_values(wider.model_dump(), origin="test") == wider
    with pytest.raises(ValueError, match="Did you mean 'tiny'"):
        AutoencoderConfig.preset("tinny")
    with pytest.raises(ValueError, match="Did you mean 'widths'"):
        AutoencoderConfig.preset("svd", width=(32,))
    with pytest.raises(ValueError, match="multiples of groups=32"):
        AutoencoderConfig(widths=(48, 64))
    assert AutoencoderConfig(widths=(48, 64), groups=8).factor == 2


@pytest.mark.parametrize("config", [CONFIG, AutoencoderConfig(), AutoencoderConfig.preset("tiny")])
def test_names_map_one_to_one_onto_diffusers(config):
    with torch.device("meta"):
        ours, theirs = Autoencoder(config).state_dict(), theirs_of(config).state_dict()
    names = table(config, "diffusers")
    assert names.keys() == ours.keys()
    assert sorted(names.values()) == sorted(theirs)
    assert all(ours[name].shape == theirs[theirs_name].shape for name, theirs_name in names.items())


def test_names_map_one_to_one_onto_the_original_release(ours):
    names = table(AutoencoderConfig(), "original")
    assert len(set(names.values())) == len(names) == 372
    prefix = "first_stage_model."
    assert all(name.startswith(prefix) for name in names.values())
    assert {
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.downsample.conv.bias",
        "decoder.conv_out.time_mix_conv.weight",
        "decoder.conv_out.weight",
        "decoder.mid.block_2.mix_factor",
        "decoder.up.3.block.0.time_stack.in_layers.2.weight",
        "decoder.up.0.block.2.time_stack.out_layers.0.bias",
        "decoder.up.1.upsample.conv.weight",
    } <= {name.removeprefix(prefix) for name in names.values()}
    assert not any("quant_conv" in name or "up.0.upsample" in name for name in names.values())

    # diffusers' converter knows the image part of the original names, an opinion that is not ours.
    original = to_layout(ours.state_dict(), CONFIG, "original")
    image = {name: t for name, t in original.items() if not any(x in name for x in ("time_", "mix_factor"))}
    converted = convert_ldm_vae_checkpoint(image, {"down_block_types": [0] * 4, "up_block_types": [0] * 4})
    expected = {
        name.replace(".spatial_res_block", ""): tensor
        for name, tensor in to_layout(ours.state_dict(), CONFIG, "diffusers").items()
        if not any(x in name for x in ("time_", "temporal_", "quant_conv"))
    }
    assert converted.keys() == expected.keys()
    different = [name for name, tensor in converted.items() if not torch.equal(tensor, expected[name])]
    assert different == ["encoder.conv_out.weight", "encoder.conv_out.bias"]


def test_every_layout_gives_the_same_function_back(ours):
    weights = ours.state_dict()
    video = torch.rand(1, 2, 3, 32, 40) * 2 - 1
    for layout in ("diffusers", "original"):
        again = Autoencoder(CONFIG).eval()
        again.load_state_dict(from_layout(to_layout(weights, CONFIG, layout), CONFIG, layout))
        torch.testing.assert_close(again.encode(video).mean, ours.encode(video).mean, atol=1e-5, rtol=0)
    original = to_layout(weights, CONFIG, "original")
    assert original["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (96, 96, 1, 1)
    twice = to_layout(from_layout(original, CONFIG, "original"), CONFIG, "original")
    assert twice.keys() == original.keys()
    assert all(torch.equal(twice[name], tensor) for name, tensor in original.items())

    condition = to_layout(weights, CONFIG, "condition")
    encoder = from_layout(condition, CONFIG, "condition")
    assert "conditioner.embedders.3.encoder.quant_conv.weight" in condition
    assert encoder.keys() == {name for name in weights if not name.startswith("decoder.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.items())


def test_odd_layouts_are_refused(ours):
    tiny = AutoencoderConfig.preset("tiny")
    names = list(table(tiny, "diffusers").values())[2:]
    with pytest.raises(ValueError, match="2 of 295 tensors are missing"):
        from_layout(dict.fromkeys(names, torch.zeros(1)), tiny, "diffusers")
    with pytest.raises(ValueError, match="unknown layout"):
        table(CONFIG, "sgm")


@pytest.mark.slow
def test_a_chunk_is_decoded_as_if_it_were_the_video(ours):
    latents = torch.randn(2, 5, 4, 4, 6)
    whole = ours.decode(latents)
    for chunk_frames in (5, 9):
        assert torch.equal(ours.decode(latents, chunk_frames=chunk_frames), whole)
    chunked = ours.decode(latents, chunk_frames=2)
    alone = torch.cat([ours.decode(latents[1:, i : i + 2]) for i in (0, 2, 4)], dim=1)
    torch.testing.assert_close(chunked[1:], alone, atol=1e-5, rtol=0)
    assert (chunked - whole).abs().max() > 0.01

    video = torch.rand(2, 3, 3, 32, 48) * 2 - 1
    torch.testing.assert_close(ours.encode(video, chunk_frames=1).mean, ours.encode(video).mean, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_tiles_are_close_to_the_whole_and_one_tile_is_the_whole(ours):
    latents = torch.randn(1, 2, 4, 8, 20)
    whole = ours.decode(latents)
    assert torch.equal(ours.decode(latents, tiling=Tiling(size=20, overlap=4)), whole)
    tiled_frames = ours.decode(latents, tiling=LATENTS)
    assert tiled_frames.shape == whole.shape
    assert 0 < (tiled_frames - whole).square().mean() < 0.2 * whole.var()

    video = torch.rand(1, 2, 3, 64, 160) * 2 - 1
    posterior, tiled_posterior = ours.encode(video), ours.encode(video, tiling=FRAMES)
    assert torch.equal(ours.encode(video, tiling=Tiling(size=160, overlap=32)).mean, posterior.mean)
    assert 0 < (tiled_posterior.mean - posterior.mean).square().mean() < 0.2 * posterior.mean.var()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 12), st.data())
def test_tiles_cover_and_blend_without_a_seam(height, width, size, data):
    tiling = Tiling(size=size, overlap=data.draw(st.integers(1, size // 2)))
    shapes = []

    def double(x_FCHW):
        shapes.append(x_FCHW.shape[-2:])
        return 3 * x_FCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)

    picture = torch.randn(1, 2, height, width)
    result = tiled(double, picture, tiling, scale=2)
    assert set(shapes) == {(height, width) if max(height, width) <= size else (min(height, size), min(width, size))}
    torch.testing.assert_close(result, double(picture), atol=1e-5, rtol=0)
    assert shapes[0] == (height, width) or len(shapes) > 2


def test_tiles_have_whole_pixels():
    with pytest.raises(ValueError, match="multiples of 8"):
        tiled(torch.nn.Identity(), torch.zeros(1, 1, 64, 64), Tiling(size=36, overlap=8), scale=1 / 8)
    with pytest.raises(ValueError, match="half the tile"):
        Tiling(size=32, overlap=20)


def test_posterior_samples_and_mode():
    mean, logvar = torch.full((1, 1, 4, 50, 50), 2.0), torch.full((1, 1, 4, 50, 50), -1.0)
    posterior = Posterior(mean=mean, logvar=logvar)
    sample = posterior.sample(generator=torch.Generator().manual_seed(0))
    assert torch.equal(posterior.mode(), mean)
    assert sample.mean() == pytest.approx(2, abs=0.03)
    assert sample.std() == pytest.approx(torch.tensor(-0.5).exp().item(), rel=0.03)
    assert torch.equal(sample, posterior.sample(generator=torch.Generator().manual_seed(0)))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), expected.sum().reshape(1))


def test_targets_are_scaled_and_conditions_are_not(ours):
    video = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    posterior = ours.encode(video)
    assert torch.equal(ours.encode_condition(video), posterior.mean)
    target = ours.encode_target(video, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(target, 0.18215 * posterior.sample(generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(ours.decode_target(0.18215 * posterior.mean), ours.decode(posterior.mean))


def test_odd_frames_are_refused(ours):
    with pytest.raises(ValueError, match="divisible by 8, got 36 x 64"):
        ours.encode(torch.zeros(1, 1, 3, 36, 64))
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"):
        ours.encode(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"\(B, T, 4, H, W\)"):
        ours.decode(torch.zeros(1, 2, 8, 8, 8))
