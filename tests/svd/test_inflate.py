"""An image network becomes a video network, and each stage's network the next one's, without changing what it says."""

from typing import Any

import pytest
import torch

from svd.inflate import TemporalInit, inflate
from svd.unet import UNet
from tests.svd.networks import inputs, random_unet

IMAGE: dict[str, Any] = {"in_channels": 4, "ids": (), "temporal": False}
VIDEO: dict[str, Any] = {"in_channels": 4, "ids": ("fps_id", "motion_bucket"), "temporal": True}


def grown(unet: UNet, changes: dict[str, Any], temporal_init: TemporalInit = "identity") -> UNet:
    torch.manual_seed(5)
    return inflate(unet, unet.config.replace(**changes), temporal_init=temporal_init).eval()


@pytest.mark.parametrize("temporal_init", ["identity", "released"])
def test_images_come_out_bit_for_bit_as_from_the_image_network(temporal_init: TemporalInit) -> None:
    image = random_unet(**IMAGE)
    video = grown(image, VIDEO, temporal_init)
    x_BTCHW, c_noise_B, kwargs = inputs(video, tokens=3)
    only = torch.tensor([True, True])
    with torch.no_grad():
        expected = image(x_BTCHW, c_noise_B, context_BNC=kwargs["context_BNC"])
        assert torch.equal(video(x_BTCHW, c_noise_B, **kwargs, image_only_B=only), expected)
    assert expected.std() > 0.1


def test_identity_start_gives_every_frame_of_a_video_as_the_image_network() -> None:
    """Trap 4: with the released initialization it does not, because a new temporal transformer is not the identity."""
    image = random_unet(**IMAGE)
    x_BTCHW, c_noise_B, kwargs = inputs(grown(image, VIDEO), frames=4, tokens=3)
    with torch.no_grad():
        expected = image(x_BTCHW, c_noise_B, context_BNC=kwargs["context_BNC"])
        assert torch.equal(grown(image, VIDEO, "identity")(x_BTCHW, c_noise_B, **kwargs), expected)
        released = grown(image, VIDEO, "released")(x_BTCHW, c_noise_B, **kwargs)
    assert (released - expected).abs().max() > 0.01


def test_identity_start_can_leave_the_identity() -> None:
    """Every temporal branch receives a gradient at the first step, and frames differ after it."""
    image = random_unet(**IMAGE)
    video = grown(image, VIDEO)
    x_BTCHW, c_noise_B, kwargs = inputs(video, frames=4, tokens=3)
    video(x_BTCHW, c_noise_B, **kwargs).square().mean().backward()
    last = (".narrow.weight", "attention.out.weight", "frame_embedding.2.weight", ".conv2.weight")
    temporal = [(name, p) for name, p in video.named_parameters() if ".temporal." in name and name.endswith(last)]
    assert len(temporal) == 5 * 4 + 8
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in temporal)
    torch.optim.SGD(video.parameters(), lr=1.0).step()
    only = torch.tensor([True, True])
    with torch.no_grad():
        difference = video(x_BTCHW, c_noise_B, **kwargs) - video(x_BTCHW, c_noise_B, **kwargs, image_only_B=only)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 8},
        {"ids": ("fps_id", "motion_bucket", "noise_augmentation")},
        {"in_channels": 9, "learned_mask": True},
    ],
)
def test_new_inputs_change_nothing_at_the_start(changes: dict[str, Any]) -> None:
    base = random_unet(**VIDEO)
    larger = grown(base, changes)
    x_BTCHW, c_noise_B, kwargs = inputs(larger, tokens=2)
    old = {"context_BNC": kwargs["context_BNC"], "ids_BK": kwargs["ids_BK"][:, :2]}
    with torch.no_grad():
        expected = base(x_BTCHW[:, :, :4], c_noise_B, **old)
        torch.testing.assert_close(larger(x_BTCHW, c_noise_B, **kwargs), expected, atol=1e-5, rtol=0)


def test_dtype_is_kept_and_the_source_untouched() -> None:
    image = random_unet(**IMAGE).bfloat16()
    before = {name: tensor.clone() for name, tensor in image.state_dict().items()}
    video = grown(image, VIDEO)
    assert {parameter.dtype for parameter in video.parameters()} == {torch.bfloat16}
    for parameter in video.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in image.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ("motion_bucket", "fps_id")}, "ids must start with the existing"),
        ({"temporal": False}, "lacks .* tensors of the source, first: down.0"),
        ({"context_width": 32}, r"cross_attention.k.weight from \(32, 64\) to \(32, 32\)"),
    ],
)
def test_what_is_no_extension_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grown(random_unet(**VIDEO), changes)
