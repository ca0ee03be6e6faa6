"""Files of weights: names one to one, every layout and sharding back again, and what a wrong file is told."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file

from svd.config import PRESETS, UNetConfig
from svd.keymap_unet import Layout, diffusers_config, table
from svd.tensor_files import Stored, WeightsError, write_tensors
from svd.unet import UNet
from svd.weights import load, load_unet, save_unet
from tests.svd.networks import inputs, random_unet

LAYOUTS: tuple[Layout, ...] = ("clipmill", "original", "diffusers")


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_are_one_to_one_and_name_every_tensor(preset: str, layout: Layout) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset(preset))
    names = table(unet.config, layout)
    assert set(names) == set(unet.state_dict())
    assert len(set(names.values())) == len(names)


def test_all_1428_names_are_those_of_diffusers_with_their_shapes() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset("svd"))
        theirs = shapes(UNetSpatioTemporalConditionModel())
    names = table(unet.config, "diffusers")
    assert len(theirs) == 1428
    assert {names[name]: shape for name, shape in shapes(unet).items()} == theirs


def test_image_network_is_what_diffusers_makes_of_the_original_names() -> None:
    """Diffusers' own converter reads our original layout of Stable Diffusion 2.1, and arrives at our diffusers one."""
    config = UNetConfig.preset("sd21", widths=(32, 64, 64, 64), head_width=16, context_width=24)
    unet = UNet(config)
    theirs = UNet2DConditionModel(
        block_out_channels=config.widths, cross_attention_dim=24, attention_head_dim=(2, 4, 4, 4),
        use_linear_projection=True,
    )  # fmt: skip
    original, diffusers = table(config, "original"), table(config, "diffusers")
    state = unet.state_dict()
    converted = convert_ldm_unet_checkpoint({original[name]: tensor for name, tensor in state.items()}, theirs.config)
    assert converted.keys() == theirs.state_dict().keys()
    for name, tensor in state.items():
        assert converted[diffusers[name]] is tensor or torch.equal(converted[diffusers[name]], tensor), name


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("noise_embedding.2.weight", "time_embed.2.weight"),
        ("ids_embedding.0.bias", "label_emb.0.0.bias"),
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("down.0.blocks.1.residual.spatial.conv1.weight", "input_blocks.2.0.in_layers.2.weight"),
        ("down.0.resample.bias", "input_blocks.3.0.op.bias"),
        ("down.1.blocks.0.residual.spatial.skip.weight", "input_blocks.4.0.skip_connection.weight"),
        ("down.3.blocks.1.residual.temporal.norm2.weight", "input_blocks.11.0.time_stack.out_layers.0.weight"),
        ("middle.blocks.0.transformer.project_in.weight", "middle_block.1.proj_in.weight"),
        ("middle.blocks.1.residual.mix.factor", "middle_block.2.time_mixer.mix_factor"),
        ("up.0.resample.weight", "output_blocks.2.1.conv.weight"),
        ("up.1.resample.weight", "output_blocks.5.2.conv.weight"),
        ("up.3.blocks.2.transformer.mix.factor", "output_blocks.11.1.time_mixer.mix_factor"),
        (
            "up.2.blocks.0.transformer.temporal.cross_attention.q.weight",
            "output_blocks.6.1.time_stack.0.attn2.to_q.weight",
        ),
        (
            "up.2.blocks.1.transformer.temporal.feed_forward_in.narrow.bias",
            "output_blocks.7.1.time_stack.0.ff_in.net.2.bias",
        ),
        ("up.1.blocks.0.transformer.temporal.frame_embedding.2.bias", "output_blocks.3.1.time_pos_embed.2.bias"),
        ("norm_out.weight", "out.0.weight"),
    ],
)
def test_original_names(ours: str, original: str) -> None:
    assert table(UNetConfig.preset("svd"), "original")[ours] == f"model.diffusion_model.{original}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard_bytes", [None, 200_000])
def test_files_return_the_same_weights(tmp_path: Path, layout: Layout, shard_bytes: int | None) -> None:
    unet = random_unet()
    files = save_unet(unet, tmp_path / "unet.safetensors", layout=layout, shard_bytes=shard_bytes)
    assert (len(files) > 5) == (shard_bytes is not None)
    for source in (tmp_path, files[-1]):
        loaded = load_unet(source, unet.config)
        for (name, ours), other in zip(unet.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(ours, other), name
    x_BTCHW, c_noise_B, kwargs = inputs(unet)
    assert torch.equal(loaded.eval()(x_BTCHW, c_noise_B, **kwargs), unet(x_BTCHW, c_noise_B, **kwargs))


def test_files_are_what_the_library_reads_and_writes(tmp_path: Path) -> None:
    unet = random_unet()
    unet.conv_in.to(memory_format=torch.channels_last)
    [file] = save_unet(unet, tmp_path / "unet.safetensors", layout="diffusers", dtype=torch.bfloat16)
    stored = load_file(file)
    names = table(unet.config, "diffusers")
    for name, tensor in unet.state_dict().items():
        assert torch.equal(stored[names[name]], tensor.bfloat16()), name
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "theirs.safetensors")
    loaded = load_unet(tmp_path / "theirs.safetensors", unet.config)
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [None, 300_000])
def test_diffusers_loads_our_folder_and_we_load_theirs(tmp_path: Path, shard_bytes: int | None) -> None:
    unet = random_unet()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_unet(unet, file, layout="diffusers", shard_bytes=shard_bytes)
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(unet.config)))
    theirs = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path)
    names = table(unet.config, "diffusers")
    for name, tensor in unet.state_dict().items():
        assert torch.equal(theirs.state_dict()[names[name]], tensor), name
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="300KB" if shard_bytes else "1GB")
    back = load_unet(tmp_path / "theirs", unet.config)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), unet.parameters(), strict=True))


