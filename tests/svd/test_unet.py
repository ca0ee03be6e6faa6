"""The UNet: sizes, equality with diffusers, images among videos, and what gets a gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svd.blocks import GroupNorm, LayerNorm, Mix
from svd.config import PRESETS, UNetConfig
from svd.keymap_unet import table
from svd.unet import UNet
from tests.svd.networks import DEEP, diffusers_twin, inputs, random_unet, randomise

COUNTS = {
    "sd21": (865_910_724, 0),
    "svd": (1_524_623_082, 656_076_838),
    "svd_xt": (1_524_623_082, 656_076_838),
    "t2v": (1_524_283_882, 656_076_838),
}


@pytest.fixture(scope="module")
def unet() -> UNet:
    return random_unet()


@pytest.fixture(scope="module")
def deep_unet() -> UNet:
    """Narrow, with every level and block of the full network."""
    return random_unet(**DEEP)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_on_the_meta_device(preset: str) -> None:
    """A tensor made from a list would stay on the CPU (trap 11)."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset(preset))
    assert all(tensor.is_meta for tensor in unet.state_dict().values())
    if preset in COUNTS:
        total = sum(parameter.numel() for parameter in unet.parameters())
        temporal = sum(parameter.numel() for _, parameter in unet.temporal_layer_parameters())
        assert (total, temporal) == COUNTS[preset]
        assert len(list(unet.temporal_layer_parameters())) == (738 if temporal else 0)


def test_svd_without_ids_has_the_published_size() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset("t2v", ids=()))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 1_521_987_562


def test_a_network_from_the_meta_device_starts_as_one_built_directly() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset("tiny"))
    unet = unet.to_empty(device="cpu")
    torch.manual_seed(3)
    unet.initialise()
    torch.manual_seed(3)
    built = UNet(unet.config)
    for (name, ours), other in zip(unet.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(ours, other), name
    assert {m.factor.item() for m in unet.modules() if isinstance(m, Mix)} == {0.5}


def test_released_start_zeroes_the_last_layers() -> None:
    """Trap 4: 44 residual convolutions, 16 projections and the output in the full network; 13 * 2 + 8 + 1 here."""
    unet = UNet(UNetConfig.preset("tiny"))
    zero = {name for name, p in unet.named_parameters() if name.endswith("weight") and not p.any()}
    last = (".conv2.weight", ".project_out.weight")
    assert zero == {name for name, _ in unet.named_parameters() if name.endswith(last)} | {"conv_out.weight"}
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    assert not unet(x_BTCHW, c_noise_B, **kwargs).any()


@pytest.mark.parametrize(
    ("samples", "frames", "size", "tokens"),
    [
        (2, 4, (16, 16), 1),
        (1, 3, (11, 13), 1),
        (2, 2, (8, 24), 5),
        (1, 14, (5, 7), 1),
        (1, 1, (9, 8), 2),
        (3, 5, (5, 7), 77),
    ],
)
def test_equals_diffusers(deep_unet: UNet, samples: int, frames: int, size: tuple[int, int], tokens: int) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(deep_unet, samples, frames, size, tokens)
    with torch.no_grad():
        ours = deep_unet(x_BTCHW, c_noise_B, **kwargs)
        theirs = diffusers_twin(deep_unet)(x_BTCHW, c_noise_B, kwargs["context_BNC"], kwargs["ids_BK"]).sample
    assert ours.shape == (samples, frames, 4, *size)
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


def test_gradients_equal_diffusers(unet: UNet) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(unet, tokens=3)
    twin = diffusers_twin(unet)
    unet.zero_grad()
    unet(x_BTCHW, c_noise_B, **kwargs).square().sum().backward()
    twin(x_BTCHW, c_noise_B, kwargs["context_BNC"], kwargs["ids_BK"]).sample.square().sum().backward()
    theirs = dict(twin.named_parameters())
    names = table(unet.config, "diffusers")
    for name, parameter in unet.named_parameters():
        expected = theirs[names[name]].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-4)
    unet.zero_grad()


