"""Autoencoders in safetensors files: read by diffusers, read back, and refused when they do not fit."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file

from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.tensor_files import WeightsError
from svd.weights_autoencoder import load_autoencoder, save_autoencoder

CONFIG = AutoencoderConfig(widths=(32, 32))


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(CONFIG).eval().requires_grad_(False)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_file_gives_the_autoencoder_back(autoencoder, tmp_path, layout):
    path = tmp_path / "vae.safetensors"
    save_autoencoder(autoencoder, path, layout=layout)
    if layout == "original":
        save_file(load_file(path) | {"model.diffusion_model.other": torch.ones(1)}, path)
    again = load_autoencoder(path, CONFIG, layout=layout)
    video, latents = torch.rand(1, 2, 3, 16, 16), torch.randn(1, 2, 4, 8, 8)
    torch.testing.assert_close(again.encode(video).mean, autoencoder.encode(video).mean, atol=1e-5, rtol=0)
    assert torch.equal(again.decode(latents), autoencoder.decode(latents))
    assert (
        load_autoencoder(path, CONFIG, layout=layout, dtype=torch.bfloat16).decoder.conv_in.weight.dtype
        is torch.bfloat16
    )


def test_diffusers_reads_what_is_written(autoencoder, tmp_path):
    theirs = AutoencoderKLTemporalDecoder(
        down_block_types=["DownEncoderBlock2D"] * 2, block_out_channels=(32, 32), layers_per_block=2
    )
    theirs.save_config(tmp_path)
    save_autoencoder(autoencoder, tmp_path / "diffusion_pytorch_model.safetensors", layout="diffusers")
    loaded, info = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    latents = torch.randn(1, 2, 4, 8, 8)
    expected = loaded.decode(latents[0], num_frames=2).sample
    torch.testing.assert_close(autoencoder.decode(latents)[0], expected, atol=1e-5, rtol=0)


def test_a_file_that_does_not_fit_is_refused(autoencoder, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_autoencoder(autoencoder, path, layout="diffusers")
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"] = torch.zeros(1)
    tensors["decoder.conv_im.bias"] = tensors.pop("decoder.conv_in.bias")
    save_file(tensors, path)
    expected = (
        r"1 missing \(first: decoder.conv_in.bias\); 1 unexpected \(first: decoder.conv_im.bias\); "
        r"1 with the wrong shape \(first: decoder.conv_in.weight is \(1,\), expected \(32, 4, 3, 3\)\)"
    )
    with pytest.raises(WeightsError, match=expected):
        load_autoencoder(path, CONFIG, layout="diffusers")
