"""The configuration in a model's folder: what open_clip's own models say is taken, anything else is refused unbuilt."""

import copy
import json
import resource
from pathlib import Path
from typing import Any

import open_clip
import pytest

from clipmill.errors import UserError
from curation.captioners.coca import Coca, CocaConfig
from curation.scores import openclip
from curation.scores.openclip_config import ModelFolder, read_model_folder
from tests.curation.models import ARCHITECTURE, tiny_clip


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny architecture with some values replaced: `vision_cfg__width=3`."""
    architecture = copy.deepcopy(ARCHITECTURE)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (architecture.setdefault(section, {}) if section else architecture)[name] = value
    return architecture


def rewrite(folder: Path, architecture: dict[str, Any], **about: Any) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture, **about}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "model")


def test_every_architecture_of_open_clip_is_allowed_and_passed_on_as_it_is():
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if name.startswith("clipmill-"):
            continue
        checked = ModelFolder.from_values({"model_cfg": config}, origin=name).architecture()
        assert checked == config, name


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"text_cfg__tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"text_cfg__tokenizer_kwargs": {"cache_dir": "/tmp"}}, "cache_dir"),
        ({"text_cfg__hf_tokenizer_name": "/srv/tokenizer"}, "hf_tokenizer_name"),
        ({"text_cfg__hf_tokenizer_name": "somebody/tokenizer"}, "hf_tokenizer_name"),
        ({"text_cfg__hf_tokenizer_name": "../tokenizer"}, "hf_tokenizer_name"),
        ({"text_cfg__hf_model_name": "somebody/model"}, "hf_model_name"),
        ({"vision_cfg__timm_model_name": "hf-hub:somebody/model"}, "timm_model_name"),
        ({"vision_cfg__timm_model_name": "local-dir:/srv/model"}, "timm_model_name"),
        ({"vision_cfg__timm_model_name": "resnet50.x:/srv/model"}, "timm_model_name"),
        ({"vision_cfg__timm_model_name": "x" * 10_000}, "timm_model_name"),
        ({"vision_cfg__act_kwargs": {"inplace": True}}, "inplace"),
        ({"vision_cfg__norm_kwargs": {"eps": "1e-6"}}, "eps"),
        ({"vision_cfg__pos_embed_type": "sin_cos_2d"}, "pos_embed_type"),
        ({"vision_cfg__layers": 10**9}, "layers"),
        ({"vision_cfg__layers": [1] * 100_000}, "layers"),
        ({"vision_cfg__layers": True}, "layers"),
        ({"vision_cfg__width": 1e300}, "width"),
        ({"vision_cfg__width": -1}, "width"),
        ({"vision_cfg__width": "48"}, "width"),
        ({"vision_cfg__image_size": 10**6}, "image_size"),
        ({"text_cfg__context_length": 10**6}, "context_length"),
        ({"text_cfg__heads": 0}, "heads"),
        ({"embed_dim": None}, "embed_dim"),
        ({"vision_cfg": [1]}, "vision_cfg"),
        ({"cast_dtype": "x"}, "cast_dtype"),
        ({"multimodal_cfg__tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
    ],
)
def test_a_key_or_a_value_that_is_not_allowed_is_named(folder: Path, changes: dict[str, Any], key: str):
    rewrite(folder, changed(**changes))
    with pytest.raises(UserError) as raised:
        openclip.load(str(folder), None)
    assert "open_clip_config.json is refused: model_cfg" in str(raised.value)
    assert key in str(raised.value)
    assert len(str(raised.value)) < 2000
    with pytest.raises(UserError, match="captioner coca"):
        Coca(CocaConfig(model=str(folder), pretrained=None)).load()


@pytest.mark.parametrize(
    "about",
    [
        {"preprocess_cfg": {"mean": [1.0]}},
        {"preprocess_cfg": {"std": [0.0, 1.0, 1.0]}},
        {"preprocess_cfg": {"interpolation": "nearest"}},
        {"preprocess_cfg": {"size": 10**7}},
        {"preprocess_cfg": [3]},
        {"notice": ["a"]},
        {"notice": "x" * 10_000},
    ],
)
def test_preprocessing_and_notice_are_checked_as_well(folder: Path, about: dict[str, Any]):
    rewrite(folder, ARCHITECTURE, **about)
    with pytest.raises(UserError, match="is refused"):
        openclip.find(str(folder), None)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model_cfg": []}', b'{"a": "' + b"x" * (1 << 20) + b'"}'],
    ids=["empty", "list", "no model", "no text", "deep", "model is a list", "large"],
)
def test_a_file_that_is_no_configuration_is_damaged(folder: Path, content: bytes):
    (folder / "open_clip_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"open_clip_config\.json is damaged"):
        read_model_folder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg__width": 16_000},
        {"vision_cfg__layers": 128, "vision_cfg__mlp_ratio": 64.0},
        {"text_cfg__vocab_size": 2_000_000, "text_cfg__width": 8_192},
        {"embed_dim": 16_384, "text_cfg__width": 16_384},
        {"vision_cfg__layers": [128, 128, 128, 128], "vision_cfg__width": 512, "vision_cfg__head_width": 16},
        {"vision_cfg__image_size": 2048, "vision_cfg__patch_size": 1},
    ],
)
def test_sizes_that_the_file_cannot_fill_are_refused_before_memory_is_taken(folder: Path, changes: dict[str, Any]):
    rewrite(folder, changed(**changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not match the architecture"):
        openclip.load(str(folder), None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("changes", [{"vision_cfg__width": 49}, {"text_cfg__heads": 5}])
def test_sizes_that_do_not_go_together_are_a_sentence(folder: Path, changes: dict[str, Any]):
    rewrite(folder, changed(**changes))
    with pytest.raises(UserError, match="cannot be built"):
        openclip.load(str(folder), None)


def test_a_repository_of_the_hub_is_checked_like_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rewrite(folder, changed(text_cfg__tokenizer_kwargs={"trust_remote_code": True}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained_from_hf",
        lambda repository, filename="open_clip_model.safetensors": str(folder / filename),
    )
    with pytest.raises(UserError, match="trust_remote_code"):
        openclip.load("hf-hub:somebody/model", None)
