"""`clipmill sample` and `clipmill export`: files for every task, and one sentence for what cannot be done."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from clipmill.errors import UserError
from pipelines import cli
from pipelines.sample import contact_sheet, open_image, parse_guidance, parse_size
from svd.checkpoint import save_model
from svd.lora import LoraLinear, add_lora, save_lora
from svd.unet import UNet
from tests.svd.models import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for each task, and a picture that is larger than what they make, of another shape."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("image-to-video", "text-to-video", "interpolation", "multi-view"):
        save_model(tiny_model(task), folder / task)
    y, x = np.mgrid[0:200, 0:400]
    Image.fromarray(np.stack([x // 2, y, 255 - x // 2], axis=-1).astype(np.uint8)).save(folder / "picture.png")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["clipmill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def frames_of(path: Path) -> tuple[list[np.ndarray], Fraction, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)], stream.average_rate, stream.codec.name


@pytest.mark.parametrize(
    ("task", "conditions"),
    [
        ("image-to-video", ["--image", "{picture}"]),
        ("multi-view", ["--image", "{picture}", "--elevation", "10"]),
        ("interpolation", ["--image", "{picture}", "--last-image", "{picture}"]),
        ("text-to-video", ["--prompt", "a kite"]),
    ],
)
def test_every_task_writes_a_video_and_its_sheet(folder, tmp_path, monkeypatch, capsys, task, conditions):
    given = [argument.format(picture=folder / "picture.png") for argument in conditions]
    out = tmp_path / "out" / "a.mp4"
    options = ["--steps", 1, "--frames", 3, "--fps", 5, "--motion", 60, "--guidance", "1.0:3.0", "--device", "cpu"]
    assert run(monkeypatch, "sample", folder / task, *given, "--out", out, *options) == 0
    printed = capsys.readouterr()
    assert f"{task}, 3 frames of 96 x 64" in printed.out
    assert "1/1 steps" in printed.err
    frames, rate, codec = frames_of(out)
    assert (len(frames), frames[0].shape, rate, codec) == (3, (64, 96, 3), 5, "h264")
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.width > 3 * 320
    assert {path.name for path in out.parent.iterdir()} == {"a.mp4", "a.png"}


@pytest.mark.slow
def test_the_seed_and_an_adapter_change_the_video(folder, tmp_path, monkeypatch):
    unet = UNet(tiny_model("image-to-video").config.unet)
    add_lora(unet)
    for module in unet.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B.weight)
    save_lora(unet, tmp_path / "lora.safetensors")

    def made(name: str, *options: object) -> bytes:
        out, picture = tmp_path / f"{name}.mp4", folder / "picture.png"
        command = ["sample", folder / "image-to-video", "--image", picture, "--out", out, "--steps", 1, "--frames", 2]
        assert run(monkeypatch, *command, *options) == 0
        return out.read_bytes()

    first = made("a")
    assert made("b") == first
    assert made("c", "--seed", 1) != first
    assert made("d", "--lora", tmp_path / "lora.safetensors") != first


@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        ("image-to-video", [], "for image-to-video: pass --image"),
        ("interpolation", ["--image", "x.png"], "for interpolation: pass --last-image"),
        ("text-to-video", ["--prompt", "a", "--image", "x.png"], "takes --prompt, not --image"),
        ("multi-view", ["--image", "x.png", "--prompt", "a"], "takes --image and --elevation, not --prompt"),
        ("image-to-video", ["--image", "x.png"], "cannot read x.png as an image"),
        ("image-to-video", ["--image", "{picture}", "--guidance", "3:"], "a number or FIRST:LAST"),
        ("image-to-video", ["--image", "{picture}", "--guidance", "nan"], "guidance must be at least 0"),
        ("image-to-video", ["--image", "{picture}", "--guidance", "high"], "a number or FIRST:LAST"),
        ("image-to-video", ["--image", "{picture}", "--size", "96"], "WIDTHxHEIGHT in pixels"),
        ("image-to-video", ["--image", "{picture}", "--size", "90x64"], "divisible by 8, got 64 x 90"),
        ("image-to-video", ["--image", "{picture}", "--out", "a.avi"], "expected --out to end in .mp4, got 'a.avi'"),
        ("image-to-video", ["--image", "{picture}", "--dtype", "int8"], "unknown dtype 'int8'"),
        ("image-to-video", ["--image", "{picture}", "--lora", "x.safetensors"], "x.safetensors does not exist"),
        ("nothing", ["--image", "x.png"], "does not exist; expected a model folder"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_sentence(
    folder, tmp_path, monkeypatch, capsys, task, options, sentence
):
    monkeypatch.chdir(tmp_path)
    given = [option.format(picture=folder / "picture.png") for option in options]
    assert run(monkeypatch, "sample", folder / task, *given, "--steps", 1, "--frames", 2) == 2
    assert sentence in capsys.readouterr().err


def test_guidance_and_sizes_are_parsed():
    assert parse_guidance("1.0:3.0") == (1.0, 3.0)
    assert parse_guidance("2.5") == (2.5, 2.5)
    assert parse_size("1024x576") == (1024, 576)
    for wrong in ("0x4", "4x", "-1x3", "axb"):
        with pytest.raises(UserError, match="WIDTHxHEIGHT"):
            parse_size(wrong)


def test_a_picture_is_cut_in_the_middle_and_not_squeezed(folder):
    picture = open_image(folder / "picture.png", 64, 64)
    assert picture.shape == (1, 3, 64, 64)
    red = (picture[0, 0].mean(0) + 1) * 127.5  # x / 2, of which the middle half is left: 50 to 150
    assert red[0].item() == pytest.approx(50.5, abs=1.5)
    assert red[-1].item() == pytest.approx(149, abs=1.5)
    exact = open_image(folder / "picture.png", 400, 200)
    with Image.open(folder / "picture.png") as source:
        assert np.array_equal(((exact[0] + 1) * 127.5).round().permute(1, 2, 0).numpy(), np.array(source))


def test_a_sheet_shows_all_frames_in_order():
    frames = np.stack([np.full((36, 64, 3), 20 * i, np.uint8) for i in range(7)])
    sheet = np.array(contact_sheet(frames, fps=7))
    centres = [(6 + 90 + i // 5 * (180 + 16 + 6), 6 + 160 + i % 5 * 326) for i in range(7)]
    assert [int(sheet[y, x, 0]) for y, x in centres] == [20 * i for i in range(7)]


def test_export_writes_a_folder_that_diffusers_runs(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "diffusers"
    assert run(monkeypatch, "export", folder / "image-to-video", "--out", out, "--format", "diffusers") == 0
    assert str(out) in capsys.readouterr().out
    pipeline = StableVideoDiffusionPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    with Image.open(folder / "picture.png") as picture:
        output = pipeline(picture, height=64, width=96, num_frames=2, num_inference_steps=1, output_type="np")
    assert output.frames.shape == (1, 2, 64, 96, 3)


def test_export_says_what_it_cannot_write(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "export", folder / "text-to-video", "--out", tmp_path / "a") == 2
    assert "got a model for text-to-video" in capsys.readouterr().err
    assert run(monkeypatch, "export", folder / "text-to-video", "--out", folder, "--format", "original") == 2
    assert "not empty" in capsys.readouterr().err
    assert run(monkeypatch, "export", folder / "image-to-video", "--out", tmp_path / "a", "--format", "onnx") == 2
    assert "unknown format 'onnx'; known: diffusers, original" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
