"""The captioner CoCa, on models of random weights: against open_clip by hand, and where there is nothing to look at."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipmill.errors import UserError
from curation.captioners.base import GeneratedCaption
from curation.captioners.coca import Coca, CocaConfig, greedy
from curation.scores.base import ClipView

TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 16,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}


def random_model(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with a model of random weights, large enough for captions to differ."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (folder / f"test-{folder.name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"test-{folder.name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(f"test-{folder.name}")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny_coca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("coca"), TINY)


def coca(folder: Path, **settings: Any) -> Coca:
    captioner = Coca(CocaConfig(model=str(folder), pretrained=None, **({"max_tokens": 12} | settings)))
    captioner.load("cpu")
    return captioner


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)


def oracle(folder: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """What open_clip's own `generate` writes, given back the parts of transformers that it misses for no reason."""
    import open_clip
    import torch
    import transformers
    from open_clip import coca_model

    for part in (
        *("LogitsProcessorList", "RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor", "MaxLengthCriteria"),
        *("StoppingCriteriaList", "TopKLogitsWarper"),
    ):
        monkeypatch.setattr(coca_model, part, getattr(transformers, part), raising=False)
    monkeypatch.setitem(coca_model.GENERATION_TYPES, "top_k", transformers.TopKLogitsWarper)
    monkeypatch.setattr(coca_model, "_has_transformers", True)
    loaded = coca(folder)._loaded
    inputs = [loaded.preprocess(Image.fromarray(picture[..., ::-1])) for picture in pictures]
    rows = loaded.model.generate(torch.stack(inputs), generation_type="top_k", top_k=1, **settings)
    texts = [open_clip.decode(row).split("<end_of_text>")[0].replace("<start_of_text>", "") for row in rows]
    return [" ".join(text.split()) for text in texts]


def test_coca_says_what_open_clip_says_of_the_middle_frame(tiny_coca: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    pictures = [noise(i) for i in range(5)]
    batch = [ClipView(thumbnails=(noise(100), picture, noise(200))) for picture in pictures]
    captions = coca(tiny_coca, batch_size=2).caption(batch)
    assert {c.error for c in captions} == {None}
    assert [c.text for c in captions] == oracle(tiny_coca, pictures, monkeypatch, seq_len=12, min_seq_len=5)
    assert len({c.text for c in captions}) > 1


class Scripted:
    """A model whose likeliest next tokens are written down, a row per picture."""

    pad_id = 0

    def __init__(self, *rows: list[int]) -> None:
        self._rows = rows

    def _encode_image(self, pictures: Any) -> tuple[Any, Any]:
        return pictures, pictures

    def __call__(self, pictures: Any, tokens: Any, **_: Any) -> dict[str, Any]:
        import torch

        logits = torch.zeros(len(tokens), tokens.shape[1], 10)
        for row, script in enumerate(self._rows):
            logits[row, -1, script[min(tokens.shape[1], len(script)) - 1]] = 2.0
            logits[row, -1, 7] = 1.0
        return {"logits": logits}


@pytest.mark.parametrize(
    ("min_tokens", "max_tokens", "expected"),
    [
        (1, 30, [[8, 3, 4, 5, 9], [8, 3, 9, 0, 0]]),
        (1, 4, [[8, 3, 4, 9], [8, 3, 9, 0]]),
        (4, 30, [[8, 3, 4, 5, 9], [8, 3, 7, 7, 9]]),
    ],
)
def test_the_likeliest_token_is_taken_until_the_end(min_tokens: int, max_tokens: int, expected: list[list[int]]):
    import torch

    model = Scripted([3, 4, 5, 9], [3, 9])
    bounds = {"min_tokens": min_tokens, "max_tokens": max_tokens}
    assert greedy(model, torch.zeros(2, 1, 1, 1), start=8, end=9, **bounds).tolist() == expected


def test_coca_is_the_same_alone_in_company_and_again(tiny_coca: Path):
    batch = [ClipView(thumbnails=(noise(i),) * 3) for i in range(5)]
    captioner = coca(tiny_coca)
    together = captioner.caption(batch)
    assert captioner.caption(batch) == together
    assert [captioner.caption([clip])[0] for clip in batch] == together
    assert coca(tiny_coca, batch_size=2).caption(list(reversed(batch))) == list(reversed(together))


def test_coca_takes_a_clip_it_cannot_look_at_for_that_clips_failure(tiny_coca: Path):
    good = ClipView(thumbnails=(noise(1),) * 3)
    broken = ClipView(thumbnails=(np.zeros((0, 10, 3), np.uint8),) * 3)
    captioner = coca(tiny_coca)
    captions = captioner.caption([ClipView(thumbnails=()), good, broken])
    assert captions[0] == GeneratedCaption.failed("the clip has no thumbnails")
    assert captions[1] == captioner.caption([good])[0]
    assert captions[2].text is None
    assert captions[2].error
    assert captioner.caption([]) == []


def test_weights_that_cannot_be_fetched_are_set_in_the_settings_of_coca(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="captioner coca: the weights of") as error:
        Coca(CocaConfig()).load()
    assert "set `captioners: {coca: {model: FOLDER}}` in" in str(error.value)
    assert "`captioners: {coca: {model: coca_ViT-L-14, pretrained: FILE}}`" in str(error.value)
    assert "--without" not in str(error.value)


def test_coca_without_weights_or_with_another_model_is_an_error(tiny_coca: Path, tmp_path: Path):
    with pytest.raises(UserError, match="captioner coca: the weights 'no-such-tag'"):
        Coca(CocaConfig(pretrained="no-such-tag")).load()
    clip = {key: value for key, value in TINY.items() if key != "multimodal_cfg"}
    with pytest.raises(UserError, match="cannot generate captions; expected a CoCa model"):
        coca(random_model(tmp_path, clip))
    with pytest.raises(UserError, match="max_tokens is 30"):
        coca(tiny_coca, max_tokens=30)
    with pytest.raises(UserError, match="min_tokens is 8, expected less than max_tokens, 8"):
        CocaConfig.from_values({"min_tokens": 8, "max_tokens": 8}, origin="x.yaml")
