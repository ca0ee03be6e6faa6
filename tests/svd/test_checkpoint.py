"""Whole models on disk: folders and files, ours and others', and errors that name what is wrong."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipmill.errors import UserError
from svd.autoencoder import AutoencoderConfig
from svd.checkpoint import load_encoder, load_model, read_config, save_model, save_original
from svd.clip import ImageEncoderConfig, TextEncoder, TextEncoderConfig
from svd.config import UNetConfig
from svd.export import export
from svd.keymap_clip import TEXT_PREFIX
from svd.model import Model, ModelConfig, Task
from svd.tensor_files import WeightsError
from tests.svd.models import tiny_model
from tests.svd.networks import randomise

TASKS: list[Task] = ["image-to-video", "text-to-video", "interpolation", "multi-view"]


def assert_same(one: Model, other: Model, *, tolerance: float = 0.0) -> None:
    assert one.config == other.config
    assert one.networks().keys() == other.networks().keys()
    for name, network in one.networks().items():
        state, expected = network.state_dict(), other.networks()[name].state_dict()
        assert state.keys() == expected.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_gives_the_model_back(tmp_path: Path, task: Task):
    save_model(tiny_model(task), tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert_same(again, tiny_model(task))
    assert not again.unet.training
    encoder = again.image_encoder or again.text_encoder
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("task", ["image-to-video", "interpolation"])
def test_an_original_file_gives_the_model_back(tmp_path: Path, task: Task):
    """The conditioner's copy of the autoencoder's encoder keeps quant_conv, so that even this is exact."""
    save_original(tiny_model(task), tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path / "model.safetensors"), tiny_model(task))


def test_an_original_text_model_differs_by_the_rounding_of_quant_conv(tmp_path: Path):
    model = tiny_model("text-to-video")
    save_original(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    frames = torch.rand(1, 2, 3, 32, 32)
    with torch.inference_mode():
        mean, expected = again.autoencoder.encode(frames).mean, model.autoencoder.encode(frames).mean
    assert (mean - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_conditioner_s_encoder_is_the_one_that_counts(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_original(tiny_model("image-to-video"), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for name in tensors:
        if name.startswith("first_stage_model.encoder."):
            tensors[name] = tensors[name] + 1
    tensors["conditioner.embedders.3.encoder.decoder.conv_in.weight"] = torch.zeros(1)
    tensors["conditioner.embedders.0.open_clip.model.token_embedding.weight"] = torch.zeros(1)
    save_file(tensors, path, metadata)
    assert_same(load_model(path), tiny_model("image-to-video"))


def test_a_folder_of_diffusers_alone_is_read(tmp_path: Path):
    model = tiny_model("image-to-video")
    export(model, tmp_path / "model", format="diffusers")
    (tmp_path / "model" / "clipmill.json").unlink()
    again = load_model(tmp_path / "model")
    assert again.config == ModelConfig(**{**vars(model.config), "width_px": 1024, "height_px": 576})
    assert torch.equal(again.unet.conv_in.weight, model.unet.conv_in.weight)


def test_of_several_precisions_the_plain_one_is_read(tmp_path: Path):
    save_model(tiny_model("image-to-video"), tmp_path / "model")
    unet = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same(load_model(tmp_path / "model"), tiny_model("image-to-video"))


def test_weights_are_converted(tmp_path: Path):
    save_model(tiny_model("image-to-video"), tmp_path / "model", dtype=torch.bfloat16)
    again = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for network in again.networks().values() for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("preset", "ids"), [("svd", 768), ("multiview", 1024), ("interpolation", 768), ("t2v", 512), ("sd21", None)]
)
def test_a_released_file_is_known_by_its_inputs(tmp_path: Path, preset: str, ids: int | None):
    unet = UNetConfig.preset(preset)
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, unet.in_channels, 3, 3)}
    if ids:
        tensors["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(1280, ids)
    save_file(tensors, tmp_path / "svd.safetensors")
    config = read_config(tmp_path / "svd.safetensors")
    assert config == ModelConfig.preset(unet)
    assert config.unet == unet


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", TEXT_PREFIX])
def test_the_text_tower_of_stable_diffusion_stops_at_the_penultimate_layer(tmp_path: Path, prefix: str):
    """A whole text tower of open_clip, three layers, as its file holds it; ours takes two and the final norm."""
    whole = open_clip.transformer.TextTransformer(width=32, heads=2, layers=3, mlp_ratio=2, output_dim=16).eval()
    randomise(whole)
    state = {prefix + name: tensor for name, tensor in whole.state_dict().items()}
    state[f"{prefix}logit_scale"] = torch.zeros(())
    save_file(state, tmp_path / "v2-1.safetensors")
    ours = load_encoder(tmp_path / "v2-1.safetensors", TextEncoderConfig.tiny(32))
    assert isinstance(ours, TextEncoder)
    ids = ours.tokenizer(["a kite"])
    x = whole.token_embedding(ids) + whole.positional_embedding
    for layer in whole.transformer.resblocks[:-1]:
        x = layer(x, attn_mask=whole.attn_mask)
    expected = whole.ln_final(x)
    assert (ours(["a kite"]) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_towers_of_old_and_new_transformers_are_read(tmp_path: Path, prefix: str):
    save_model(tiny_model("text-to-video"), tmp_path / "model")
    path = tmp_path / "model" / "text_encoder" / "model.safetensors"
    tensors = {prefix + name.removeprefix("text_model."): each for name, each in load_file(path).items()}
    save_file({**tensors, f"{prefix}embeddings.position_ids": torch.arange(77)}, path)
    assert_same(load_model(tmp_path / "model"), tiny_model("text-to-video"))


def test_export_writes_what_the_format_can_hold(tmp_path: Path):
    model = tiny_model("interpolation")
    with pytest.raises(ValueError, match="image-to-video only, got a model for interpolation"):
        export(model, tmp_path / "a", format="diffusers")
    with pytest.raises(ValueError, match="unknown format 'peft'; known: diffusers, original"):
        export(model, tmp_path / "a", format="peft")
    assert export(model, tmp_path / "a", format="original") == tmp_path / "a" / "model.safetensors"
    with pytest.raises(FileExistsError, match="not empty"):
        export(model, tmp_path / "a", format="original")


def test_what_diffusers_cannot_build_is_kept_and_not_exported(tmp_path: Path):
    """Few groups, one block per level: our own folder holds them, without a JSON that diffusers would misread."""
    config = ModelConfig(
        unet=UNetConfig.preset("tiny", groups=8),
        autoencoder=AutoencoderConfig(widths=(16, 32), blocks_per_level=1, groups=4),
        image_encoder=ImageEncoderConfig.tiny(64),
        width_px=32,
        height_px=32,
    )
    model = Model.build(config)
    save_model(model, tmp_path / "model")
    assert_same(load_model(tmp_path / "model"), model)
    written = {path.relative_to(tmp_path / "model").as_posix() for path in tmp_path.glob("model/**/*.json")}
    assert not written & {"vae/config.json", "unet/config.json", "model_index.json"}
    with pytest.raises(ValueError, match="32 normalization groups"):
        export(model, tmp_path / "out", format="diffusers")
    assert export(model, tmp_path / "out", format="original").is_file()


@pytest.mark.slow
def test_errors_name_what_is_wrong(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a model folder"):
        read_config(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"expected unet/config\.json or clipmill\.json"):
        read_config(tmp_path)
    (tmp_path / "clipmill.json").write_text("[]")
    with pytest.raises(ValueError, match=r"clipmill\.json must contain a JSON object, got list"):
        read_config(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="has 1 tensors but neither a UNet"):
        read_config(tmp_path / "a.safetensors")
    save_model(tiny_model("image-to-video"), tmp_path / "model")
    (tmp_path / "model" / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="image_encoder"):
        load_model(tmp_path / "model")
    tensors = tmp_path / "model" / "image_encoder" / "model.safetensors"
    save_file({"visual_projection.weight": torch.zeros(3, 3)}, tensors)
    with pytest.raises(WeightsError, match=r"39 missing .*1 with the wrong shape \(first: visual_projection\.weight"):
        load_model(tmp_path / "model")


def test_a_configuration_survives_json_and_has_to_fit_together():
    for task in TASKS:
        config = tiny_model(task).config
        assert ModelConfig.from_values(json.loads(json.dumps(config.model_dump())), origin="test") == config
        assert config.task == task
    unet = UNetConfig.preset("svd")
    with pytest.raises(ValueError, match="context width 1024, ImageEncoderConfig has 512"):
        ModelConfig(unet=unet, autoencoder=AutoencoderConfig(), image_encoder=ImageEncoderConfig(embedding_width=512))
    with pytest.raises(ValueError, match="latents with 4 channels, but the autoencoder expects 8"):
        ModelConfig(unet=unet, autoencoder=AutoencoderConfig(latent_channels=8))
    with pytest.raises(ValueError, match="divisible by 8, got 1020x576"):
        ModelConfig(unet=unet, autoencoder=AutoencoderConfig(), width_px=1020)
    with pytest.raises(UserError, match="unknown configuration key 'vae'"):
        ModelConfig.from_values({"unet": {}, "vae": {}}, origin="test")
    with pytest.raises(UserError, match="autoencoder: Field required"):
        ModelConfig.from_values({"unet": {}}, origin="test")
