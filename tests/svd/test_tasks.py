"""Tasks on tiny models: image to video frame by frame as diffusers makes it, and what each condition changes."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from svd import tasks
from svd.clip import CachedTexts
from svd.conditioning import Ids
from svd.export import export
from svd.model import Model
from svd.tasks import Sampling, image_to_video, interpolate, text_to_video
from tests.svd.models import SIZE_HW, pictures, tiny_model

IDS = Ids(fps=7, motion_bucket=100, noise_augmentation=0.1)
SAMPLING = Sampling(steps=5, guidance=(1.0, 3.0))
QUICK = Sampling(steps=2, guidance=(1.0, 2.0), frames=3)
PARITY = 5e-5
"""Of frames in [-1, 1] after five steps in float32."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableVideoDiffusionPipeline:
    """Our tiny model, exported and loaded by diffusers."""
    folder = tmp_path_factory.mktemp("export") / "diffusers"
    export(tiny_model("image-to-video"), folder, format="diffusers")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline: StableVideoDiffusionPipeline, picture_CHW: Tensor, seed: int) -> Tensor:
    """Frames (B, T, 3, H, W) in [-1, 1] for `IDS` and `SAMPLING`."""
    rgb = ((picture_CHW + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    frames = pipeline(
        Image.fromarray(rgb),
        height=SIZE_HW[0],
        width=SIZE_HW[1],
        num_frames=4,
        num_inference_steps=5,
        min_guidance_scale=1.0,
        max_guidance_scale=3.0,
        fps=7,
        motion_bucket_id=100,
        noise_aug_strength=0.1,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).frames
    return frames * 2 - 1


def equal_eps(pipeline: StableVideoDiffusionPipeline, eps: float | None) -> dict[str, float]:
    """Set the eps of the residual blocks' normalisations; returns what they were."""
    before = {}
    for name, module in pipeline.unet.named_modules():
        if isinstance(module, nn.GroupNorm) and "res_block" in name:
            before[name] = module.eps
            module.eps = eps or module.eps
    return before


@cache
def make(ids: Ids = IDS, sampling: Sampling = SAMPLING) -> Tensor:
    return image_to_video(tiny_model("image-to-video"), pictures(), [ids], seeds=[3], sampling=sampling)


@pytest.mark.slow
def test_a_seed_gives_the_frames_that_it_gives_in_diffusers(pipeline):
    ours = make()
    assert ours.shape == (1, 4, 3, *SIZE_HW)
    assert ours.std() > 0.2
    before = equal_eps(pipeline, 1e-5)
    try:
        assert (theirs(pipeline, pictures()[0], seed=3) - ours).abs().max() < PARITY
    finally:
        for name, eps in before.items():
            pipeline.unet.get_submodule(name).eps = eps


def test_with_the_eps_of_diffusers_the_exported_folder_runs_nearly_alike(pipeline):
    assert set(equal_eps(pipeline, None).values()) == {1e-5, 1e-6}
    difference = (theirs(pipeline, pictures()[0], seed=3) - make()).abs().max()
    assert PARITY / 5 < difference < 1e-3


@pytest.mark.parametrize(
    "ids",
    [
        replace(IDS, fps=8),
        replace(IDS, motion_bucket=101),
        replace(IDS, noise_augmentation=0.11),
    ],
    ids=["fps", "motion bucket", "noise augmentation"],
)
def test_parity_would_notice_another_id(ids):
    assert (make(ids) - make()).abs().max() > 100 * PARITY


@pytest.mark.parametrize("change", [{"guidance": (1.0, 2.9)}, {"guidance": (1.1, 3.0)}, {"sigma_max": 690.0}])
def test_parity_would_notice_another_sampler(change):
    assert (make(sampling=replace(SAMPLING, **change)) - make()).abs().max() > 10 * PARITY


class Recorder:
    """An encoder that remembers what it was shown."""

    def __init__(self, model: Model) -> None:
        self.encoder, self.seen = model.image_encoder, []

    def __call__(self, frames_BCHW: Tensor) -> Tensor:
        self.seen.append(frames_BCHW)
        return self.encoder(frames_BCHW)


def test_clip_sees_the_clean_picture():
    model = tiny_model("image-to-video")
    recorder = Recorder(model)
    picture = pictures()
    image_to_video(replace(model, image_encoder=recorder), picture, [IDS], seeds=[0], sampling=QUICK)
    assert torch.equal(recorder.seen[0], picture)
    model = tiny_model("interpolation")
    recorder = Recorder(model)
    interpolate(replace(model, image_encoder=recorder), picture, -picture, [IDS], seeds=[0], sampling=QUICK)
    assert torch.equal(torch.cat(recorder.seen), torch.cat([picture, -picture]))


def test_a_sample_does_not_depend_on_its_batch():
    model, both = tiny_model("image-to-video"), pictures(2)
    together = image_to_video(model, both, [IDS, replace(IDS, fps=12)], seeds=[1, 2], sampling=QUICK)
    alone = image_to_video(model, both[1:], [replace(IDS, fps=12)], seeds=[2], sampling=QUICK)
    assert (together[1:] - alone).abs().max() < PARITY


def test_steps_are_reported_and_decoding_in_chunks_keeps_the_length():
    steps = []
    frames = image_to_video(
        tiny_model("image-to-video"),
        pictures(),
        [IDS],
        seeds=[0],
        sampling=replace(QUICK, decode_frames=2),
        on_step=lambda step, x: steps.append(step),
    )
    assert steps == [0, 1]
    assert frames.shape == (1, 3, 3, *SIZE_HW)
    assert frames.abs().max() <= 1


def test_multi_view_goes_by_the_elevation():
    model = tiny_model("multi-view")
    level = image_to_video(model, pictures(), [IDS], seeds=[0], sampling=QUICK)
    above = image_to_video(model, pictures(), [replace(IDS, elevation=30)], seeds=[0], sampling=QUICK)
    assert level.shape == (1, 3, 3, *SIZE_HW)
    assert (level - above).abs().max() > 0.01


@pytest.mark.slow
def test_interpolation_goes_by_both_ends():
    model, ends = tiny_model("interpolation"), pictures(3)

    def run(first: int, last: int) -> Tensor:
        return interpolate(model, ends[first, None], ends[last, None], [IDS], seeds=[0], sampling=QUICK)

    assert run(0, 1).shape == (1, 3, 3, *SIZE_HW)
    assert (run(0, 1) - run(0, 2)).abs().max() > 0.01
    assert (run(0, 1) - run(2, 1)).abs().max() > 0.01
    with pytest.raises(ValueError, match="the same shape"):
        interpolate(model, ends[:1], ends[:1, :, :32], [IDS], seeds=[0])


@pytest.mark.slow
def test_text_to_video_is_guided_away_from_the_empty_text():
    model = tiny_model("text-to-video")
    texts = ["", "a kite"]
    cached = replace(model, text_encoder=CachedTexts(dict(zip(texts, model.text_encoder(texts), strict=True))))

    def run(model: Model, text: str, scale: float) -> Tensor:
        sampling = replace(QUICK, guidance=(scale, scale))
        return text_to_video(model, [text], [IDS], seeds=[0], sampling=sampling)

    guided = run(model, "a kite", 3.0)
    assert guided.shape == (1, 3, 3, *SIZE_HW)
    assert (run(cached, "a kite", 3.0) - guided).abs().max() < PARITY
    assert (run(model, "", 3.0) - run(model, "", 1.0)).abs().max() < PARITY  # there is nothing to be guided to
    assert (run(model, "a kite", 1.0) - guided).abs().max() > 0.01
    assert text_to_video(model, ["", ""], [IDS] * 2, seeds=[0, 1], width_px=32, height_px=48, sampling=QUICK).shape == (
        2, 3, 3, 48, 32
    )  # fmt: skip


@pytest.mark.slow
def test_an_image_model_makes_pictures_of_texts() -> None:
    model = tiny_model("image")

    def picture(text: str, guidance: float | None) -> Tensor:
        sampling = Sampling(steps=2, guidance=guidance and (guidance, guidance))
        return text_to_video(model, [text], [IDS], seeds=[0], sampling=sampling)

    kite = picture("a kite", None)
    assert kite.shape == (1, 1, 3, *SIZE_HW)
    torch.testing.assert_close(kite, picture("a kite", 7.5))
    assert (kite - picture("a boat", None)).abs().mean() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-to-video", "text-to-video"])
def test_weights_of_half_the_precision_make_about_the_same_video(task):
    model = tiny_model(task)
    half = replace(model, **{name: deepcopy(network).bfloat16() for name, network in model.networks().items()})

    def run(model: Model) -> Tensor:
        if task == "text-to-video":
            return text_to_video(model, ["a kite"], [IDS], seeds=[0], sampling=QUICK)
        return image_to_video(model, pictures(), [IDS], seeds=[0], sampling=QUICK)

    assert (run(half) - run(model)).abs().mean() < 0.1 * run(model).std()


def test_default_guidance_rises_as_in_the_release():
    assert tasks.default_guidance("image-to-video", 14) == (1.0, 2.5)
    assert tasks.default_guidance("image-to-video", 25) == (1.5, 3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: interpolate(tiny_model("multi-view"), pictures(), pictures(), [IDS], seeds=[0]),
            "got one for multi-view",
        ),
        (
            lambda: image_to_video(tiny_model("image-to-video"), pictures(), [IDS], seeds=[0, 1]),
            "got 1 ids and 2 seeds",
        ),
        (
            lambda: image_to_video(
                replace(tiny_model("image-to-video"), image_encoder=None), pictures(), [IDS], seeds=[0]
            ),
            "requires its image_encoder",
        ),
        (
            lambda: text_to_video(tiny_model("text-to-video"), ["a"], [IDS], seeds=[0], width_px=50),
            "divisible by 8, got 50x64",
        ),
        (lambda: Sampling(frames=0), "frames must be at least 1, got 0"),
        (lambda: Sampling(guidance=(-1.0, 2.0)), "guidance must be at least 0"),
    ],
)
def test_what_cannot_be_made_says_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()
