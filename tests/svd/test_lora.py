"""Adapters: nothing at first, alone in training, and the same beside the network, merged, in a file and elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svd.config import UNetConfig
from svd.lora import LoraLinear, add_lora, load_lora, merge_lora, save_lora
from svd.tensor_files import WeightsError
from svd.unet import UNet
from tests.svd.networks import diffusers_twin, inputs, random_unet


def adapted_unet(rank: int = 4, alpha: float | None = None) -> UNet:
    unet = random_unet()
    add_lora(unet, rank=rank, alpha=alpha)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.weight.normal_(std=0.3, generator=generator)
    return unet


def output(unet: nn.Module) -> Tensor:
    x, c_noise, kwargs = inputs(random_unet())
    with torch.inference_mode():
        return unet(x, c_noise, **kwargs)


def test_adapters_start_as_nothing():
    unet = random_unet()
    before = output(unet)
    add_lora(unet)
    assert torch.equal(output(unet), before)


@pytest.mark.slow
def test_the_released_network_gets_64_adapters_of_rank_16():
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset("svd"))
    parameters = add_lora(unet)
    assert len(parameters) == 2 * 64
    assert sum(parameter.numel() for parameter in parameters) == 1_597_440
    assert {min(parameter.shape) for parameter in parameters} == {16}


def test_only_adapters_on_attention_over_time_train():
    unet = random_unet()
    parameters = add_lora(unet)
    training = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert training == {name for name, _ in unet.named_parameters() if ".lora_" in name}
    assert all(".temporal.self_attention." in name for name in training)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    x, c_noise, kwargs = inputs(unet)
    optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(2):  # A has no gradient as long as B is zero
        optimiser.zero_grad()
        unet(x, c_noise, **kwargs).square().mean().backward()
        optimiser.step()
    changed = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == training


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_merged_is_adapted(alpha):
    unet = adapted_unet(alpha=alpha)
    adapted = output(unet)
    assert (adapted - output(random_unet())).abs().max() > 0.01
    merge_lora(unet)
    assert set(unet.state_dict()) == set(random_unet().state_dict())
    assert (output(unet) - adapted).abs().max() < 2e-6 * adapted.abs().max()
    with pytest.raises(ValueError, match="no LoRA adapters"):
        merge_lora(unet)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_file_holds_the_adapters_alone_and_gives_them_back(tmp_path: Path, alpha):
    unet = adapted_unet(alpha=alpha)
    save_lora(unet, tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    assert len(tensors) == len([name for name in unet.state_dict() if ".lora_" in name])
    again = random_unet()
    load_lora(again, tmp_path / "lora.safetensors")
    assert torch.equal(output(again), output(unet))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in unet.state_dict().items())


def test_names_are_those_of_diffusers_modules(tmp_path: Path):
    """Merged by hand into diffusers' network under the names of the file, the result is ours."""
    unet, twin = adapted_unet(alpha=2.0), diffusers_twin(random_unet())
    save_lora(unet, tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (4, 2.0)
    first = "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert first in tensors
    with torch.no_grad():
        for name in settings["unet.target_modules"]:
            a, b = (tensors[f"unet.{name}.{part}.weight"] for part in ("lora_A", "lora_B"))
            twin.get_submodule(name).weight += settings["unet.lora_alpha"] / settings["unet.r"] * (b @ a)
    assert len(settings["unet.target_modules"]) * 2 == len(tensors)
    x, c_noise, kwargs = inputs(unet)
    with torch.inference_mode():
        theirs = twin(
            x, c_noise[0], encoder_hidden_states=kwargs["context_BNC"], added_time_ids=kwargs["ids_BK"]
        ).sample
        ours = unet(x, c_noise[:1].expand(2), **kwargs)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(("prefix", "alpha"), [("base_model.model.", 2.0), ("base_model.model.", None), ("", None)])
def test_files_of_peft_are_read(tmp_path: Path, prefix, alpha):
    unet = adapted_unet(alpha=alpha)
    save_lora(unet, tmp_path / "ours.safetensors")
    tensors = load_file(tmp_path / "ours.safetensors")
    save_file(
        {prefix + name.removeprefix("unet."): each for name, each in tensors.items()}, tmp_path / "peft.safetensors"
    )
    if alpha is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": alpha}))
    again = random_unet()
    load_lora(again, tmp_path / "peft.safetensors")
    assert torch.equal(output(again), output(unet))


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path):
    save_lora(adapted_unet(), tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    lost = next(name for name in tensors if name.endswith("to_v.lora_B.weight"))
    save_file({name: each for name, each in tensors.items() if name != lost}, tmp_path / "part.safetensors")
    unet = random_unet()
    with pytest.raises(WeightsError, match=f"1 missing \\(first: {lost}\\)"):
        load_lora(unet, tmp_path / "part.safetensors")
    assert set(unet.state_dict()) == set(random_unet().state_dict())
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors but no lora_A\.weight"):
        load_lora(unet, tmp_path / "other.safetensors")


def test_where_adapters_cannot_go():
    with pytest.raises(ValueError, match="no temporal layers"):
        add_lora(random_unet("sd21", head_width=16, context_width=64))
    with pytest.raises(ValueError, match="a rank of at least 1, got 0"):
        add_lora(random_unet(), rank=0)
    with pytest.raises(ValueError, match="already has LoRA adapters"):
        add_lora(adapted_unet())