def test_eps_of_the_release_is_not_that_of_diffusers(unet: UNet) -> None:
    """Trap 3: with diffusers' own eps the results differ by more than rounding does."""
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    with torch.no_grad():
        ours = unet(x_BTCHW, c_noise_B, **kwargs)
        args = (x_BTCHW, c_noise_B, kwargs["context_BNC"], kwargs["ids_BK"])
        right, wrong = (diffusers_twin(unet, equal_eps=equal)(*args).sample for equal in (True, False))
    assert (ours - right).abs().max() <= 1e-5
    assert (ours - wrong).abs().max() >= 3e-5
    eps = {module.eps for name, module in unet.named_modules() if isinstance(module, GroupNorm) and "residual" in name}
    assert eps == {1e-5}


def image_network(unet: UNet) -> UNet:
    """The image network with the spatial weights of `unet`."""
    config = unet.config.replace(temporal=False)
    image = UNet(config).eval()
    image.load_state_dict({name: unet.state_dict()[name] for name in image.state_dict()})
    return image


def test_images_among_videos_go_through_the_image_network(unet: UNet) -> None:
    """Trap 5: images bit for bit, videos as if alone, in one batch."""
    x_BTCHW, c_noise_B, kwargs = inputs(unet, samples=3, tokens=2)
    image_only_B = torch.tensor([True, False, True])
    with torch.no_grad():
        mixed = unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=image_only_B)
        images = image_network(unet)(x_BTCHW, c_noise_B, **kwargs)
        all_videos = unet(x_BTCHW, c_noise_B, **kwargs)
    assert torch.equal(mixed[image_only_B], images[image_only_B])
    torch.testing.assert_close(mixed[1], all_videos[1], atol=1e-5, rtol=0)
    assert (mixed[0] - all_videos[0]).abs().max() > 0.01


def test_an_image_takes_no_nan_from_temporal_layers_and_gives_them_no_gradient() -> None:
    unet = random_unet()
    for _, parameter in unet.temporal_layer_parameters():
        nn.init.constant_(parameter, torch.nan)
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    out = unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=torch.tensor([True, False]))
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).any()
    unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=torch.tensor([True, True])).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in unet.parameters())


@pytest.mark.parametrize(("tokens", "images"), [(1, False), (1, True), (2, False), (2, True)])
def test_idle_parameters_have_no_gradient_and_do_not_decay(tokens: int, images: bool) -> None:
    """Traps 6 and 7: None, not zeros, so AdamW leaves them as they are; and all others do have a gradient."""
    unet = random_unet()
    x_BTCHW, c_noise_B, kwargs = inputs(unet, tokens=tokens)
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    optimiser = torch.optim.AdamW(unet.parameters(), lr=0.1, weight_decay=0.1)
    unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=torch.full((2,), images)).square().sum().backward()
    optimiser.step()
    idle = {name for name, _ in unet.idle_parameters(context_tokens=tokens, images=images)}
    assert {name for name, parameter in unet.named_parameters() if parameter.grad is None} == idle
    assert {name for name, parameter in unet.named_parameters() if torch.equal(parameter, before[name])} == idle
    assert bool(idle) == (tokens == 1 or images)


def test_a_mixed_batch_trains_temporal_layers_on_its_videos_alone() -> None:
    unet = random_unet()
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    parameters = [p for name, p in unet.temporal_layer_parameters() if "cross_attention" not in name]
    mixed = unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=torch.tensor([False, True])).square().sum()
    alone = unet(x_BTCHW[:1], c_noise_B[:1], **{key: value[:1] for key, value in kwargs.items()}).square().sum()
    for ours, expected in zip(
        torch.autograd.grad(mixed, parameters), torch.autograd.grad(alone, parameters), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max()) + 1e-4, rtol=1e-3)


