"""Weights are found, checked and loaded, or the reason is said: never a model with random weights."""

import json
import os
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipmill.errors import UserError
from curation.scores import openclip
from tests.curation.models import ARCHITECTURE, tiny_clip


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/clipmill-was-here",)


def test_a_folder_brings_architecture_weights_preprocessing_and_notice(tmp_path: Path):
    folder = tiny_clip(tmp_path / "model", notice="for tests")
    loaded = openclip.load(str(folder), None)
    assert loaded.weights.notice == "for tests"
    assert not loaded.model.training
    saved = load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.model.state_dict().items())
    black, white = (loaded.preprocess(Image.new("RGB", (64, 64), color))[:, 0, 0] for color in ("black", "white"))
    assert (black / (black - white)).tolist() == pytest.approx([0.4, 0.5, 0.6])  # (0 - mean) / std and (1 - mean) / std
    assert loaded.weights.digest() == openclip.find(str(folder), None).digest()


@pytest.mark.slow
def test_a_checkpoint_file_for_a_model_that_open_clip_knows(tmp_path: Path):
    torch.manual_seed(1)
    network = open_clip.create_model("RN50")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "rn50.pt")
    loaded = openclip.load("RN50", str(tmp_path / "rn50.pt"))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        ("ViT-L14", "openai", r"unknown CLIP model 'ViT-L14'. Did you mean 'ViT-L-14'"),
        ("ViT-L-14", "open", r"expected a file or one of its tags \(openai, laion400m_e31"),
        ("ViT-L-14", None, "never falls back to random weights"),
        ("/nowhere/model", None, "no CLIP model in /nowhere/model"),
    ],
)
def test_what_cannot_be_found_is_named(model: str, pretrained: str | None, said: str):
    with pytest.raises(UserError, match=said):
        openclip.load(model, pretrained)


def test_weights_that_cannot_be_fetched_say_what_where_and_how(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        openclip.load("ViT-L-14", "openai")
    sentence = str(error.value)
    for part in (
        "ViT-L-14 (openai)",
        "open_clip_model.safetensors",
        "timm/vit_large_patch14_clip_224.openai",
        "searched",
        "hf download",
        "set `clip_embedder: {model: FOLDER}` in",
        "--without similarity,aesthetic",
    ):
        assert part in sentence


def test_openai_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "weights.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained", lambda settings: str(tmp_path / "weights.safetensors")
    )
    assert openclip.find("ViT-L-14", "openai").quick_gelu
    assert not openclip.find("ViT-L-14-quickgelu", "openai").quick_gelu  # says it by itself
    assert not openclip.find("ViT-L-14", "laion2b_s32b_b82k").quick_gelu


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path):
    folder = tiny_clip(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": _Code()}))
    torch.save({"logit_scale": _Code()}, tmp_path / "zip.pt")
    Path("/tmp/clipmill-was-here").unlink(missing_ok=True)
    with pytest.raises(UserError, match="refused: it is a pickle that runs code"):
        openclip.load(str(folder), None)
    with pytest.raises(UserError, match="refused: it is a pickle that runs code"):
        openclip.load("ViT-B-32", str(tmp_path / "zip.pt"))
    assert not Path("/tmp/clipmill-was-here").exists()


def test_another_architecture_is_an_error_with_the_first_tensor_that_does_not_fit(tmp_path: Path):
    larger = json.loads(json.dumps(ARCHITECTURE))
    larger["vision_cfg"]["image_size"] = 64  # open_clip alone would stretch the position embeddings, silently
    folder, other = tiny_clip(tmp_path / "small"), tiny_clip(tmp_path / "large", architecture=larger)
    (folder / "open_clip_model.safetensors").write_bytes((other / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"visual.positional_embedding has shape \(65, 48\), expected \(17, 48\)"):
        openclip.load(str(folder), None)


@pytest.mark.parametrize("change", ["lost", "extra", "truncated", "text"])
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, change: str):
    folder = tiny_clip(tmp_path / "model")
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    if change == "lost":
        del tensors["ln_final.bias"]
    if change == "extra":
        tensors["visual.more"] = torch.zeros(1)
    save_file(tensors, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if change == "text":
        path.write_text("once upon a time")
    said = {"lost": "ln_final.bias", "extra": "visual.more"}.get(change, "not a readable weight file")
    with pytest.raises(UserError, match=said):
        openclip.load(str(folder), None)
