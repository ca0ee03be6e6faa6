"""Shapes of networks come from files: every value of every configuration is checked before anything is built."""

import copy
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipmill.errors import UserError
from svd.autoencoder import AutoencoderConfig
from svd.checkpoint import load_model, read_config, save_model
from svd.clip import ImageEncoderConfig, TextEncoderConfig
from svd.config import UNetConfig
from svd.json_files import parse_object, read_object
from svd.lora import load_lora
from svd.shape import Shape
from svd.tensor_files import WeightsError, open_tensors
from tests.svd.models import tiny_model
from tests.svd.networks import random_unet

SHAPES: list[Shape] = [UNetConfig(), AutoencoderConfig(), ImageEncoderConfig(), TextEncoderConfig()]
ODD = [None, "64", -1, 0, 10**9, 1e300, float("nan"), [], [[64]], {"a": 1}, [10**9] * 4, ["x" * 1000], [64] * 1000]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_an_odd_value_in_any_field_is_a_sentence_and_nothing_else(shape: Shape, value: Any):
    for field in type(shape).model_fields:
        try:
            changed = type(shape).from_values(shape.model_dump() | {field: value}, origin="test")
        except UserError as error:
            assert field in str(error)  # noqa: PT017
        else:
            assert field in ("ids", "norm_eps", "scale_factor"), changed


def model_folder(tmp_path: Path) -> Path:
    save_model(tiny_model("image-to-video"), tmp_path / "model")
    return tmp_path / "model"


def change_ours(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "clipmill.json").read_text())
    change(values)
    (folder / "clipmill.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["unet"].update(widths=[32768, 32768], groups=32),
        lambda v: v["unet"].update(blocks_per_level=8, widths=[4096] * 2),
        lambda v: v["autoencoder"].update(widths=[65536] * 4),
        lambda v: v["image_encoder"].update(width=65536, layers=128, heads=16, mlp_width=65536),
        lambda v: v["image_encoder"].update(size_px=2048, patch_px=1),
    ],
)
def test_sizes_that_the_files_cannot_fill_take_no_memory(tmp_path: Path, change: Callable[[dict[str, Any]], object]):
    folder = model_folder(tmp_path)
    change_ours(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="does not match"):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(unet=3),
        lambda v: v.update(autoencoder=[]),
        lambda v: v.update(unet=None),
        lambda v: v.update(width_px="1024"),
        lambda v: v.update(width_px=10**12),
        lambda v: v["unet"].update(attention=[1, 0]),
        lambda v: v["image_encoder"].update(heads=7),
        lambda v: v["image_encoder"].update(layers=10**9),
    ],
)
def test_a_configuration_of_another_kind_is_a_sentence(tmp_path: Path, change: Callable[[dict[str, Any]], object]):
    folder = model_folder(tmp_path)
    change_ours(folder, change)
    with pytest.raises(ValueError, match=r"clipmill\.json is not a model configuration"):
        read_config(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": "' + b"x" * (5 << 20) + b'"}']
)
def test_json_of_another_shape_is_a_sentence(tmp_path: Path, content: bytes):
    folder = model_folder(tmp_path)
    (folder / "clipmill.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"clipmill\.json"):
        read_config(folder)
    with pytest.raises(ValueError, match="a text of mine"):
        parse_object(content, "a text of mine")
    (folder / "weights.safetensors.index.json").write_bytes(content)
    with pytest.raises(WeightsError, match="not a shard index"):
        open_tensors(folder / "weights.safetensors.index.json", None)  # type: ignore[arg-type]


NOT_READ = {
    "unet": {"up_block_types", "transformer_layers_per_block", "sample_size"},
    "vae": {"down_block_types", "force_upcast", "out_channels", "sample_size"},
    "image_encoder": {"architectures", "layer_norm_eps", "model_type", "num_channels"},
}
"""Keys of diffusers' JSON that have one value in all networks of this kind, or follow from others."""


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_values_of_another_kind_in_the_json_of_diffusers_are_sentences(tmp_path: Path, part: str):
    folder = model_folder(tmp_path)
    (folder / "clipmill.json").unlink()
    path = folder / part / "config.json"
    values = read_object(path)
    for key in values:
        for odd in (None, "x", 0, -3, [], {"a": 1}, 10**9, [0] * 4):
            changed = copy.deepcopy(values)
            changed[key] = odd
            path.write_text(json.dumps(changed))
            try:
                read_config(folder)
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017
                assert key in str(error) or odd == 10**9  # noqa: PT017  # too large: named as our field
            else:
                assert key in NOT_READ[part]


@pytest.mark.parametrize("alpha", ["16", -1, 0, [], True, 1e300])
@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_an_adapter_of_an_odd_strength_is_refused(tmp_path: Path, alpha: Any, where: str):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})} if where == "metadata" else None
    save_file({"unet.x.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "adapter.safetensors", metadata=metadata)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    with pytest.raises(WeightsError, match="lora_alpha"):
        load_lora(random_unet(), tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_metadata_of_an_adapter_that_is_no_json_is_a_sentence(tmp_path: Path, content: str):
    tensors = {"unet.x.lora_A.weight": torch.zeros(4, 4)}
    save_file(tensors, tmp_path / "adapter.safetensors", metadata={"lora_adapter_metadata": content})
    with pytest.raises(WeightsError, match="the metadata of"):
        load_lora(random_unet(), tmp_path / "adapter.safetensors")


def test_a_header_beyond_all_need_is_not_read(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes((90 << 20).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match="its header claims 94,371,840 bytes"):
        open_tensors(tmp_path / "weights.safetensors", None)  # type: ignore[arg-type]