def test_a_released_checkpoint_holds_other_networks_too(tmp_path: Path) -> None:
    unet = random_unet()
    names = table(unet.config, "original")
    tensors = {names[name]: tensor for name, tensor in unet.state_dict().items()}
    write_tensors(tmp_path / "svd.safetensors", tensors | {"first_stage_model.encoder.conv_in.bias": torch.zeros(3)})
    loaded = load_unet(tmp_path / "svd.safetensors", unet.config)
    assert torch.equal(loaded.conv_out.weight, unet.conv_out.weight)


def test_loading_into_a_network_in_use_keeps_its_tensors_and_dtype(tmp_path: Path) -> None:
    unet = random_unet()
    save_unet(unet, tmp_path / "a.safetensors", layout="clipmill")
    other = UNet(unet.config).bfloat16()
    weight = other.conv_in.weight
    load(other, tmp_path / "a.safetensors", table(unet.config, "clipmill"))
    assert other.conv_in.weight is weight
    assert torch.equal(weight, unet.conv_in.weight.bfloat16())


def spoil(tensors: dict[str, torch.Tensor], kind: str) -> None:
    names = list(tensors)
    if kind == "missing":
        for name in names[-5:]:
            del tensors[name]
    elif kind == "unexpected":
        tensors["conv_in.lora"] = torch.zeros(3)
    elif kind == "reshaped":
        tensors["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    elif kind == "integers":
        tensors["conv_in.bias"] = torch.zeros(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"5 missing \(first: .*weight, .*bias, .*\)"),
        ("unexpected", r"1 unexpected \(first: conv_in.lora\)"),
        ("reshaped", r"1 with the wrong shape \(first: conv_in.weight is \(32, 4, 3, 3\), expected \(32, 8, 3, 3\)\)"),
        ("integers", r"1 not floating point \(first: conv_in.bias is I8\)"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing_and_says_why(tmp_path: Path, kind: str, message: str) -> None:
    unet = random_unet()
    names = table(unet.config, "diffusers")
    tensors = {names[name]: tensor for name, tensor in random_unet().state_dict().items()}
    spoil(tensors, kind)
    save_file({name: tensor.contiguous() + 1 for name, tensor in tensors.items()}, tmp_path / "bad.safetensors")
    before = unet.conv_out.weight.clone()
    with pytest.raises(WeightsError, match=message) as caught:
        load(unet, tmp_path / "bad.safetensors", names)
    assert f"network of {len(names)} tensors" in str(caught.value)
    assert torch.equal(unet.conv_out.weight, before)


def test_damaged_ambiguous_and_absent_files(tmp_path: Path) -> None:
    unet = random_unet()
    config: UNetConfig = unet.config

    def failure(path: Path, kind: type[Exception] = WeightsError) -> str:
        with pytest.raises(kind) as caught:
            load_unet(path, config)
        return str(caught.value)

    assert "does not exist" in failure(tmp_path / "none.safetensors", FileNotFoundError)
    assert "no *.safetensors" in failure(tmp_path, FileNotFoundError)
    (tmp_path / "a.ckpt").write_bytes(b"pickle")
    assert "expected a safetensors file" in failure(tmp_path / "a.ckpt")
    files = save_unet(unet, tmp_path / "s" / "a.safetensors", layout="original", shard_bytes=300_000)
    files[2].rename(tmp_path / "third")
    assert f"1 of the {len(files) - 1} shards" in failure(tmp_path / "s", FileNotFoundError)
    files[2].write_bytes((tmp_path / "third").read_bytes()[:-100])
    assert "truncated" in failure(tmp_path / "s")
    files[2].write_bytes(files[1].read_bytes())
    assert "in two shards" in failure(tmp_path / "s")
    for name in ("a", "b"):
        save_unet(unet, tmp_path / "t" / f"{name}.safetensors", layout="original")
    assert "2 sets of weights (a.safetensors, b.safetensors)" in failure(tmp_path / "t")
    write_tensors(tmp_path / "vae.safetensors", {"encoder.conv_in.bias": torch.zeros(3)})
    assert "1 tensors, but none of a UNet" in failure(tmp_path / "vae.safetensors")
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "m.safetensors.index.json").write_text("[]")
    assert "not a shard index" in failure(tmp_path / "u")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    unet = random_unet()
    [file] = save_unet(unet, tmp_path / "a.safetensors", layout="clipmill")
    before = file.read_bytes()
    tensors: dict[str, Any] = {"x": torch.zeros(4), "y": torch.empty(4, device="meta")}
    with pytest.raises(NotImplementedError):
        write_tensors(file, tensors)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_only_one_tensor_of_the_file_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = random_unet()
    save_unet(unet, tmp_path / "a.safetensors", layout="original")
    read, held = Stored.read, []

    def watched(stored: Stored) -> torch.Tensor:
        assert not [reference for reference in held if reference() is not None]
        tensor = read(stored)
        held.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Stored, "read", watched)
    load_unet(tmp_path / "a.safetensors", unet.config)
    assert len(held) == len(unet.state_dict())