def test_checkpointing_keeps_the_gradients_and_covers_temporal_layers() -> None:
    """Trap 10: the temporal layers run again in the backward pass."""
    unet = random_unet()
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    calls: list[str] = []
    layers = [m for name, m in unet.named_modules() if name.endswith((".temporal", ".residual.temporal"))]
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append("temporal"))
    gradients = []
    for unet.checkpointing in (False, True):
        calls.clear()
        unet.zero_grad()
        unet(x_BTCHW, c_noise_B, **kwargs).square().sum().backward()
        assert len(calls) == len(layers) * (1 + unet.checkpointing)
        gradients.append([p.grad for p in unet.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("norm", [GroupNorm(4, 16), LayerNorm(16)])
def test_norms_take_statistics_in_float32_and_keep_the_dtype(norm: nn.Module) -> None:
    """Trap 9: a large mean, which bfloat16 sums would lose; with and without autocast."""
    randomise(norm)
    shape = (2, 16, 8, 8) if isinstance(norm, GroupNorm) else (2, 64, 16)
    x = (30 + torch.randn(shape, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = norm(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = norm(x)
    in_bfloat16 = norm.to(torch.bfloat16)(x)
    for result in (under_autocast, in_bfloat16):
        assert result.dtype == torch.bfloat16
        assert (result.float() - exact).abs().max() < 0.04


def test_group_norm_is_exact_far_from_zero() -> None:
    """The CPU's kernel for channels last is off by 2e-3 here."""
    x = 30 + torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    norm = GroupNorm(32, 64)
    exact = F.group_norm(x.double(), 32)
    result = norm(x.contiguous(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result - exact).abs().max() < 5e-5


def test_autocast_stays_near_full_precision(unet: UNet) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    with torch.no_grad():
        exact = unet(x_BTCHW, c_noise_B, **kwargs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=torch.tensor([True, False]))
    assert cast.dtype == torch.bfloat16
    assert F.cosine_similarity(cast[1].float().flatten(), exact[1].flatten(), dim=0) > 0.99


def test_frames_mix_only_in_temporal_layers(unet: UNet) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(unet, samples=1, frames=4)
    changed = x_BTCHW.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        image = torch.tensor([True])
        a, b = (unet(x, c_noise_B, **kwargs, image_only_B=image) for x in (x_BTCHW, changed))
        c, d = (unet(x, c_noise_B, **kwargs) for x in (x_BTCHW, changed))
    torch.testing.assert_close(a[:, :3], b[:, :3], atol=1e-5, rtol=0)
    assert (c[:, 0] - d[:, 0]).abs().max() > 1e-3


def test_learned_mask_stands_in_for_frames_not_given() -> None:
    unet = random_unet(in_channels=9, learned_mask=True)
    x_BTCHW, c_noise_B, kwargs = inputs(unet, samples=1, frames=3, tokens=2)
    x_BTCHW[:, :, 8] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    other = x_BTCHW.clone()
    other[:, 1, 4:8] = 7
    with torch.no_grad():
        assert torch.equal(unet(x_BTCHW, c_noise_B, **kwargs), unet(other, c_noise_B, **kwargs))
        other[:, 0, 4:8] = 7
        assert not torch.equal(unet(x_BTCHW, c_noise_B, **kwargs), unet(other, c_noise_B, **kwargs))
    unet(x_BTCHW, c_noise_B, **kwargs).square().sum().backward()
    assert unet.mask_embedding.grad.abs().min() > 0


def test_attention_over_more_heads_than_a_launch_grid_takes(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    with torch.no_grad():
        whole = unet(x_BTCHW, c_noise_B, **kwargs)
        monkeypatch.setattr("svd.blocks.MAX_HEADS", 50)
        torch.testing.assert_close(unet(x_BTCHW, c_noise_B, **kwargs), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context_BNC", torch.zeros(2, 64), r"context_BNC must have shape \[2, N, 64\], got \[2, 64\]"),
        ("ids_BK", torch.zeros(2, 4), r"ids_BK must have shape \[2, 3\], got \[2, 4\]"),
        ("ids_BK", None, "ids_BK is missing; this network expects fps_id, motion_bucket, noise_augmentation"),
        ("image_only_B", torch.zeros(3, dtype=torch.bool), r"image_only_B must have shape \[2\], got \[3\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(unet: UNet, name: str, value: torch.Tensor | None, message: str) -> None:
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    with pytest.raises(ValueError, match=message):
        unet(x_BTCHW, c_noise_B, **(kwargs | {name: value}))


def test_configurations_are_checked_when_made() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'svdxt'\. Did you mean 'svd_xt'"):
        UNetConfig.preset("svdxt")
    with pytest.raises(ValueError, match=r"unknown configuration key 'width'\. Did you mean 'widths'"):
        UNetConfig.preset("tiny", width=3)
    with pytest.raises(ValueError, match="width 48 is not a multiple of the 32 groups"):
        UNetConfig(widths=(48, 64, 64, 64))
    with pytest.raises(ValueError, match="4 widths but 2 attention flags"):
        UNetConfig(attention=(True, False))
    with pytest.raises(ValueError, match="learned_mask expects in_channels=9"):
        UNetConfig(learned_mask=True)
    config = UNetConfig.preset("multiview")
    assert UNetConfig.from_values(config.model_dump(), origin="test") == config
