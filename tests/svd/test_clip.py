"""CLIP's towers and their preprocessing, against transformers and the release's resize as diffusers has it."""

import pytest
import torch
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as released
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from svd import diffusers_json
from svd.clip import (
    CachedImages,
    CachedTexts,
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    clip_pixels,
)
from svd.keymap_clip import from_layout, table, to_layout
from tests.svd.models import pictures
from tests.svd.networks import randomise

TEXTS = ["", "a red kite over the dunes", "Two dogs, running!", "long " * 100]


def image_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    encoder = ImageEncoder(config).eval()
    randomise(encoder)
    return encoder


def text_encoder(config: TextEncoderConfig) -> TextEncoder:
    encoder = TextEncoder(config).eval()
    randomise(encoder)
    return encoder


def parameters(config: ImageEncoderConfig | TextEncoderConfig) -> int:
    with torch.device("meta"):
        encoder = ImageEncoder(config) if isinstance(config, ImageEncoderConfig) else TextEncoder(config)
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize("size", [(576, 1024), (320, 576), (225, 300), (224, 224), (64, 96), (100, 500)])
def test_pixels_are_those_of_the_released_pipeline(size):
    frames = pictures(2, size)
    resized = released._resize_with_antialiasing(frames, (224, 224))
    processor = CLIPImageProcessor(**diffusers_json.FEATURE_EXTRACTOR)
    expected = processor(
        images=(resized + 1) / 2,
        do_normalize=True,
        do_center_crop=False,
        do_resize=False,
        do_rescale=False,
        return_tensors="pt",
    ).pixel_values
    assert (clip_pixels(frames) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_resizing_without_the_blur_would_be_noticed():
    frames = pictures(1, (576, 1024))
    plain = torch.nn.functional.interpolate(frames, (224, 224), mode="bicubic", align_corners=True)
    ours = clip_pixels(frames) * torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    expected = (plain + 1) / 2 - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    assert (ours - expected).abs().max() > 0.02


@torch.inference_mode()
def test_the_image_token_is_the_projected_embedding_unnormalised():
    config = ImageEncoderConfig.tiny(24)
    ours = image_encoder(config)
    settings = diffusers_json._image_encoder(config)
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings)).eval()
    theirs.load_state_dict(to_layout(ours.state_dict(), config, "transformers"), strict=True)
    frames = pictures(2)
    token, expected = ours(frames), theirs(clip_pixels(frames)).image_embeds
    assert token.shape == (2, 24)
    assert (token - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (token.norm(dim=1) - 1).abs().min() > 0.1


@torch.inference_mode()
def test_text_tokens_are_those_of_transformers():
    config = TextEncoderConfig.tiny(32)
    ours = text_encoder(config)
    theirs = CLIPTextModel(CLIPTextConfig(**diffusers_json._text_encoder(config))).eval()
    state = to_layout(ours.state_dict(), config, "transformers")
    prefix = "" if "final_layer_norm.weight" in theirs.state_dict() else "text_model."
    theirs.load_state_dict({prefix + name.removeprefix("text_model."): each for name, each in state.items()})
    tokens = ours(TEXTS)
    assert tokens.shape == (len(TEXTS), 77, 32)
    expected = theirs(ours.tokenizer(TEXTS)).last_hidden_state
    assert (tokens - expected).abs().max() < 1e-5 * expected.abs().max()


def test_texts_are_framed_padded_with_zeros_and_cut():
    ids = TextEncoder(TextEncoderConfig.tiny(32)).tokenizer(TEXTS)
    start, end = 49406, 49407
    assert ids.shape == (4, 77)
    assert ids[0].tolist() == [start, end] + [0] * 75
    assert (ids[3, 0], ids[3, -1]) == (start, end)


def test_sizes_of_the_released_towers():
    assert parameters(ImageEncoderConfig()) == 632_076_800
    # Stable Diffusion 2.1's text encoder in diffusers: 340,387,840 parameters.
    assert parameters(TextEncoderConfig()) == 340_387_840


@pytest.mark.parametrize("config", [ImageEncoderConfig.tiny(24), TextEncoderConfig.tiny(32)])
@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_names_go_there_and_back(config, layout):
    encoder = image_encoder(config) if isinstance(config, ImageEncoderConfig) else text_encoder(config)
    state = encoder.state_dict()
    names = [name for theirs in table(config, layout).values() for name in theirs]
    assert len(set(names)) == len(names)
    there = to_layout(state, config, layout)
    assert set(there) == set(names)
    back = from_layout(there, config, layout)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_an_unknown_layout_is_named():
    with pytest.raises(ValueError, match=r"unknown layout 'peft'; known: original, transformers"):
        table(ImageEncoderConfig(), "peft")


def test_cached_embeddings_stand_in_for_encoders():
    embeddings = torch.randn(2, 8)
    assert CachedImages(embeddings)(pictures(2)) is embeddings
    with pytest.raises(ValueError, match="2 embeddings are cached, got 1 images"):
        CachedImages(embeddings)(pictures(1))
    texts = CachedTexts({"": torch.zeros(3, 4), "kite": torch.ones(3, 4)})
    assert texts(["kite", ""]).sum(dim=(1, 2)).tolist() == [12, 0]
    with pytest.raises(ValueError, match="1 of 2 texts have no cached tokens, first: 'dog'"):
        texts(["kite", "dog"])
