"""Shards in, a model that can be sampled out: stages one after another, and what is refused."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from clipmill.errors import RunStopped, UserError
from pipelines.cli import app
from pipelines.fence import HEARTBEAT_FILE, owned
from pipelines.recipe import train_recipe
from pipelines.sample import SampleRequest, sample
from pipelines.train import Progress, dry_run, resolve_stage, train
from pipelines.train_on_ray import STOP, _fit, _ray_worker
from svd.checkpoint import load_model, save_model
from svd.config import UNetConfig
from svd.model import Model, ModelConfig
from tests.limits import largest_file
from tests.training import shards
from tests.training.world import UNET
from training.distributed import Process
from training.run_folder import latest_step
from training.stopping import Stopped, StopRequest

pytestmark = pytest.mark.slow

SETTINGS = [
    f"model.overrides={json.dumps({**UNET, 'id_width': 16, 'frames': 3})}",
    "data.frames=3", "data.height_px=32", "data.width_px=48", "data.batch_size=2", "data.workers=0", "data.fps=[8]",
    "run.steps=4", "run.batch_size=2", "run.log_every=2", "run.save_every=2", "run.sample_every=4",
    "run.sample_steps=2", "optimizer.warmup_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    clip = shards.video(24)
    shards.write_shard(folder / "clips-0.tar", [shards.sample(f"{i}", clip) for i in range(4)])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    jpg = cv2.imencode(".jpg", shards.numbered(77))[1].tobytes()
    shards.write_shard(folder / "images-0.tar", [shards.sample(f"{i}", jpg, "jpg") for i in range(4)])
    return folder


def model_at(folder: Path, preset: str) -> Path:
    """A new tiny model of a preset, with an autoencoder and the encoder it needs."""
    frames = 1 if preset == "sd21" else 3
    unet = UNetConfig.preset(preset, **UNET, id_width=16, frames=frames)
    save_model(Model.build(ModelConfig.tiny(unet, width_px=48, height_px=32)), folder)
    return folder


def test_a_stage_by_the_command_line_gives_a_model_that_makes_videos(data: Path, tmp_path: Path) -> None:
    init, out = model_at(tmp_path / "init", "svd"), tmp_path / "run"
    arguments = ["train", "--stage", "tiny-image-to-video", "--data", str(data), "--out", str(out), "--init", str(init)]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert np.asarray(Image.open(out / "samples" / "step-00000004.png")).std() > 5
    settings = json.loads((out / "stage.json").read_text())
    stage = resolve_stage("tiny-image-to-video", None, SETTINGS)
    assert settings["config"] == stage.model_dump(mode="json")
    assert settings["versions"]["torch"] == importlib.metadata.version("torch")
    assert settings["git"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", settings["git"])
    assert (settings["shards"], settings["init"], settings["world_size"]) == (str(data), str(init), 1)
    Image.fromarray(shards.numbered(3)).save(tmp_path / "first.png")
    request = SampleRequest(image=tmp_path / "first.png", steps=2, device="cpu")
    video = sample(out / "model", tmp_path / "video.mp4", request, quiet=True)
    assert (video.frames, video.width_px, video.height_px) == (3, 48, 32)


def test_a_recipe_grows_an_image_model_into_one_for_videos(data: Path, pictures: Path, tmp_path: Path) -> None:
    """Stage I, II and image to video, one after another; run again, nothing is done twice."""
    encoder = model_at(tmp_path / "encoder", "svd")

    def entry(stage: str, where: Path, frames: int, **model: Any) -> dict[str, Any]:
        changes = {**UNET, "id_width": 16, "frames": frames}
        return {
            "stage": stage,
            "data": str(where),
            "set": {
                "model": {"overrides": changes, **model},
                "data": {"frames": frames, "height_px": 32, "width_px": 48, "batch_size": 2, "workers": 0, "fps": 8},
                "run": {"steps": 2, "batch_size": 2, "sample_every": None},
            },
        }

    recipe = tmp_path / "recipe.yaml"
    stages = [
        entry("tiny-image", pictures, 1),
        entry("tiny-video", data, 3),
        entry("tiny-image-to-video", data, 3, image_encoder=str(encoder)),
    ]
    recipe.write_text(yaml.safe_dump({"init": str(model_at(tmp_path / "init", "sd21")), "stages": stages}))
    models = list(train_recipe(recipe, tmp_path / "runs", quiet=True))
    assert [load_model(path).config.task for path in models] == ["image", "text-to-video", "image-to-video"]
    assert [path.parent.name for path in models] == ["1-tiny-image", "2-tiny-video", "3-tiny-image-to-video"]
    written = [(path / "clipmill.json").stat().st_mtime_ns for path in models]
    assert list(train_recipe(recipe, tmp_path / "runs", quiet=True)) == models
    assert [(path / "clipmill.json").stat().st_mtime_ns for path in models] == written
    for group, change, message in (
        (
            "optimizer",
            {"lr": 1},
            r"1-tiny-image was started with different settings \(optimizer.lr: was 0.0001, ",
        ),
        (
            "run",
            {**stages[0]["set"]["run"], "steps": 3},
            r"1-tiny-image has more steps to train, but .*2-tiny-video was already started",
        ),
    ):
        changed = [{**stages[0], "set": {**stages[0]["set"], group: change}}, *stages[1:]]
        recipe.write_text(yaml.safe_dump({"stages": changed}))
        with pytest.raises(UserError, match=message):
            next(train_recipe(recipe, tmp_path / "runs", quiet=True))
    assert [(path / "clipmill.json").stat().st_mtime_ns for path in models] == written


def test_joint_training_takes_pictures_beside_videos(data: Path, pictures: Path, tmp_path: Path) -> None:
    stage = resolve_stage("tiny-video", None, [*SETTINGS, "run.image_share=0.5"])
    init = model_at(tmp_path / "init", "t2v")
    train(stage, str(data), tmp_path / "run", images=str(pictures), init=init, quiet=True)
    with pytest.raises(UserError, match="joint training requires"):
        train(stage, str(data), tmp_path / "other", init=init, quiet=True)


def test_a_run_goes_on_in_the_middle_of_a_shard_that_workers_read(data: Path, tmp_path: Path) -> None:
    init = model_at(tmp_path / "init", "svd")
    changes = ["data.workers=2", "data.batch_size=1", "run.batch_size=1", "run.log_every=1", "run.sample_every=null"]

    def losses(out: Path, steps: int) -> list[float]:
        stage = resolve_stage("tiny-image-to-video", None, [*SETTINGS, *changes, f"run.steps={steps}"])
        train(stage, str(data), out, init=init, quiet=True)
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    whole = losses(tmp_path / "whole", 5)
    assert losses(tmp_path / "begun", 3) == whole[:3]
    assert losses(tmp_path / "begun", 5) == whole


def test_a_resumed_run_says_from_where_and_may_read_in_another_way(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number of workers, a moved autoencoder, more broken samples; but not another autoencoder, nor other
    shards."""
    init, out = model_at(tmp_path / "init", "t2v"), tmp_path / "run"
    changes = [*SETTINGS, "run.steps=1", "run.sample_every=null"]
    train(resolve_stage("tiny-video", None, changes), str(data), out, init=init)
    assert "resuming" not in capsys.readouterr().err
    moved = shutil.copytree(init, tmp_path / "moved")
    changes += ["run.steps=2", "data.workers=1", "data.max_broken_share=0.5", "model.checkpointing=true"]
    changes.append(f"model.autoencoder={moved}")
    train(resolve_stage("tiny-video", None, changes), str(data), out, init=init)
    assert f"resuming {out} from step 1 of 2" in capsys.readouterr().err.replace("\n", "")
    torch.manual_seed(5)
    other = resolve_stage("tiny-video", None, [*changes, f"model.autoencoder={model_at(tmp_path / 'other', 't2v')}"])
    with pytest.raises(UserError, match=r"was started with different settings \(models\.autoencoder: was"):
        train(other, str(data), out, init=init, quiet=True)
    more = shutil.copytree(data, tmp_path / "more")
    shutil.copy(more / "clips-0.tar", more / "clips-1.tar")
    stage = resolve_stage("tiny-video", None, changes)
    with pytest.raises(
        UserError, match=r"was trained on different shards \(clips-1.tar was added\): resume with the original"
    ):
        train(stage, str(more), out, init=init, quiet=True)
    (out / "stage.json").write_text("[")
    with pytest.raises(UserError, match=r"stage\.json is damaged"):
        train(stage, str(data), out, init=init, quiet=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_and_a_sentence(
    data: Path,
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = resolve_stage(
        "tiny-video", None, [*SETTINGS, "run.log_every=1", "run.save_every=100", "run.sample_every=null"]
    )
    monkeypatch.setattr(
        Progress, "__call__", lambda _, record: os.kill(os.getpid(), number) if record["step"] == 1 else None
    )
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train(stage, str(data), tmp_path / "run", init=model_at(tmp_path / "init", "t2v"))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert [checkpoint] == list(checkpoint.parent.iterdir())
    printed = capsys.readouterr().err.replace("\n", "")
    assert f"stopped after step 2 of 4; the same command resumes from its checkpoint, {checkpoint}" in printed


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run, but for the heartbeat of its owner and the temporary file that becomes it."""
    files = (path for path in folder.rglob("*") if path.is_file() and HEARTBEAT_FILE not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_second_run_in_a_folder_in_use_is_refused_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    stage, init, run = resolve_stage("tiny-video", None, SETTINGS), model_at(tmp_path / "i", "t2v"), tmp_path / "run"
    train(stage, str(data), run, init=init, quiet=True)
    longer = resolve_stage("tiny-video", None, [*SETTINGS, "run.steps=6"])
    with owned(str(run)) as fence:
        before = content(run)
        with pytest.raises(UserError, match=rf"in use by another run .*pid {os.getpid()}, since .*--take-over"):
            train(longer, str(data), run, init=init, quiet=True)
        # A request that cannot work does not stop the run, either.
        for stage, shards_at in (
            (resolve_stage("tiny-video", None, [*SETTINGS, "run.seed=7"]), str(data)),
            (longer, str(tmp_path / "nothing")),
        ):
            with pytest.raises(UserError, match=r"different settings|no shards"):
                train(stage, shards_at, run, init=init, quiet=True, take_over=True)
        fence.check()
        assert content(run) == before


def test_a_run_that_was_taken_over_stops_before_its_next_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = resolve_stage("tiny-video", None, [*SETTINGS, "run.log_every=1"])
    run, init, seen = tmp_path / "run", model_at(tmp_path / "init", "t2v"), []

    def take_over(self: Progress, record: dict[str, Any]) -> None:
        if record["step"] == 3:
            seen.append(taking.enter_context(owned(str(run), take_over=True)))

    with ExitStack() as taking:
        monkeypatch.setattr(Progress, "__call__", take_over)
        with pytest.raises(RunStopped, match="another run now owns"):
            train(stage, str(data), run, init=init, quiet=True)
        seen[0].check()
        assert latest_step(run) in (2, None)  # what was still being written is left to the other run
        assert not list((run / "checkpoints").glob("step-00000004*"))
        assert not (run / "model").exists()


def test_a_worker_of_ray_is_stopped_by_a_file(data: Path, tmp_path: Path, process: Process) -> None:
    settings: dict[str, Any] = {
        "stage": resolve_stage("tiny-video", None, SETTINGS), "data": str(data), "out": tmp_path / "run",
        "images": None, "init": model_at(tmp_path / "init", "t2v"), "device": "cpu", "check": lambda: None,
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STOP).touch()
    with pytest.raises(Stopped, match="stopped after step 1 of 4"):
        _ray_worker(settings)


def test_the_driver_hands_a_signal_on_to_workers_as_a_file(tmp_path: Path) -> None:
    """And removes what an earlier run has left."""
    file, stop = tmp_path / "run" / STOP, StopRequest()
    file.parent.mkdir()
    file.touch()

    def fit() -> None:
        assert not file.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        while not file.exists():
            time.sleep(0.01)
        raise RuntimeError("what Ray says")

    with pytest.raises(RuntimeError, match="what Ray says"):
        _fit(fit, stop, file)
    assert stop.asked()
    assert not file.exists()


def test_sharded_weights_are_gathered_into_the_same_model(data: Path, tmp_path: Path) -> None:
    init = model_at(tmp_path / "init", "svd")
    models = []
    for strategy in ("none", "fsdp"):
        stage = resolve_stage("tiny-image-to-video", None, [*SETTINGS, f"run.strategy={strategy}", "run.steps=2"])
        models.append(load_model(train(stage, str(data), tmp_path / strategy, init=init, quiet=True)))
    plain, gathered = (model.unet.state_dict() for model in models)
    assert plain.keys() == gathered.keys()
    for name, value in plain.items():
        torch.testing.assert_close(gathered[name], value)


def test_the_estimate_of_the_paper_s_run_adds_up() -> None:
    stage = resolve_stage("image-to-video", None, ["run.strategy=fsdp"])
    rows = dict(dry_run(stage, 256))
    assert rows["parameters"] == "1,524,623,082"
    assert rows["global batch"] == "768 = 1 x 256 GPUs x 3 accumulation steps"
    assert rows["  weights and optimizer"] == "0.1 GiB (sharded)"


def test_the_dry_run_of_the_command_line_prints_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(app, ["train", "--stage", "tiny-image", "--dry-run"]).output
    for name in ("parameters", "training step", "memory per GPU", "200 steps on 1 H100"):
        assert name in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out run", "pass either --stage or --recipe"),
        ("--stage tiny-video --out run", "--stage requires --data"),
        ("--stage tiny-video --data shards", "--stage requires --data"),
        ("--recipe r.yaml --out runs --stage image --set a.b=1", "cannot be combined with --stage, --set"),
        ("--recipe r.yaml", "--recipe requires --out"),
    ],
)
def test_a_command_that_says_too_little_or_too_much_is_refused(arguments: str, message: str) -> None:
    result = CliRunner().invoke(app, ["train", *arguments.split()])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vidoe", [], "Did you mean 'video'"),
        ("video", ["run.stepz=3"], "Did you mean 'steps'"),
        ("video", ["run.steps"], "group.key=value"),
        ("video", ["run.steps=many"], "run.steps: Input should be a valid integer"),
        ("video", ["run.strategy=magic"], "run.strategy: Input should be 'auto'"),
        ("video", ["data.frames=1"], "is a video network"),
    ],
)
def test_settings_that_do_not_fit_say_so(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_stage(name, None, settings)


def test_what_cannot_be_trained_on_says_why(data: Path, tmp_path: Path) -> None:
    stage = resolve_stage("tiny-video", None, SETTINGS)
    with pytest.raises(UserError, match="missing autoencoder: initialize from a model that has one"):
        train(stage, str(data), tmp_path / "a", quiet=True)
    with pytest.raises(UserError, match="cannot initialize stage 'tiny-video'"):
        train(stage, str(data), tmp_path / "b", init=model_at(tmp_path / "svd", "svd"), quiet=True)
    with pytest.raises(UserError, match=r"no \*.tar in the folder"):
        train(stage, str(tmp_path), tmp_path / "c", init=model_at(tmp_path / "t2v", "t2v"), quiet=True)
    train(stage, str(data), tmp_path / "d", init=tmp_path / "t2v", quiet=True)
    with (
        largest_file(2_000),  # room for the run.json of a running command, none for a checkpoint
        pytest.raises(RunStopped, match=r"File too large.* last complete checkpoint: .*step-00000004$"),
    ):
        train(stage, str(data), tmp_path / "d", init=tmp_path / "t2v", quiet=True)
    shards.write_shard(tmp_path / "noise" / "clips-0.tar", [shards.sample("a", b"no video")])
    reading_ahead = resolve_stage("tiny-video", None, [*SETTINGS, "data.workers=1"])
    with pytest.raises(
        UserError, match=r"^aborting: 20 of 20 reads of \d+ samples were unreadable .*20 decode_error.*; last: .*$"
    ):
        train(reading_ahead, str(tmp_path / "noise"), tmp_path / "e", init=tmp_path / "t2v", quiet=True)
    other = resolve_stage("tiny-video", None, [*SETTINGS, "optimizer.lr=1"])
    with pytest.raises(UserError, match=r"was started with different settings \(optimizer.lr: was 0.0001, now 1.0\)"):
        train(other, str(data), tmp_path / "d", init=tmp_path / "t2v", quiet=True)
    with pytest.raises(UserError, match="a run of stage 'tiny-video', expected 'tiny-image-to-video'"):
        train(resolve_stage("tiny-image-to-video", None, SETTINGS), str(data), tmp_path / "d", quiet=True)
